"""What a configuration's students need beside the model to be compared with what they learn."""

from __future__ import annotations

from torch import nn

from framer.alignment.encoders import ImageEncoder
from framer.alignment.projectors import WITH_PROJECTORS, attach_projectors
from framer.config.distillation import FramerConfig
from framer.features import attach_heads


def attach_heads_of(
    model: nn.Module, config: FramerConfig, *, seed: int = 0, encoder: ImageEncoder | None = None
) -> None:
    """Gives the model the projectors of its method, or the heads that bring a U-Net's stages into the teacher's shape.

    To be called before the optimizer or the distributed engine is made, which are to train them. Without effect where
    neither is needed.

    Args:
        model: The diffusers model itself.
        config: Method, students and teacher.
        seed: Seed of their weights.
        encoder: What REPA's students learn from.

    Raises:
        ConfigError: Method ``repa`` without an encoder, wrong students, or the model has heads already.
        UnsupportedModelError: Where the model keeps its features, or how many channels they have, is not known.
    """
    if not config.enabled or config.method == "dispersive":
        return
    if config.method in WITH_PROJECTORS:
        attach_projectors(model, config, seed=seed, encoder=encoder)
    else:
        attach_heads(model, config.students, config.teacher, seed=seed)
