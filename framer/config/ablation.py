"""What the file of an ablation study says."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field, field_validator

from framer.config.base import ConfigSection
from framer.config.types import NonEmptyText

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*")
SET_BY_THE_SUITE: Final = ("output_dir", "seed")
"""Settings that the suite chooses for every run."""


class Variant(ConfigSection):
    """One row of the table."""

    title: NonEmptyText
    """What the table calls it."""
    overrides: list[NonEmptyText] = []
    """``key=value``, as on the command line of training, over the base configuration."""


class AblationTable(ConfigSection):
    """One ablation study."""

    title: NonEmptyText
    """The table's heading."""
    base: NonEmptyText
    """The configuration that all variants share, relative to this file."""
    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    """By name, in the order of the table; a name is a folder's, in lower case."""
    missing: list[NonEmptyText] = []
    """Rows of the paper's table that are not offered, each with the reason."""

    @field_validator("variants")
    @classmethod
    def _names_are_folders(cls, variants: dict[str, Variant]) -> dict[str, Variant]:
        wrong = [name for name in variants if not _NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"the name {', '.join(wrong)} has other than lower-case letters, digits, '-', '_' and '.'")
        for name, variant in variants.items():
            own = [override for override in variant.overrides if override.partition("=")[0].strip() in SET_BY_THE_SUITE]
            if own:
                raise ValueError(f"{name}: {', '.join(own)} is set for every run by the suite; leave it out")
        return variants
