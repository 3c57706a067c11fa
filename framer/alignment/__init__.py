"""Alignment losses that can take FRAMER's place under the same tap: one module a method."""

from __future__ import annotations

from framer.alignment.attachment import attach_heads_of
from framer.alignment.base import Alignment, AlignmentMaps, LayerLosses
from framer.alignment.encoders import ImageEncoder, PatchEncoder, load_encoder, planned_encoder, repa_encoder
from framer.alignment.projectors import attach_projectors
from framer.alignment.registry import build_alignment

__all__ = [
    "Alignment",
    "AlignmentMaps",
    "ImageEncoder",
    "LayerLosses",
    "PatchEncoder",
    "attach_heads_of",
    "attach_projectors",
    "build_alignment",
    "load_encoder",
    "planned_encoder",
    "repa_encoder",
]
