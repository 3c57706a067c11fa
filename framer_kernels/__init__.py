"""The mathematics of FRAMER: frequency-aligned self-distillation of a diffusion model's layers.

Knows tensors, not diffusion, and needs torch alone. `framer_loss` is the loss of all layers; the other
functions are its parts.
"""

from framer_kernels.bands import BandSplit
from framer_kernels.ops.band_energy.api import band_energy
from framer_kernels.ops.contrastive.api import inter_contrastive_loss, intra_contrastive_loss
from framer_kernels.ops.framer_loss.api import framer_loss
from framer_kernels.ops.similarity.api import band_similarity
from framer_kernels.types import Backend, BandAssignment, BandKind, BandPair, FawMode, FramerLoss, Representation

__all__ = [
    "Backend",
    "BandAssignment",
    "BandKind",
    "BandPair",
    "BandSplit",
    "FawMode",
    "FramerLoss",
    "Representation",
    "band_energy",
    "band_similarity",
    "framer_loss",
    "inter_contrastive_loss",
    "intra_contrastive_loss",
]
