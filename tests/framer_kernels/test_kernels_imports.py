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
IMPLEMENTATIONS = {"reference", "portable", "triton"}


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
    if parts[0] != "framer_kernels":
        return None
    if parts[1:2] == ["reference"]:
        return "reference"
    if parts[1:2] == ["ops"] and len(parts) > 3 and parts[3] in IMPLEMENTATIONS:
        return ".".join(parts[2:4])
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
        if root == "triton" and implementation(name) is None:
            found.append(f"{name} imports {target}: triton only inside triton files")
        if root == "triton" and (implementation(name) or "").split(".")[-1] != "triton":
            found.append(f"{name} imports {target}: triton only inside triton files")
        own, other = implementation(name), implementation(target)
        if own is not None and (other not in (None, own) or target.split(".")[-1] == "api"):
            found.append(f"{name} imports {target}: implementations import neither one another nor an api")
        if own == "reference" and operation(target) is not None:
            found.append(f"{name} imports {target}: the reference knows no operation")
        if other is not None and other != "reference" and operation(name) not in (None, operation(target)):
            found.append(f"{name} imports {target}: an operation uses no other operation's implementation")
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
        ("framer_kernels.ops.similarity.triton", "from framer_kernels import reference"),
        ("framer_kernels.ops.similarity.triton", "from framer_kernels.ops.similarity import portable"),
        ("framer_kernels.ops.similarity.portable", "from framer_kernels.ops.similarity.triton import launch"),
        ("framer_kernels.ops.similarity.portable", "from framer_kernels.ops.contrastive.portable import f"),
        ("framer_kernels.ops.similarity.api", "from framer_kernels.ops.contrastive.portable import f"),
    ],
)
def test_the_rules_catch_what_breaks_them(name: str, source: str) -> None:
    assert violations(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("framer_kernels.ops.similarity.triton", "import triton"),
        ("framer_kernels.ops.similarity.api", "from framer_kernels import reference"),
        ("framer_kernels.ops.similarity.api", "from framer_kernels.ops.similarity.portable import f"),
        ("framer_kernels.ops.similarity.portable", "from framer_kernels.bands import BandSplit"),
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
