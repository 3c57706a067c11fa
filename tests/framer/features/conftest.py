from __future__ import annotations

from collections.abc import Callable

import pytest
from diffusers import SD3Transformer2DModel
from tiny_models import sd3_inputs, tiny_sd3
from torch import Tensor


@pytest.fixture
def make_model() -> Callable[..., SD3Transformer2DModel]:
    """Builds a random SD3 transformer of width 16; the same one for the same arguments."""
    return tiny_sd3


@pytest.fixture
def make_inputs() -> Callable[..., dict[str, Tensor]]:
    """Builds the arguments of the model's forward, by default 8 x 12 latents: 4 x 6 tokens."""
    return sd3_inputs
