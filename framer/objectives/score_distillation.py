"""Classifier score distillation: a gradient towards images that a text-to-image model finds to match their text."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

MIN_DISTANCE = 1e-6
"""Smallest mean distance that the gradient is divided by."""


class BaseEpsilon(Protocol):
    """The noise that the frozen base model sees in noisy latents."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, *, with_text: bool) -> Tensor:
        """The predicted noise ``[B, C, h, w]``.

        Args:
            noisy: ``sqrt(a) z + sqrt(1 - a) noise``, ``[B, C, h, w]`` float32.
            timesteps: ``[B]`` float32.
            with_text: Whether the model is told the images' texts, or the negative (or empty) one.
        """


def score_distillation_gradient(
    latents: Tensor, noise: Tensor, timesteps: Tensor, base: BaseEpsilon, *, signal: Tensor, guidance: float
) -> Tensor:
    """The gradient of classifier score distillation (arXiv 2310.19415) with PiSA-SR's weight, ``[B, C, h, w]`` float32.

    With ``f(z_t, e) = (z_t - sqrt(1 - a) e) / sqrt(a)``, the clean latents that a noise means, ``e_0`` the base model's
    noise without text and ``e_g = e_0 + guidance * (e_text - e_0)``::

        gradient = (f(z_t, e_0) - f(z_t, e_g)) / mean |z - f(z_t, e_g)|

    which is the classifier's score ``e_text - e_0`` times a factor; the mean is over one sample.

    Args:
        latents: z, ``[B, C, h, w]``.
        noise: Standard normal, ``[B, C, h, w]``.
        timesteps: ``[B]`` int64.
        base: The frozen base model.
        signal: The signal's share of the variance at the timesteps (alpha bar), ``[B]`` float32, above 0.
        guidance: Guidance scale.
    """
    with torch.no_grad():
        z = latents.float()
        share = signal.view(-1, 1, 1, 1)
        noisy = share.sqrt() * z + (1 - share).sqrt() * noise
        without = base(noisy, timesteps.float(), with_text=False).float()
        guided = without + guidance * (base(noisy, timesteps.float(), with_text=True).float() - without)
        clean_without, clean_guided = ((noisy - (1 - share).sqrt() * e) / share.sqrt() for e in (without, guided))
        distance = (z - clean_guided).abs().mean(dim=(1, 2, 3), keepdim=True)
        return (clean_without - clean_guided) / distance.clamp(min=MIN_DISTANCE)


def score_distillation_loss(latents: Tensor, gradient: Tensor) -> Tensor:
    """A float32 scalar whose gradient with respect to ``latents`` is ``2 * gradient`` over their number, as PiSA-SR's.

    Its value, the gradient's mean square, is for the log.

    Args:
        latents: ``[B, C, h, w]``.
        gradient: The same shape; nothing flows through it.
    """
    z = latents.float()
    return (z - (z - gradient).detach()).square().mean()
