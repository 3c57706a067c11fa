from __future__ import annotations

import json.decoder
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
