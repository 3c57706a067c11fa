"""Weights that DiT4SR's authors published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from diffusers import SD3Transformer2DModel
from torch import Tensor

from framer.errors import UserError
from framer.models.control_stream.attention import Variant
from framer.models.control_stream.base import from_sd3
from framer.models.control_stream.transformer import SD3ControlStreamTransformer2DModel
from framer.models.weights import WeightReader, has_weights, open_weights

PUBLISHED_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "attn.to_q_control": "control_attn.to_q",
        "attn.to_k_control": "control_attn.to_k",
        "attn.to_v_control": "control_attn.to_v",
        "attn.to_out_control": "control_attn.to_out",
        "attn2.to_q_control": "control_attn2.to_q",
        "attn2.to_k_control": "control_attn2.to_k",
        "attn2.to_v_control": "control_attn2.to_v",
        "attn2.to_out_control": "control_attn2.to_out",
        "ff.conv_control": "control_conv",
    }
)
"""Modules of a block by the name in the published weights, and our name for each.

The names on the left are assumed: this table was written without the weights or the code at hand, from what is
known of both, that every trained name has "control" in it. All other names are SD3's as diffusers has them.
"""

_BLOCK_MODULE = re.compile(r"(transformer_blocks\.\d+)\.(.+)\.(weight|bias)")


def load_dit4sr(
    path: Path,
    base: SD3Transformer2DModel,
    *,
    variant: Variant,
    names: Mapping[str, str] = PUBLISHED_NAMES,
) -> SD3ControlStreamTransformer2DModel:
    """Loads DiT4SR's published weights, checked on names and shapes.

    Written and tested without the published weights: the names are assumed, see :data:`PUBLISHED_NAMES`. That a file
    loads says that its names and shapes fit, not yet that the model computes what the authors' model computes.

    Args:
        path: A safetensors file, or a folder of them as diffusers writes it. SD3's own weights may be in it, and are
            then taken from it.
        base: The SD3.5 that the weights were trained on; it is not changed.
        variant: ``v1`` for the first weights, which know no keys of the low-resolution tokens; ``r1`` for the later.
        names: Corrections of the table, as a whole.

    Returns:
        A model in the dtype of the base, see :func:`from_sd3`.

    Raises:
        UserError: There is no such file, it is damaged or not safetensors, a name in it has no place in the model, one
            of the stream is missing, or a shape is another.
    """
    path = path.expanduser()
    if not (has_weights(path) or (path.is_file() and path.suffix == ".safetensors")):
        raise UserError(f"{path}: expected a .safetensors file, or a folder with one as diffusers names it")
    model = from_sd3(base, variant=variant)
    targets = model.state_dict()
    with open_weights(path) as reader:
        places = {_our_name(name, names): name for name in sorted(reader.names)}
        _check_names(places, targets, base, path)
        weights = {ours: _read(reader, theirs, targets[ours]) for ours, theirs in places.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    return model


def _our_name(name: str, names: Mapping[str, str]) -> str:
    parts = _BLOCK_MODULE.fullmatch(name)
    if parts is None or parts[2] not in names:
        return name
    return f"{parts[1]}.{names[parts[2]]}.{parts[3]}"


def _check_names(
    places: Mapping[str, str], targets: Mapping[str, Tensor], base: SD3Transformer2DModel, path: Path
) -> None:
    unknown = sorted(theirs for ours, theirs in places.items() if ours not in targets)
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} weights have no place in the model, such as {unknown[0]}; if the published names "
            "are others than those assumed, pass the right ones as names"
        )
    missing = sorted(targets.keys() - base.state_dict().keys() - places.keys())
    if missing:
        raise UserError(
            f"{path}: {len(missing)} weights of the low-resolution stream are missing, such as {missing[0]}; expected "
            "all of them, whether in the variant they have an effect or not"
        )


def _read(reader: WeightReader, name: str, target: Tensor) -> Tensor:
    weight = reader.read(name)
    if weight.shape != target.shape:
        raise UserError(f"{name} has shape {list(weight.shape)}; with this base it should have {list(target.shape)}")
    return weight.to(device=target.device, dtype=target.dtype)
