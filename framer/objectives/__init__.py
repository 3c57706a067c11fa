"""Noise objectives: what the model is trained on beside FRAMER, and how it is sampled."""

from framer.objectives.base import NoisyBatch, Objective, Supervision
from framer.objectives.build import build_objective
from framer.objectives.diffusion import Diffusion
from framer.objectives.flow_matching import FlowMatching
from framer.objectives.one_step import OneStep
from framer.objectives.score_distillation import BaseEpsilon

__all__ = [
    "BaseEpsilon",
    "Diffusion",
    "FlowMatching",
    "NoisyBatch",
    "Objective",
    "OneStep",
    "Supervision",
    "build_objective",
]
