"""Weights of a diffusers folder, tensor by tensor, whether in one safetensors file or in several with an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from framer.errors import UserError

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors weights as diffusers names them."""
    return (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file()


class WeightReader:
    """Reads one tensor at a time.

    Attributes:
        names: All tensors there are.
    """

    def __init__(self, folder: Path, places: dict[str, Any]) -> None:
        self._folder = folder
        self._places = places

    @property
    def names(self) -> frozenset[str]:
        """All tensors there are."""
        return frozenset(self._places)

    def read(self, name: str) -> Tensor:
        """One tensor, in its stored dtype.

        Raises:
            UserError: The file is damaged.
        """
        try:
            tensor: Tensor = self._places[name].get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"model.pretrained: cannot read {name} in {self._folder}: {error}") from error
        return tensor


@contextmanager
def open_weights(folder: Path) -> Iterator[WeightReader]:
    """Opens a folder's weights, or one safetensors file.

    Raises:
        UserError: A file is missing or damaged.
    """
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for file in _files(folder):
            try:
                handle = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"model.pretrained: cannot load {file}: {error}") from error
            places |= dict.fromkeys(handle.keys(), handle)
        yield WeightReader(folder, places)


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    index = folder / INDEX_FILE
    if not index.is_file():
        return [folder / WEIGHTS_FILE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"model.pretrained: {index} is damaged: {error!r}") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"model.pretrained: {folder} lacks {', '.join(missing)}, which {index.name} lists")
    return [folder / name for name in names]
