"""Reading ``.pt`` files of others without running what they hold."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from framer.errors import UserError

_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


def read_tensor(path: Path, shape: Sequence[int | None]) -> Tensor:
    """Reads a file that ``torch.save`` wrote of one tensor.

    Nothing in the file is run: anything but tensors and plain values is refused.

    Args:
        path: The file.
        shape: Expected sizes, None for any; a leading axis of size 1 is taken off.

    Returns:
        The tensor as it was saved (float32, float16 or bfloat16), contiguous, on the CPU.

    Raises:
        UserError: The file cannot be read, holds something else, or the tensor has another shape or dtype or values
            that are not finite; names the file.
    """
    found = _load(path)
    if not isinstance(found, Tensor):
        raise UserError(f"{path} holds {_article(type(found).__name__)}; expected a tensor saved with torch.save")
    if found.layout != torch.strided or found.device.type != "cpu" or found.dtype not in _DTYPES:
        kind = f"{found.dtype}, {found.layout}, on {found.device}"
        raise UserError(f"{path} holds a tensor of {kind}; expected float32, float16 or bfloat16")
    value = found.detach()
    if value.ndim == len(shape) + 1 and value.shape[0] == 1:
        value = value[0]
    if value.ndim != len(shape) or any(size not in (None, got) for size, got in zip(shape, value.shape, strict=True)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(f"{path} has shape {list(found.shape)}; expected [{expected}]")
    # Contiguous: what was saved may be a view whose strides overlap.
    value = value.contiguous()
    broken = int((~torch.isfinite(value)).sum())
    if broken:
        raise UserError(f"{path} holds {broken} values that are infinite or not a number")
    return value


def _load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of formats and subclasses before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is not loaded: it holds Python objects, which may be code, or is damaged; save the tensor alone, "
            "with torch.save(tensor.cpu(), path)"
        ) from None
    except Exception as error:  # whatever a damaged file makes torch and its unpickler raise
        raise UserError(f"{path} is damaged: torch cannot load it: {type(error).__name__}") from None


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
