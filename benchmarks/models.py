"""Training steps of diffusers' SD3 transformer, with and without FRAMER."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from framer import Framer, FramerConfig

SD35_MEDIUM_LAYERS = 24
SD35_MEDIUM_DUAL_ATTENTION = 13
"""Its first blocks attend twice."""


@dataclass(frozen=True)
class StepCase:
    """A training step at the width of Stable Diffusion 3.5 medium: 24 heads of 64.

    Attributes:
        layers: Number of blocks.
        dual_attention: Number of first blocks with a second attention.
        batch: B.
        latent: Side of the latent; a token is two by two of it.
        text: Number of text tokens.
        dtype: Of parameters and inputs.
        checkpointing: Whether blocks are recomputed in the backward pass.
        heads: Number of heads.
        head_width: Width of a head.
        text_width: Width of the text's embeddings.
        pooled_width: Width of the pooled text embedding.
    """

    layers: int = 4
    dual_attention: int = 2
    batch: int = 1
    latent: int = 64
    text: int = 77
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    heads: int = 24
    head_width: int = 64
    text_width: int = 4096
    pooled_width: int = 2048

    def model(self) -> SD3Transformer2DModel:
        """The transformer with random weights."""
        torch.manual_seed(0)
        previous = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)  # a conversion afterwards is not possible without storage
        try:
            model = self._build()
        finally:
            torch.set_default_dtype(previous)
        if self.checkpointing:
            model.enable_gradient_checkpointing()
        return model

    def _build(self) -> SD3Transformer2DModel:
        return SD3Transformer2DModel(
            sample_size=self.latent,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=self.layers,
            attention_head_dim=self.head_width,
            num_attention_heads=self.heads,
            joint_attention_dim=self.text_width,
            caption_projection_dim=self.heads * self.head_width,
            pooled_projection_dim=self.pooled_width,
            pos_embed_max_size=self.latent // 2,
            qk_norm="rms_norm",
            dual_attention_layers=tuple(range(self.dual_attention)),
        )

    def inputs(self) -> dict[str, Tensor]:
        """Arguments of the model's forward."""
        generator = torch.Generator().manual_seed(1)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.dtype)

        return {
            "hidden_states": noise(self.batch, 16, self.latent, self.latent),
            "encoder_hidden_states": noise(self.batch, self.text, self.text_width),
            "pooled_projections": noise(self.batch, self.pooled_width),
            "timestep": torch.linspace(100.0, 900.0, self.batch),
        }


def training_step(
    model: SD3Transformer2DModel,
    optimizer: torch.optim.Optimizer | None,
    inputs: dict[str, Tensor],
    framer: Framer | None,
) -> Callable[[], None]:
    """Forward, backward and update, with FRAMER's loss or without; gradients accumulate where there is no optimizer."""
    target = torch.zeros_like(inputs["hidden_states"])

    def step() -> None:
        with nullcontext() if framer is None else framer.capture():
            prediction = model(**inputs, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction, target)
        if framer is not None:
            loss = loss + framer.loss().total
        loss.backward()
        del loss, prediction
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def paired_steps(case: StepCase) -> dict[str, Callable[[], None]]:
    """Steps of one and the same model, without and with FRAMER."""
    model, inputs = case.model(), case.inputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    framer = Framer(model, FramerConfig(preset="paper", feature_space="hidden", weight=0.1))
    return {
        "without FRAMER": training_step(model, optimizer, inputs, None),
        "with FRAMER": training_step(model, optimizer, inputs, framer),
    }
