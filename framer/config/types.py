"""Types of values that several sections share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_core import PydanticKnownError

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonEmptyText = Annotated[str, Field(min_length=1)]


def integer(value: object) -> object:
    """Refuses ``true`` and ``4.0`` where a Literal of integers takes them, as ``True == 1``."""
    if isinstance(value, bool | float):
        raise PydanticKnownError("int_type")
    return value


def one_or_more(value: object) -> object:
    """Takes one text where a list of them is meant."""
    return [value] if isinstance(value, str) else value
