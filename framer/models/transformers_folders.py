"""Folders of transformers' models: their configuration, their weights in safetensors, and what identifies them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final, Literal

import torch

from framer.errors import UserError
from framer.extras import require
from framer.files import file_sha256, read_json_object

Precision = Literal["fp32", "bf16"]
DTYPES: Final[dict[Precision, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16}
EXTRA: Final = "texts"

_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = f"{_WEIGHTS}.index.json"
# They say where a model came from and what it was saved with, not what it computes.
_VOLATILE: Final = frozenset(
    {"_name_or_path", "name_or_path", "_diffusers_version", "transformers_version", "torch_dtype", "dtype"}
)
_SETTINGS: Final = frozenset({".json", ".txt", ".model", ".jinja"})


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file of a model's folder.

    Raises:
        UserError: The file is missing or damaged.
    """
    return read_json_object(path, expected="a folder as transformers' and diffusers' save_pretrained write it")


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, one or several with an index.

    Raises:
        UserError: There are none, or the index is damaged or lists files that are missing.
    """
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if not index.is_file():
        raise UserError(
            f"{folder} holds neither {_WEIGHTS} nor {_INDEX}; weights are read from safetensors only, without a "
            "variant such as fp16 in the name"
        )
    try:
        files = sorted({folder / str(name) for name in read_json(index)["weight_map"].values()})
    except (KeyError, AttributeError) as error:
        raise UserError(f"{index} is damaged: {error!r}") from None
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which {_INDEX} lists")
    return files


def load_model(cls: Any, folder: Path, *, precision: Precision, device: torch.device) -> Any:
    """Loads a model of transformers from its folder; no network, no code of its own, no pickles.

    Args:
        cls: Its class, or one of transformers' auto classes.
        folder: The folder.
        precision: Of weights and computation.
        device: Where to put it.

    Returns:
        The model, frozen, in evaluation mode.

    Raises:
        UserError: Weights are missing or damaged, or do not fit the configuration.
    """
    weights_files(folder)
    read_json(folder / "config.json")
    try:
        model, loaded = cls.from_pretrained(
            folder,
            dtype=DTYPES[precision],
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # whatever a damaged folder makes transformers raise
        raise UserError(f"cannot load {folder}: {type(error).__name__}: {error}") from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise UserError(f"{folder}: the weights lack {len(missing)} tensors, such as {missing[0]}")
    return model.to(device).eval().requires_grad_(False)


def load_part(class_name: str, folder: Path) -> Any:
    """Loads a tokenizer or processor of transformers from its folder; no network, no code of its own.

    Raises:
        MissingExtraError: transformers is not installed.
        UserError: The folder is missing or damaged, or needs a library that is not installed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} not found; expected a folder as transformers' save_pretrained writes it")
    cls = getattr(require("transformers", extra=EXTRA), class_name)
    try:
        return cls.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as in load_model
        raise UserError(f"cannot load {folder}: {type(error).__name__}: {error}") from error


def digest_of_folder(folder: Path, *, with_weights: bool) -> str:
    """SHA-256 of what a model, tokenizer or processor reads from its folder, wherever that lies.

    Weights and tokenizers count by their bytes, other JSON files by their content without paths and versions.

    Args:
        folder: The folder.
        with_weights: Whether it holds a model.

    Raises:
        UserError: The folder or its weights are missing, or a file is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} not found; expected a folder as transformers' save_pretrained writes it")
    settings = [
        path
        for path in folder.iterdir()
        if path.suffix in _SETTINGS and not path.name.startswith(".") and ".index." not in path.name
    ]
    digest = hashlib.sha256()
    for path in sorted([*settings, *(weights_files(folder) if with_weights else [])]):
        digest.update(f"{path.name}\0{_digest_of_file(path)}\n".encode())
    return digest.hexdigest()


def _digest_of_file(path: Path) -> str:
    if path.suffix == ".json" and path.name not in ("tokenizer.json", "vocab.json"):
        content = read_json(path)
        meant = {key: value for key, value in content.items() if key not in _VOLATILE}
        return hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
