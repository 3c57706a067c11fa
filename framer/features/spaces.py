"""Feature spaces: what a captured block output is compared as."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from framer.features.adapters import Adapter
from framer.features.errors import FeatureError
from framer.features.taps import Capture

FeatureSpace: TypeAlias = Literal["hidden", "x0", "velocity"]
PredictionType: TypeAlias = Literal["velocity", "sample"]
"""What a model's output is: the velocity ``noise - x0``, or the clean sample ``x0``."""


def feature_maps(
    capture: Capture,
    adapter: Adapter,
    space: FeatureSpace,
    *,
    sample: Tensor | None = None,
    sigmas: Tensor | None = None,
    conditioning: Tensor | None = None,
    prediction_type: PredictionType = "velocity",
) -> tuple[list[Tensor], Tensor]:
    """Turns captured tokens into the students' maps and the teacher's.

    ``hidden``: the tokens as a map, ``[B, D, h, w]``, a view of the captured memory. ``velocity`` and ``x0``: the
    tokens through the model's own final norm, output projection and unpatchify, ``[B, C, H, W]``. Where the model
    predicts the other one of the two, flow matching's ``x0 = sample - sigma * velocity`` converts it, in float32 at
    least.

    Where the model recomputes its blocks in the backward pass, the output head is recomputed as well, so that
    ``velocity`` and ``x0`` keep no hidden-size tensor beyond the captured tokens.

    Args:
        capture: What a forward pass left.
        adapter: The model's adapter.
        space: ``"hidden"``, ``"x0"`` or ``"velocity"``.
        sample: The noisy latent ``[B, C, H, W]``, without the channels of a condition; used where a prediction
            must be converted.
        sigmas: Noise levels in 0..1, above 0 for ``velocity``; ``[B]`` or broadcastable to the sample; used likewise.
        conditioning: Conditioning vector ``[B, E]`` for the head; by default the one that the blocks saw.
        prediction_type: What the model's output is.

    Returns:
        The maps of all blocks but the last, and the last one's, detached.

    Raises:
        FeatureError: A tensor that the space needs is missing or has another shape.
    """
    to_map: Callable[[Tensor], Tensor]
    if space == "hidden":
        to_map = partial(_hidden_map, grid=capture.grid)
    else:
        conditioning = _checked_conditioning(capture, conditioning)
        to_map = partial(_prediction_map, capture=capture, adapter=adapter, conditioning=conditioning)
        if space != {"velocity": "velocity", "sample": "x0"}[prediction_type]:
            noisy, sigma = _checked_noise(sample, sigmas, space, prediction_type)
            convert = _clean_map if space == "x0" else _velocity_map
            to_map = partial(convert, to_prediction=to_map, noisy=noisy, sigma=sigma)
    students = [to_map(tokens) for tokens in capture.tokens[:-1]]
    with torch.no_grad():
        return students, to_map(capture.tokens[-1]).detach()


def _hidden_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    batch, _, channels = tokens.shape
    return tokens.transpose(1, 2).view(batch, channels, *grid)


def _prediction_map(tokens: Tensor, capture: Capture, adapter: Adapter, conditioning: Tensor) -> Tensor:
    # The head runs under the blocks' autocast: its weights may not have the dtype of their tokens.
    dtype = capture.autocast_dtype
    with nullcontext() if dtype is None else torch.autocast(tokens.device.type, dtype):
        if not capture.checkpointed or not torch.is_grad_enabled():
            return adapter.predict(tokens, conditioning, capture.grid)
        prediction: Tensor = checkpoint(
            adapter.predict, tokens, conditioning, capture.grid, use_reentrant=False, preserve_rng_state=False
        )
        return prediction


def _clean_map(tokens: Tensor, to_prediction: Callable[[Tensor], Tensor], noisy: Tensor, sigma: Tensor) -> Tensor:
    return noisy - sigma * _like_sample(to_prediction(tokens), noisy)


def _velocity_map(tokens: Tensor, to_prediction: Callable[[Tensor], Tensor], noisy: Tensor, sigma: Tensor) -> Tensor:
    return (noisy - _like_sample(to_prediction(tokens), noisy)) / sigma


def _like_sample(prediction: Tensor, noisy: Tensor) -> Tensor:
    if noisy.shape != prediction.shape:
        raise FeatureError(
            f"sample has shape {list(noisy.shape)}, but the model's prediction has {list(prediction.shape)}: "
            "pass the noisy latent alone, in the size that the model saw and without a condition's channels."
        )
    return prediction.to(noisy.dtype)


def _checked_conditioning(capture: Capture, conditioning: Tensor | None) -> Tensor:
    if conditioning is None:
        return capture.conditioning
    if conditioning.shape != capture.conditioning.shape:
        raise FeatureError(
            f"conditioning has shape {list(conditioning.shape)}, but the blocks saw one of shape "
            f"{list(capture.conditioning.shape)}; leave it out to use theirs."
        )
    return conditioning


def _checked_noise(
    sample: Tensor | None, sigmas: Tensor | None, space: FeatureSpace, prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """The sample in float32 at least, and the sigmas, broadcastable to it."""
    if sample is None or sigmas is None:
        missing = [name for name, value in (("sample", sample), ("sigmas", sigmas)) if value is None]
        raise FeatureError(
            f"feature space {space} of a model that predicts the {prediction_type} needs sample and sigmas; missing: "
            f"{', '.join(missing)}."
        )
    batch = sample.shape[0]
    if sigmas.ndim == 1 and sigmas.shape[0] == batch:
        sigmas = sigmas.view(batch, 1, 1, 1)
    fits = all(size in (1, full) for size, full in zip(sigmas.shape, sample.shape, strict=False))
    if sigmas.ndim not in (0, 4) or not fits:
        raise FeatureError(
            f"sigmas have shape {list(sigmas.shape)}; expected [{batch}], or 4 dimensions that broadcast to "
            f"the sample's {list(sample.shape)}."
        )
    dtype = torch.promote_types(sample.dtype, torch.float32)
    return sample.to(dtype), sigmas.to(device=sample.device, dtype=dtype)
