from __future__ import annotations

import ast
import json.decoder
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import framer
from framer.errors import MissingExtraError, UserError
from framer.extras import require


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed library whose content the test writes."""
    folder = tmp_path / "some_library"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "some_library"]:
        del sys.modules[name]


def test_an_installed_library_is_returned() -> None:
    assert require("json.decoder", extra="train") is json.decoder


@pytest.mark.parametrize("module", ["no_such_library", "no_such_library.part.of.it"])
def test_a_missing_library_names_the_extra_that_installs_it(module: str) -> None:
    expected = (
        "no_such_library is not installed; "
        r"install it in the clone of this repository with: pip install -c constraints\.txt -e '\.\[train\]'"
    )
    with pytest.raises(MissingExtraError, match=expected):
        require(module, extra="train")


def test_a_missing_part_of_an_installed_library(library: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"some_library\.part is not installed; .*-e '\.\[test\]"):
        require("some_library.part", extra="test")


def test_a_library_that_lacks_a_library_of_its_own_is_not_blamed_on_the_extra(library: Path) -> None:
    (library / "part.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_dependency'") as caught:
        require("some_library.part", extra="train")
    assert not isinstance(caught.value, MissingExtraError)


def test_a_broken_library_tells_its_own_error(library: Path) -> None:
    (library / "part.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    with pytest.raises(ImportError, match=r"libGL\.so\.1") as caught:
        require("some_library.part", extra="train")
    assert not isinstance(caught.value, MissingExtraError)


def test_the_error_is_the_users_and_still_an_import_error() -> None:
    assert issubclass(MissingExtraError, UserError)
    assert issubclass(MissingExtraError, ImportError)


# PIL and tqdm come with diffusers.
OPTIONAL = {
    *("cv2", "deepspeed", "lpips", "matplotlib", "peft", "psutil", "pyiqa", "scipy", "skimage", "sklearn"),
    *("tensorboard", "transformers", "wandb", "webdataset", "xformers"),
}


def _runs_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: not the bodies of functions, nor what only type checkers read."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    for child in ast.iter_child_nodes(node):
        yield from _runs_at_import(child)


def _imported_with(source: str) -> set[str]:
    """The libraries, and calls of `require`, that importing a module leads to."""
    found: set[str] = set()
    for node in _runs_at_import(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(module=str(module)):
                found.add(module.partition(".")[0])
            case ast.Call(func=ast.Name(id="require")):
                found.add("require")
    return found


def test_no_module_imports_an_optional_library_before_it_is_used() -> None:
    root = Path(framer.__file__).parent
    early = {
        str(path.relative_to(root)): names
        for path in sorted(root.rglob("*.py"))
        if (names := _imported_with(path.read_text(encoding="utf-8")) & {*OPTIONAL, "require"})
    }
    assert early == {}


def test_an_early_import_would_be_seen() -> None:
    seen = _imported_with("import cv2.x\nfrom scipy.a import b\nx = require('peft', extra='lora')\n")
    assert seen == {"cv2", "scipy", "require"}
    later = "if TYPE_CHECKING:\n    import cv2\ndef f():\n    import cv2\n    require('cv2')\n"
    assert _imported_with(later) == set()
