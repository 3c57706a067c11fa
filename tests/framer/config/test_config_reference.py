"""Every setting is documented, and the page of all settings says what the classes say."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import framer.config
from framer.config.base import ConfigSection
from framer.config.reference import reference_page

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_every_field_of_every_section_has_a_docstring() -> None:
    for module in pkgutil.iter_modules(framer.config.__path__, "framer.config."):
        importlib.import_module(module.name)
    without = [
        f"{section.__module__}.{section.__name__}.{name}"
        for section in ConfigSection.__subclasses__()
        if section.__module__.startswith("framer.config.")
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert without == []


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference_page(), (
        "run: python -m framer.config.reference > docs/configuration.md"
    )


def test_a_value_is_told_with_its_limits_and_its_default() -> None:
    lines = reference_page().splitlines()
    (cutoff,) = (line for line in lines if line.startswith("| `framer.cutoff` |"))
    assert cutoff.startswith("| `framer.cutoff` | number from 0 below sqrt(2) | `0.25` | Radius of the low band")
    (architecture,) = (line for line in lines if line.startswith("| `model.architecture` |"))
    assert "(#modelarchitecture-of-type-unet) | `type: sd3` |" in architecture
    (output,) = (line for line in lines if line.startswith("| `output_dir` |"))
    assert output.startswith("| `output_dir` | text | required |")
