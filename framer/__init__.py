"""FRAMER: frequency-aligned self-distillation for diffusion models."""

from framer.config.distillation import FramerConfig
from framer.distill import Features, Framer, FramerOutput

__all__ = ["Features", "Framer", "FramerConfig", "FramerOutput"]
__version__ = "0.1.0"
