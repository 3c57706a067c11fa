"""The package's import rules: what may know of what."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import framer_kernels

ROOT = Path(framer_kernels.__file__).parent
BACKENDS = {"portable", "triton"}


def modules() -> dict[str, str]:
    """Source of every module by its dotted name."""
    sources = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def imported(source: str) -> set[str]:
    """Dotted names of all that a source imports, `from a import b` as ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # The house uses absolute imports alone, which is what the checks below understand.
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def implementation(dotted: str) -> str | None:
    """The implementation that a module is, or that an imported name lies in."""
    parts = dotted.split(".")
    if parts[:2] == ["framer_kernels", "reference"]:
        return "reference"
    if parts[:2] == ["framer_kernels", "backends"] and len(parts) > 2 and parts[2] in BACKENDS:
        return parts[2]
    return None


def operation(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[2] if parts[:2] == ["framer_kernels", "ops"] and len(parts) > 2 else None


def violations(name: str, source: str) -> list[str]:
    found = []
    for target in sorted(imported(source)):
        root = target.split(".")[0]
        if target.startswith("."):
            found.append(f"{name}: relative import {target}")
        if root == "framer":
            found.append(f"{name} imports {target}: framer_kernels never imports framer")
        own, other = implementation(name), implementation(target)
        if root == "triton" and own != "triton":
            found.append(f"{name} imports {target}: triton only inside the triton backend")
        if own is not None and (other not in (None, own) or operation(target) is not None):
            found.append(f"{name} imports {target}: implementations import neither one another nor an operation")
        if other not in (None, own, "reference") and name != "framer_kernels.backends":
            found.append(f"{name} imports {target}: backends are loaded by name")
    return found


def test_the_package_keeps_the_rules() -> None:
    sources = modules()

    assert {"framer_kernels", "framer_kernels.reference", "framer_kernels.ops.framer_loss.api"} <= set(sources)
    assert [line for name, source in sources.items() for line in violations(name, source)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("framer_kernels.bands", "from framer.config import Config"),
        ("framer_kernels.bands", "import framer"),
        ("framer_kernels.bands", "def f():\n    import triton.language as tl"),
        ("framer_kernels.reference", "import triton"),
        ("framer_kernels.bands", "from . import reference"),
        ("framer_kernels.reference", "from framer_kernels.ops.similarity.api import band_similarity"),
        ("framer_kernels.backends.triton", "from framer_kernels import reference"),
        ("framer_kernels.backends.triton.packed", "from framer_kernels.backends import portable"),
        ("framer_kernels.backends.portable", "from framer_kernels.backends.triton import measure"),
        ("framer_kernels.backends.portable", "import triton"),
        ("framer_kernels.backends.portable", "from framer_kernels.ops.contrastive.api import f"),
        ("framer_kernels.ops.similarity.api", "from framer_kernels.backends.portable import measure"),
    ],
)
def test_the_rules_catch_what_breaks_them(name: str, source: str) -> None:
    assert violations(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("framer_kernels.backends.triton.packed_kernels", "import triton"),
        ("framer_kernels.backends.triton", "from framer_kernels.backends.triton.packed import measure"),
        ("framer_kernels.ops.similarity.api", "from framer_kernels import reference"),
        ("framer_kernels.ops.similarity.autograd", "from framer_kernels.backends import load_backend"),
        ("framer_kernels.backends.portable", "from framer_kernels.bands import BandSplit"),
    ],
)
def test_the_rules_allow_what_is_meant(name: str, source: str) -> None:
    assert violations(name, source) == []


def test_import_and_loss_without_triton_or_a_gpu() -> None:
    program = """
import sys
import torch

wanted = []

class NoTriton:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            wanted.append(name)
            raise ModuleNotFoundError(name)

sys.modules.pop("triton", None)
sys.meta_path.insert(0, NoTriton())
import framer_kernels
assert not wanted, wanted
assert "framer" not in sys.modules
maps = [torch.randn(2, 2, 8, 8, requires_grad=True) for _ in range(3)]
framer_kernels.framer_loss(maps[:2], maps[2], negatives=[1, 0]).loss.sum().backward()
print("ok")
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT.parent)}

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)

    assert done.stdout.strip() == "ok", done.stderr


def test_the_package_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()
