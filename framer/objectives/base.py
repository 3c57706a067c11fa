"""What every objective offers: to training a noisy batch and its loss, to inference a way of sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

from framer.errors import UserError
from framer.objectives.score_distillation import BaseEpsilon
from framer.seeding import normal_per_sample

Predict: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(sample [B, C, h, w], timestep []) -> prediction [B, C, h, w] float32``, see :meth:`Objective.prediction`."""


class NoisyBatch(NamedTuple):
    """Latents on their way to noise, and what the model sees of them."""

    latents: Tensor
    """Clean latents, ``[B, C, H, W]`` float32."""
    noise: Tensor
    """Standard normal, ``[B, C, H, W]`` float32."""
    sample: Tensor
    """What the model sees, ``[B, C, H, W]`` float32: latents and noise mixed; of one step, the reference."""
    sigmas: Tensor
    """The noise's share of the sample, ``[B]`` float32 in [0, 1]; of one step, where there is none, zeros."""
    timesteps: Tensor
    """``[B]`` float32 in [0, 1000]: bf16 would round 998.39 to 1000."""
    score_timesteps: Tensor | None = None
    """Timesteps of score distillation, ``[B]`` int64; None without."""


class Supervision(NamedTuple):
    """What a loss can need that is no latent."""

    image: Tensor
    """High-resolution images, ``[B, 3, H, W]`` in [-1, 1]."""
    upsampled: Tensor
    """The low-resolution images at their size, ``[B, 3, H, W]`` in [-1, 1]."""
    base_epsilon: BaseEpsilon | None = None
    """The frozen base model, for score distillation."""


class Objective(ABC):
    """What the model is trained on, and how it is sampled once trained."""

    fixed_timestep: int | None = None
    """The only timestep that the model ever sees; None where there are many."""
    supervised: bool = False
    """Whether :meth:`loss` reads its ``supervision``."""

    @abstractmethod
    def add_noise(self, latents: Tensor, reference: Tensor, indices: Sequence[int], seed: int) -> NoisyBatch:
        """Draws what is random about each sample, and makes what the model sees.

        Args:
            latents: Clean latents ``[B, C, h, w]``; computed in float32.
            reference: What is known of the image, ``[B, Cr, h, w]``, see ``LatentSpace.reference``.
            indices: The samples' indices in the training stream, length B; the draws depend on them and ``seed`` alone.
            seed: The run's seed.

        Raises:
            ValueError: There are not as many indices as samples.
        """

    @abstractmethod
    def at_timestep(self, latents: Tensor, reference: Tensor, noise: Tensor, timestep: int) -> NoisyBatch:
        """What the model sees at a given timestep, under given noise.

        Args:
            latents: Clean latents ``[B, C, h, w]`` float32.
            reference: What is known of the image, ``[B, Cr, h, w]``.
            noise: Standard normal, ``[B, C, h, w]`` float32.
            timestep: 0 to 999.
        """

    @abstractmethod
    def loss(self, output: Tensor, batch: NoisyBatch, supervision: Supervision | None = None) -> Tensor:
        """The loss of a model's output, a float32 scalar.

        Args:
            output: ``[B, C, h, w]``.
            batch: What the model saw.
            supervision: Images and base model, for an objective that is ``supervised``.
        """

    def prediction(self, output: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
        """A model's output as :meth:`sample` takes it, ``[B, C, h, w]`` float32; tiles are blended in this form.

        Args:
            output: ``[B, C, h, w]``.
            sample: What the model saw.
            timesteps: ``[B]`` float32.
        """
        return output.float()

    def check_start(self, *, from_image: bool, strength: float, steps: int) -> None:
        """Refuses a start that :meth:`sample` cannot make.

        Args:
            from_image: Whether there is an image to start from.
            strength: See :meth:`sample`.
            steps: See :meth:`sample`.

        Raises:
            UserError: The strength is out of range, or has no effect.
        """
        if not 0 < strength <= 1:
            raise UserError(f"strength {strength}: expected above 0, up to 1")
        if strength < 1 and not from_image:
            raise UserError(f"strength {strength} has no effect where sampling starts from noise alone; leave it at 1")

    @abstractmethod
    def sample(
        self,
        predict: Predict,
        reference: Tensor,
        *,
        channels: int,
        steps: int,
        seed: int,
        start: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Makes clean latents, ``[B, C, h, w]`` float32.

        Args:
            predict: The model, through :meth:`prediction`.
            reference: What is known of the images, ``[B, Cr, h, w]``.
            channels: C.
            steps: Calls of the model; those that restore in one step make one.
            seed: Of the initial noise.
            start: Latents into which the initial noise is mixed, ``[B, C, h, w]``; None: noise alone.
            strength: How much noise there is at first, up to 1, where there is a ``start``.
        """

    @abstractmethod
    def describe_sampling(self, steps: int) -> str:
        """Says in a few words how :meth:`sample` gets from its start to the image."""


def draw_noise(latents: Tensor, indices: list[int], seed: int) -> Tensor:
    """Standard normal noise of each training sample, ``[B, C, h, w]`` float32.

    Raises:
        ValueError: There are not as many indices as samples.
    """
    if len(indices) != len(latents):
        raise ValueError(f"{len(indices)} indices for {len(latents)} samples")
    return normal_per_sample(latents.shape[1:], indices, seed, "noise").to(latents.device)


def initial_noise(reference: Tensor, channels: int, seed: int) -> Tensor:
    """Where sampling starts, ``[B, channels, h, w]`` float32; depends on an image's place in the batch and its size."""
    shape = (channels, *reference.shape[-2:])
    return normal_per_sample(shape, list(range(len(reference))), seed, "initial noise").to(reference.device)
