"""Feature spaces: what a captured feature is compared as."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from framer.features.adapters import Adapter
from framer.features.adapters.base import HeadArguments
from framer.features.errors import FeatureError
from framer.features.taps import Capture

FeatureSpace: TypeAlias = Literal["hidden", "x0", "velocity"]
PredictionType: TypeAlias = Literal["velocity", "sample"]
"""What a model's output is: the velocity ``noise - x0``, or the clean sample ``x0``."""

ToSpace: TypeAlias = Callable[[Tensor], Tensor]


def feature_space(
    capture: Capture,
    adapter: Adapter,
    space: FeatureSpace,
    *,
    sample: Tensor | None = None,
    sigmas: Tensor | None = None,
    conditioning: Tensor | None = None,
    prediction_type: PredictionType = "velocity",
) -> ToSpace:
    """How a captured map is turned into what is compared.

    ``hidden``: the map ``[B*F, D, h, w]`` as it is. ``velocity`` and ``x0``: the tokens through the model's own output
    head and unpatchify, ``[B, C, H, W]``. Where the model predicts the other one of the two, flow matching's
    ``x0 = sample - sigma * velocity`` converts it, in float32 at least.

    Where the model recomputes its blocks in the backward pass, the output head is recomputed as well, so that
    ``velocity`` and ``x0`` keep no hidden-size tensor beyond the captured tokens.

    Args:
        capture: What a forward pass left.
        adapter: The model's adapter.
        space: ``"hidden"``, ``"x0"`` or ``"velocity"``.
        sample: The noisy latent ``[B, C, H, W]``, without the channels of a condition; ``[B, h*w, C]`` for a model of
            packed latents; used where a prediction must be converted.
        sigmas: Noise levels in 0..1, above 0 for ``velocity``; ``[B]`` or broadcastable to the sample; used likewise.
        conditioning: Conditioning vector ``[B, E]`` for the head; by default what the model gave it.
        prediction_type: What the model's output is.

    Returns:
        A function of a captured map.

    Raises:
        FeatureError: A tensor that the space needs is missing or has another shape, or the model's output head is not
            known.
    """
    if space == "hidden":
        return _as_it_is
    arguments = _head_arguments(capture, adapter, space, conditioning)
    predict: ToSpace = partial(_prediction, capture=capture, adapter=adapter, arguments=arguments)
    if space == {"velocity": "velocity", "sample": "x0"}[prediction_type]:
        return predict
    noisy, sigma = _checked_noise(capture, sample, sigmas, space, prediction_type)
    convert = _clean_map if space == "x0" else _velocity_map
    return partial(convert, to_prediction=predict, noisy=noisy, sigma=sigma)


def _as_it_is(feature: Tensor) -> Tensor:
    return feature


def _prediction(feature: Tensor, capture: Capture, adapter: Adapter, arguments: HeadArguments) -> Tensor:
    # The head runs under the blocks' autocast: its weights may not have the dtype of their tokens.
    with capture.autocast():
        if not capture.checkpointed or not torch.is_grad_enabled():
            return adapter.predict(feature, arguments, capture.grid)
        prediction: Tensor = checkpoint(
            adapter.predict, feature, arguments, capture.grid, use_reentrant=False, preserve_rng_state=False
        )
        return prediction


def _clean_map(feature: Tensor, to_prediction: ToSpace, noisy: Tensor, sigma: Tensor) -> Tensor:
    return noisy - sigma * _like_sample(to_prediction(feature), noisy)


def _velocity_map(feature: Tensor, to_prediction: ToSpace, noisy: Tensor, sigma: Tensor) -> Tensor:
    return (noisy - _like_sample(to_prediction(feature), noisy)) / sigma


def _like_sample(prediction: Tensor, noisy: Tensor) -> Tensor:
    if noisy.shape != prediction.shape:
        raise FeatureError(
            f"sample has shape {list(noisy.shape)}, but the model's prediction has {list(prediction.shape)}: "
            "pass the noisy latent alone, in the size that the model saw and without a condition's channels."
        )
    return prediction.to(noisy.dtype)


def _head_arguments(
    capture: Capture, adapter: Adapter, space: FeatureSpace, conditioning: Tensor | None
) -> HeadArguments:
    given = capture.head_arguments
    if given is None or capture.grid.frames > 1:
        what = "of a video transformer" if capture.grid.frames > 1 else f"of {type(adapter.model).__name__}"
        raise FeatureError(
            f"feature space {space} needs the model's output head, and none is declared for the features {what}: set "
            "framer.feature_space to hidden."
        )
    if conditioning is None:
        return given
    present = given.args[0] if given.args else None
    if not isinstance(present, Tensor) or conditioning.shape != present.shape:
        seen = f"one of shape {list(present.shape)}" if isinstance(present, Tensor) else "none"
        raise FeatureError(
            f"conditioning has shape {list(conditioning.shape)}, but the output head saw {seen}; leave it out "
            "to use that."
        )
    return HeadArguments((conditioning, *given.args[1:]), given.kwargs)


def _checked_noise(
    capture: Capture,
    sample: Tensor | None,
    sigmas: Tensor | None,
    space: FeatureSpace,
    prediction_type: PredictionType,
) -> tuple[Tensor, Tensor]:
    """The sample in float32 at least, and the sigmas, broadcastable to it."""
    if sample is None or sigmas is None:
        missing = [name for name, value in (("sample", sample), ("sigmas", sigmas)) if value is None]
        raise FeatureError(
            f"feature space {space} of a model that predicts the {prediction_type} needs sample and sigmas; missing: "
            f"{', '.join(missing)}."
        )
    if sample.ndim == 3 and sample.shape[1] == capture.grid.tokens:
        sample = sample.transpose(1, 2).reshape(sample.shape[0], -1, capture.grid.height, capture.grid.width)
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
