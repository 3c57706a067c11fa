"""Latents that a folder already has, as moments of the autoencoder's posterior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor

from framer.data.buckets import CropSize
from framer.data.images import read_image, resize_bicubic
from framer.data.layouts.base import GT, LATENT_HR, LATENT_LR, LR, Layout, LayoutRecord
from framer.data.layouts.check import CheckedFolder, read_latents
from framer.data.samples import sample_of_pair
from framer.data.shards.index import LATENTS
from framer.data.shards.manifest import LatentsRecord
from framer.data.shards.pairs import as_unit_floats
from framer.errors import UserError

NO_VARIANCE: Final = -30.0
"""Log-variance of moments that stand for a single latent: a draw from them is that latent, to 3e-7."""
