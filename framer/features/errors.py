"""Errors of feature capture, addressed to the user."""

from __future__ import annotations

from framer.errors import UserError


class UnsupportedModelError(UserError, TypeError):
    """FRAMER does not know where this model keeps its feature maps."""


class CaptureError(UserError, RuntimeError):
    """The forward pass was not run so that its features could be captured."""


class MissingHeadsError(UserError, RuntimeError):
    """Students differ in shape from the teacher, and the model lacks the heads that mend this."""


class FeatureError(UserError, ValueError):
    """A captured feature, or a tensor given beside it, does not have the shape that the model implies."""
