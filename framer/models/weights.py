"""Weights of a diffusers folder, tensor by tensor, whether in one safetensors file or in several with an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from framer.errors import UserError

if TYPE_CHECKING:
    from diffusers import ModelMixin

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors weights as diffusers names them."""
    return (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file()


def check_weights(folder: Path, *, key: str = "model.pretrained") -> None:
    """Checks that the folder holds weights.

    Args:
        folder: The folder.
        key: The setting that names it, for messages.

    Raises:
        UserError: It holds none.
    """
    if not has_weights(folder):
        expected = "'base' or a folder" if key == "model.pretrained" else "a folder"
        raise UserError(
            f"{key}: {folder / WEIGHTS_FILE} not found; expected {expected} written by diffusers' save_pretrained"
        )


def load_pretrained(cls: type[ModelMixin], folder: Path, *, key: str = "model.pretrained") -> ModelMixin:
    """Loads a folder's model whole, in float32 on the CPU.

    Args:
        cls: Its class.
        folder: The folder.
        key: The setting that names it, for messages.

    Raises:
        UserError: The weights are missing, damaged or do not fit ``config.json``.
    """
    check_weights(folder, key=key)
    try:
        model, loaded = cls.from_pretrained(
            folder,
            torch_dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a damaged file makes diffusers raise
        raise UserError(f"{key}: cannot load {folder}: {type(error).__name__}: {error}") from error
    for what in ("missing", "unexpected"):
        names = sorted(loaded[f"{what}_keys"])
        if names:
            raise UserError(
                f"{key}: {folder / WEIGHTS_FILE} does not fit config.json: {len(names)} {what} weights, "
                f"such as {names[0]}"
            )
    return model


class WeightReader:
    """Reads one tensor at a time.

    Attributes:
        names: All tensors there are.
    """

    def __init__(self, folder: Path, places: dict[str, Any], *, key: str = "model.pretrained") -> None:
        self._folder = folder
        self._places = places
        self._key = key

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
            raise UserError(f"{self._key}: cannot read {name} in {self._folder}: {error}") from error
        return tensor


class RenamedWeights(WeightReader):
    """Weights of several folders under other names.

    Args:
        sources: By the new name, the reader and the name there.
    """

    def __init__(self, sources: Mapping[str, tuple[WeightReader, str]]) -> None:
        self._sources = sources

    @property
    def names(self) -> frozenset[str]:
        """All tensors there are."""
        return frozenset(self._sources)

    def read(self, name: str) -> Tensor:
        """One tensor, in its stored dtype.

        Raises:
            UserError: The file is damaged.
        """
        reader, own = self._sources[name]
        return reader.read(own)


@contextmanager
def open_weights(folder: Path, *, key: str = "model.pretrained") -> Iterator[WeightReader]:
    """Opens a folder's weights, or one safetensors file.

    Args:
        folder: The folder.
        key: The setting that names it, for messages.

    Raises:
        UserError: A file is missing or damaged.
    """
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for file in weight_files(folder, key=key):
            try:
                handle = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{key}: cannot load {file}: {error}") from error
            places |= dict.fromkeys(handle.keys(), handle)
        yield WeightReader(folder, places, key=key)


def weight_files(folder: Path, *, key: str = "model.pretrained") -> list[Path]:
    """The files of a folder's weights, in the order of their names; they need not exist where there is no index.

    Args:
        folder: The folder, or one safetensors file.
        key: The setting that names it, for messages.

    Raises:
        UserError: The index is damaged, or lists files that are missing.
    """
    if folder.is_file():
        return [folder]
    index = folder / INDEX_FILE
    if not index.is_file():
        return [folder / WEIGHTS_FILE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{key}: {index} is damaged: {error!r}") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{key}: {folder} lacks {', '.join(missing)}, which {index.name} lists")
    return [folder / name for name in names]
