"""The low-resolution stream added to a trained SD3."""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from framer.models.control_stream.attention import Variant
from framer.models.control_stream.block import ControlStreamTransformerBlock
from framer.models.control_stream.layers import ZeroConv2d, ZeroLinear
from framer.models.control_stream.parameters import control_parameter_names
from framer.models.control_stream.transformer import SD3ControlStreamTransformer2DModel
from framer.models.trainable import freeze_the_rest


def from_sd3(transformer: SD3Transformer2DModel, *, variant: Variant = "r1") -> SD3ControlStreamTransformer2DModel:
    """Adds the low-resolution stream to a model; only the stream's parameters require gradients.

    Control projections of queries, keys and values and the convolutions start at zero, output projections as copies of
    those that the noisy stream has. So the low-resolution latent is at first processed as the trained model processes
    any image latent, but for the residual about each attention. No random numbers are drawn.

    Args:
        transformer: Any SD3 or SD3.5. Its weights are not copied: both models hold the same memory.
        variant: Whose keys the low-resolution tokens have.

    Returns:
        A model of the same dtype, on the same device and in the same mode.

    Raises:
        UserError: There is no such variant.
    """
    with torch.device("meta"):
        model: SD3ControlStreamTransformer2DModel = SD3ControlStreamTransformer2DModel.from_config(
            {**transformer.config, "variant": variant}
        )
    model.load_state_dict(transformer.state_dict(), strict=False, assign=True)
    for block in model.modules():
        if isinstance(block, ControlStreamTransformerBlock):
            _materialise(block.control_conv, transformer)
            for control, attention in block.control_attentions:
                _materialise(control, transformer)
                control.to_out.load_state_dict(attention.to_out[0].state_dict())
    freeze_the_rest(model, control_parameter_names(model))
    model.train(transformer.training)
    return model


def _materialise(module: nn.Module, transformer: SD3Transformer2DModel) -> None:
    """Gives modules made without memory what they start from; theirs is zero, or is overwritten."""
    module.to(transformer.dtype).to_empty(device=transformer.device)
    for part in module.modules():
        if isinstance(part, (ZeroLinear, ZeroConv2d)):
            part.reset_parameters()
