"""Which parameters belong to the low-resolution stream."""

from __future__ import annotations

from fnmatch import fnmatchcase

from framer.models.control_stream.transformer import SD3ControlStreamTransformer2DModel

CONTROL_PARAMETERS = "transformer_blocks.*.control_*"
"""Pattern of the parameters that the model has beside SD3's."""
_WITHOUT_EFFECT = {"r1": (), "v1": ("*.control_attn.to_k.*", "*.control_attn2.to_k.*")}


def control_parameter_names(model: SD3ControlStreamTransformer2DModel) -> frozenset[str]:
    """Names of the parameters that train: those of the low-resolution stream.

    In the variant ``v1`` without the control projections of keys, which have no effect there and get no gradient.
    """
    idle = _WITHOUT_EFFECT[model.config.variant]
    return frozenset(
        name
        for name, _ in model.named_parameters()
        if fnmatchcase(name, CONTROL_PARAMETERS) and not any(fnmatchcase(name, pattern) for pattern in idle)
    )
