"""Low-rank adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError

from framer.config.base import ConfigSection
from framer.config.types import NonEmptyText, PositiveFloat, PositiveInt, one_or_more


def _no_number(value: object) -> object:
    """Refuses ``1`` and ``1.0`` where a Literal takes them, as ``1 == True``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise PydanticKnownError("literal_error", {"expected": "'gaussian' or true"})
    return value


class LoraConfig(ConfigSection):
    """Low-rank adapters (arXiv 2106.09685) beside frozen layers: they train in the place of the model's own weights."""

    rank: PositiveInt = 16
    """Channels between an adapter's two factors."""
    alpha: PositiveFloat | None = None
    """An adapter's output is scaled by ``alpha / rank``; null: by 1."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of an adapter's input that is zeroed in training."""
    target_modules: Annotated[list[NonEmptyText], Field(min_length=1), BeforeValidator(one_or_more)] | None = None
    """Linear layers, and convolutions without groups, that get an adapter: ends of names as peft takes them, such as
    ``to_q`` or ``ff.net.2``, or shell patterns of whole names, such as ``transformer_blocks.1?.attn.*``; null: all
    linear layers of the model's attention."""
    train_also: Annotated[list[NonEmptyText], BeforeValidator(one_or_more)] = []
    """Parameters of the model itself that train too, as in ``model.trainable``: ``control``, ``pos_embed.proj.*``."""
    init: Annotated[Literal["gaussian", True], BeforeValidator(_no_number)] = "gaussian"
    """How the first factor is drawn, as peft names it: ``gaussian``; true: as torch draws a linear layer. The second
    one is zero, so that the model starts out computing what it computed before."""
    export: Literal["merged", "adapter"] = "merged"
    """What ``export/`` holds: ``merged``, the model with its adapters added into its weights; ``adapter``, the adapters
    by themselves too, in its folder ``lora``, as diffusers loads them."""
