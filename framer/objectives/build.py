"""The objective that a configuration names."""

from __future__ import annotations

from framer.config.objective import ObjectiveConfig
from framer.models.latents import LatentSpace
from framer.objectives.base import Objective
from framer.objectives.diffusion import Diffusion
from framer.objectives.flow_matching import FlowMatching
from framer.objectives.one_step import OneStep


def build_objective(config: ObjectiveConfig, latents: LatentSpace) -> Objective:
    """The objective that ``objective.type`` names.

    Args:
        config: The section.
        latents: The space that is diffused; restoring in one step decodes from it.

    Raises:
        UserError: A loss of ``one_step`` needs a library or a file that is not there.
    """
    if config.type == "diffusion":
        return Diffusion(config)
    if config.type == "one_step":
        return OneStep(config, latents)
    return FlowMatching(config)
