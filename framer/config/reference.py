"""The page of all settings, ``docs/configuration.md``, out of the sections' own fields and docstrings.

Written anew with ``python -m framer.config.reference > docs/configuration.md``.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from framer.config.base import ConfigSection
from framer.config.training import TrainConfig

_INTRODUCTION: Final = """\
# The configuration, key by key

All that the file of a training run can say; [Training](training.md) tells what to choose. On the command line, keys are
given as they stand here: `optimizer.lr=1e-4`. The page is made of the classes in
[`framer/config/`](../framer/config/training.py), by `python -m framer.config.reference > docs/configuration.md`.
"""
_TYPES: Final[dict[Any, str]] = {bool: "true or false", int: "integer", float: "number", str: "text", NoneType: "null"}
_LIMITS: Final = {"ge": "from", "gt": "above", "le": "up to", "lt": "below"}


def reference_page() -> str:
    """The page in Markdown: of each section a table of its keys."""
    parts = [_INTRODUCTION, _table("", TrainConfig)]
    for path, section in _sections_within("", TrainConfig):
        parts += [f"## {_heading(path, section)}\n", _markdown(inspect.getdoc(section) or "") + "\n"]
        parts.append(_table(path, section))
    return "\n".join(parts)


def _sections_within(path: str, section: type[ConfigSection]) -> Iterator[tuple[str, type[ConfigSection]]]:
    for name, field in section.model_fields.items():
        for inner in _sections_of(field.annotation):
            yield path + name, inner
            yield from _sections_within(f"{path}{name}.", inner)


def _sections_of(annotation: object) -> Iterator[type[ConfigSection]]:
    if isinstance(annotation, type) and issubclass(annotation, ConfigSection):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_of(argument)


def _heading(path: str, section: type[ConfigSection]) -> str:
    kind = section.model_fields.get("type")
    # A type of one value tells sections apart that stand under the same key.
    return f"`{path}` of type `{kind.default}`" if kind and len(get_args(kind.annotation)) == 1 else f"`{path}`"


def _table(path: str, section: type[ConfigSection]) -> str:
    prefix = f"{path}." if path else ""
    lines = ["| key | value | default | what it is |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        key = prefix + name
        cells = f"`{key}`", _values(key, field.annotation, field.metadata), _default(field), _text(field)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _values(key: str, annotation: object, limits: Sequence[object] = ()) -> str:
    """What can be given, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(key, arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(_values(key, argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in arguments)
    if origin is list:
        return f"list of {_values(key, arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, ConfigSection):
        heading = _heading(key, annotation)
        return f"[section](#{heading.replace('`', '').replace('.', '').replace(' ', '-').lower()})"
    return " ".join([_TYPES[annotation], *_range(limits)])


def _range(limits: Sequence[object]) -> Iterator[str]:
    for limit in limits:
        if isinstance(limit, FieldInfo):
            yield from _range(limit.metadata)
        for name, word in _LIMITS.items():
            value = getattr(limit, name, None)
            if value is not None:
                yield f"{word} {'sqrt(2)' if value == math.sqrt(2) else format(value, 'g')}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, ConfigSection):
        several = len(list(_sections_of(field.annotation))) > 1
        return f"`type: {getattr(field.default, 'type', '')}`" if several else ""
    return f"`{_yaml(field.default)}`"


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _text(field: FieldInfo) -> str:
    return " ".join(_markdown(field.description or "").split()).replace("|", "\\|")


def _markdown(docstring: str) -> str:
    return docstring.replace("``", "`")


if __name__ == "__main__":
    sys.stdout.write(reference_page())
