"""A small SD3.5 with random weights, the low-resolution stream added to it, and their inputs."""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from framer.models.control_stream import SD3ControlStreamTransformer2DModel, Variant, from_sd3

LAYERS = 4
DUAL_LAYERS = (0, 1)
WIDTH = 16
GRID = (4, 6)
LARGEST = 8


def make_base(dtype: torch.dtype = torch.float64, **config: object) -> SD3Transformer2DModel:
    """A model in which every weight matters."""
    settings: dict[str, object] = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": LAYERS,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 6,
        "caption_projection_dim": WIDTH,
        "pooled_projection_dim": 5,
        "pos_embed_max_size": LARGEST,
        "dual_attention_layers": DUAL_LAYERS,
        "qk_norm": "rms_norm",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SD3Transformer2DModel(**(settings | config))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


def make_model(
    variant: Variant = "r1", *, started: bool = False, dtype: torch.dtype = torch.float64, **config: object
) -> SD3ControlStreamTransformer2DModel:
    """The stream added to the base; ``started`` as if some steps had been trained."""
    model = from_sd3(make_base(dtype, **config), variant=variant)
    if started:
        disturb(model)
    return model


@torch.no_grad()
def disturb(model: SD3ControlStreamTransformer2DModel) -> None:
    """Adds noise to everything that belongs to the low-resolution stream."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "control_" in name:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(grid: tuple[int, int] = GRID, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Arguments of SD3's forward."""
    return {
        "hidden_states": draw(2, 4, 2 * grid[0], 2 * grid[1], seed=1, dtype=dtype),
        "encoder_hidden_states": draw(2, 3, 6, seed=2, dtype=dtype),
        "pooled_projections": draw(2, 5, seed=3, dtype=dtype),
        "timestep": torch.tensor([300.0, 700.0]),
    }


def condition(grid: tuple[int, int] = GRID, dtype: torch.dtype = torch.float64) -> Tensor:
    """The low-resolution latent."""
    return draw(2, 4, 2 * grid[0], 2 * grid[1], seed=4, dtype=dtype)


def velocity(
    model: SD3Transformer2DModel, grid: tuple[int, int] = GRID, dtype: torch.dtype = torch.float64, **more: object
) -> Tensor:
    return model(**inputs(grid, dtype), **more).sample
