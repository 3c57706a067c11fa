"""Saying what is wrong with a configuration: each offending key by its path, what it should be and what it is."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

WRONG_TYPE: Final = "section_type"
"""Kind of the error of a section whose ``type`` names none of its alternatives."""

_EXPECTED: Final[Mapping[str, str]] = {
    "bool_type": "should be true or false",
    "float_type": "should be a number",
    "int_type": "should be an integer",
    "list_type": "should be a list",
    "string_too_short": "should not be empty",
    "string_type": "should be text (put it in quotes if it is)",
}


_OTHER_TYPES: Final = frozenset({*_EXPECTED, "dict_type", "int_from_float", "literal_error"}) - {"string_too_short"}
"""Kinds of errors that say no more than that a value is of another type."""

_MOVED: Final[Mapping[str, str]] = {
    "training.tensorboard": "trackers.tensorboard",
}
"""Keys of earlier versions and what they are called now."""


def explain(section: type[BaseModel], details: Sequence[ErrorDetails]) -> list[str]:
    """One line a problem, though a value that fits none of several alternatives has an error for each.

    Args:
        section: The configuration class.
        details: Errors of its validation.
    """
    groups: dict[str, list[tuple[list[str], ErrorDetails]]] = {}
    for detail in details:
        location = _location(section, detail["loc"])
        groups.setdefault(".".join(_alternative(section, location)), []).append((location, detail))
    return [line for key, group in groups.items() for line in _explain_group(section, key, group)]


def _alternative(section: type[BaseModel], location: Sequence[str]) -> Sequence[str]:
    """The first key on the way whose value may be of several types; the whole location if there is none."""
    for depth in range(1, len(location)):
        options = _options_at(section, location[:depth])
        if not _models(options) and len(options) > 1:
            return location[:depth]
    return location


def _explain_group(section: type[BaseModel], key: str, group: Sequence[tuple[list[str], ErrorDetails]]) -> list[str]:
    # An alternative of the right type says best what is wrong.
    close = [
        (location, detail)
        for location, detail in group
        if ".".join(location) != key or detail["type"] not in _OTHER_TYPES
    ]
    lines = [(".".join(location), _explain(section, location, detail)) for location, detail in close or group]
    if close:
        return list(dict.fromkeys(line for _, line in lines))
    return [_joined(key, [line for _, line in lines])]


def _joined(path: str, lines: Sequence[str]) -> str:
    first, *others = lines
    got = first.rpartition(", got ")[2]
    expected = [line.removeprefix(f"{path}: should be ").removesuffix(f", got {got}") for line in lines]
    if not others or any(text == line for line, text in zip(lines, expected, strict=True)):
        return "\n  ".join(dict.fromkeys(lines))
    return f"{path}: should be {' or '.join(dict.fromkeys(expected))}, got {got}"


def _explain(section: type[BaseModel], location: Sequence[str], detail: ErrorDetails) -> str:
    path, parent = ".".join(location), ".".join(location[:-1])
    kind, got = detail["type"], _as_yaml(detail["input"])
    if kind == "extra_forbidden":
        if path in _MOVED:
            return f"{path}: is now called {_MOVED[path]}"
        known = _keys_at(section, location[:-1], detail["loc"])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"{path}: unknown key; {hint}allowed here: {', '.join(known)}"
    if kind == "invalid_key":
        where = f"{parent}: " if parent else ""
        known = _keys_at(section, location[:-1], detail["loc"])
        return f"{where}the key {got} is not text; allowed here: {', '.join(known)}"
    if kind == WRONG_TYPE:
        return f"{path}.type: {detail['msg']}, got {_as_yaml(detail['input'].get('type'))}"
    if kind == "missing":
        return f"{path}: required, but not given"
    if kind == "model_type":
        known = _keys_at(section, location, detail["loc"])
        return f"{path}: should be a section with keys, got {got}; its keys: {', '.join(known)}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").replace(" after validation", "")
    message = message[:1].lower() + message[1:]
    if kind == "value_error":
        return f"{path}: {message}" if path else message
    options = _options_at(section, location)
    literals = [get_args(option) for option in options if get_origin(option) is Literal]
    choices = [str(value) for values in literals for value in values]
    if kind == "literal_error" or (choices and len(options) == len(literals)):
        expected = f"should be one of {', '.join(choices)}"
    else:
        expected = _EXPECTED.get(kind, message)
    return f"{path}: {expected}{' or null' if type(None) in options else ''}, got {got}"


def _location(section: type[BaseModel], parts: Sequence[int | str]) -> list[str]:
    """The keys among an error's parts, which also name the alternatives of a type that were tried."""
    location: list[str] = []
    for part in parts:
        models = _models(_options_at(section, location))
        tags = {str(model.model_fields["type"].default) for model in models if "type" in model.model_fields}
        if isinstance(part, int) or (models and part not in tags):
            location.append(str(part))
    return location


def _keys_at(section: type[BaseModel], location: Sequence[str], parts: Sequence[int | str] = ()) -> list[str]:
    models = _models(_options_at(section, location)) if location else [section]
    tagged = [m for m in models if "type" in m.model_fields and str(m.model_fields["type"].default) in map(str, parts)]
    return list((tagged or models)[0].model_fields) if models else []


def _models(options: Sequence[object]) -> list[type[BaseModel]]:
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _options_at(section: type[BaseModel], location: Sequence[str]) -> list[object]:
    """The alternatives of a key's type."""
    options: list[object] = [section]
    for part in location:
        fields = [model.model_fields[part] for model in _models(options) if part in model.model_fields]
        if not fields:
            return []
        options = [option for field in fields for option in _alternatives(field.annotation)]
    return options


def _alternatives(annotation: object) -> list[object]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [option for inner in get_args(annotation) for option in _alternatives(inner)]
    return [annotation]


def _as_yaml(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
