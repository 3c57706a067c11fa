"""Layers that start at zero, however they are made."""

from __future__ import annotations

import torch
from torch import nn


class ZeroLinear(nn.Linear):
    """A linear layer whose weight and bias start at zero."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets all parameters to zero; what builds a model a module at a time calls it too."""
        _zero(self)


class ZeroConv2d(nn.Conv2d):
    """A convolution whose weight and bias start at zero."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets all parameters to zero; what builds a model a module at a time calls it too."""
        _zero(self)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.zero_()
