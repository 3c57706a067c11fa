"""What an installation gets: every library that is imported, one version, and the notices of what is shipped."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email import message_from_string
from importlib.metadata import packages_distributions
from pathlib import Path

import framer

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_INSTALLED_HERE = {"lpips": "lpips", "pyiqa": "pyiqa"}
OF_PYDANTIC = "pydantic-core"  # each pydantic requires one version of it


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def libraries(source: str) -> Iterator[str]:
    """Top-level modules that a source imports, by statement or by ``require``."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.split(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.split(".")[0]
            case ast.Call(func=ast.Name(id="require"), args=[ast.Constant(value=str(module)), *_]):
                yield module.split(".")[0]


def test_every_imported_library_is_declared() -> None:
    sources = [path for package in ("framer", "framer_kernels") for path in (ROOT / package).rglob("*.py")]
    imported = {name for path in sources for name in libraries(path.read_text())}
    imported -= {*sys.stdlib_module_names, "framer", "framer_kernels"}
    found = NOT_INSTALLED_HERE | {name: names[0] for name, names in packages_distributions().items()}
    needed = {normalised(found[name]) for name in imported}
    extras = PROJECT["optional-dependencies"].values()
    requirements = [*PROJECT["dependencies"], *(requirement for extra in extras for requirement in extra)]
    declared = {normalised(re.split(r"[<>=!~; \[]", requirement)[0]) for requirement in requirements}
    assert needed - declared == {OF_PYDANTIC}


def test_an_installation_has_the_version_and_every_notice(tmp_path: Path) -> None:
    # Of the package's code the version's file alone is there: finding it out imports nothing.
    notices = ["LICENSE", "framer/assets/base/README.md", "framer/assets/niqe/README.md"]
    for name in ["pyproject.toml", "README.md", "framer/__init__.py", *notices]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "built").mkdir()
    code = "from setuptools.build_meta import prepare_metadata_for_build_wheel as p; p('built')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (folder,) = (tmp_path / "built").glob("*.dist-info")
    metadata = message_from_string((folder / "METADATA").read_text())
    assert metadata["Version"] == framer.__version__
    assert sorted(metadata.get_all("License-File", [])) == notices
