"""Reading a YAML configuration, applying dotted overrides, and saying what is wrong with it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from framer.config.base import ConfigSection
from framer.errors import ConfigError

Section = TypeVar("Section", bound=ConfigSection)


_EXPECTED: Final[Mapping[str, str]] = {
    "bool_type": "should be true or false",
    "float_type": "should be a number",
    "int_type": "should be an integer",
    "list_type": "should be a list",
    "string_too_short": "should not be empty",
    "string_type": "should be text (put it in quotes if it is)",
}


_MOVED: Final[Mapping[str, str]] = {
    "training.tensorboard": "trackers.tensorboard",
}
"""Keys of earlier versions and what they are called now."""


class _Loader(yaml.SafeLoader):
    """``yaml.SafeLoader`` that reads ``1e-4`` as a number and dates as text, and refuses a key given twice.

    YAML 1.2 reads both that way; PyYAML follows YAML 1.1.
    """

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConfigError(f"line {key.start_mark.line + 1}: the key '{key.value}' is given twice")
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """``yaml.SafeDumper`` that quotes all text that :class:`_Loader` would read as something else."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader


def load_config(section: type[Section], path: str | Path, overrides: Sequence[str] = ()) -> Section:
    """Reads a YAML file into a typed configuration.

    Args:
        section: The configuration class, for example :class:`framer.config.TrainConfig`.
        path: The YAML file.
        overrides: ``"dotted.key=value"`` strings, applied in order after the file; values are YAML.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: The file is missing or is not YAML, or a key is unknown, of the wrong type or out of range.
            The message names every offending key by its dotted path.
    """
    path = Path(path)
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file not found: {path}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top, got {type(content).__name__}")
    for override in overrides:
        _apply_override(content, override)
    return build_config(section, content, source=f"{path} with {' '.join(overrides)}" if overrides else str(path))


def build_config(section: type[Section], content: Mapping[str, Any], *, source: str) -> Section:
    """Validates a mapping into a typed configuration.

    Args:
        section: The configuration class.
        content: What the YAML file holds.
        source: Where it comes from, for messages.

    Raises:
        ConfigError: A key is unknown, missing, of the wrong type or out of range, or keys do not fit together. The
            message names ``source`` and every offending key by its dotted path.
    """
    try:
        return section.model_validate(dict(content))
    except ValidationError as error:
        lines = [f"  {line}" for line in _explain_all(section, error.errors(include_url=False))]
        raise ConfigError(f"the configuration {source} is not valid:\n" + "\n".join(lines)) from None


def save_config(config: ConfigSection) -> str:
    """The resolved configuration as YAML text, every default written out; loads back to an equal object."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ConfigError(f"override '{override}': expected key=value, for example optimizer.lr=1e-4")
    try:
        parsed = _parse(value)
    except yaml.YAMLError:
        raise ConfigError(f"override '{override}': the value is not valid YAML; put text in quotes") from None
    except ConfigError as error:
        raise ConfigError(f"override '{override}': {error}") from None
    node = content
    for depth, part in enumerate(parts[:-1], start=1):
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            section = ".".join(parts[:depth])
            raise ConfigError(
                f"override '{override}': '{section}' is a value, not a section; give the whole of {section} anew"
            )
    node[parts[-1]] = parsed


def _explain_all(section: type[ConfigSection], details: Sequence[ErrorDetails]) -> list[str]:
    """One line a problem; what the alternatives of one key's type say is one problem."""
    lines: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for detail in details:
        lines.setdefault(_key_of(section, detail["loc"]), []).append(detail)
    return [line for key, group in lines.items() for line in _explain_key(section, key, group)]


def _key_of(section: type[ConfigSection], location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The place of a problem without the name that pydantic gives an alternative of a type."""
    for depth in range(1, len(location)):
        alternatives = _alternatives_at(section, [str(part) for part in location[:depth]])
        if len(alternatives) > 1:
            return location[:depth]
    return location


def _explain_key(
    section: type[ConfigSection], key: tuple[int | str, ...], details: Sequence[ErrorDetails]
) -> list[str]:
    if details[0]["loc"] == key:
        return [_explain(section, detail) for detail in details]
    inside = [detail for detail in details if len(detail["loc"]) > len(key) + 1]
    if inside:  # a list, of which an item is wrong
        return [_explain(section, {**detail, "loc": (*key, *detail["loc"][len(key) + 1 :])}) for detail in inside]
    of_value = [detail for detail in details if not detail["type"].endswith(("_type", "_error"))]
    first, *others = dict.fromkeys(_EXPECTED.get(detail["type"]) or _message(detail) for detail in of_value or details)
    together = " or ".join([first, *(phrase.removeprefix("should be ") for phrase in others)])
    return [f"{'.'.join(map(str, key))}: {together}, got {_as_yaml(details[0]['input'])}"]


def _alternatives_at(section: type[BaseModel], location: Sequence[str]) -> list[object]:
    """Of a key whose type is a choice of several: each of them, null apart."""
    options = _options_at(section, location)
    if not options or get_origin(options[0]) not in (Union, UnionType):
        return []
    return [option for option in options[1:] if option is not type(None)]


def _explain(section: type[ConfigSection], detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    path, parent = ".".join(location), ".".join(location[:-1])
    kind, got = detail["type"], _as_yaml(detail["input"])
    if kind == "extra_forbidden":
        if path in _MOVED:
            return f"{path}: is now called {_MOVED[path]}"
        known = _keys_at(section, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"{path}: unknown key; {hint}allowed here: {', '.join(known)}"
    if kind == "invalid_key":
        where = f"{parent}: " if parent else ""
        return f"{where}the key {got} is not text; allowed here: {', '.join(_keys_at(section, location[:-1]))}"
    if kind == "missing":
        return f"{path}: required, but not given"
    if kind == "model_type":
        return f"{path}: should be a section with keys, got {got}; its keys: {', '.join(_keys_at(section, location))}"
    message = _message(detail)
    if kind == "value_error":
        return f"{path}: {message}" if path else message
    options = _options_at(section, location)
    choices = [str(value) for option in options if get_origin(option) is Literal for value in get_args(option)]
    expected = f"should be one of {', '.join(choices)}" if choices else _EXPECTED.get(kind, message)
    return f"{path}: {expected}{' or null' if type(None) in options else ''}, got {got}"


def _message(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").replace(" after validation", "")
    return message[:1].lower() + message[1:]


def _keys_at(section: type[BaseModel], location: Sequence[str]) -> list[str]:
    if location:
        nested = [o for o in _options_at(section, location) if isinstance(o, type) and issubclass(o, BaseModel)]
        return list(nested[0].model_fields) if nested else []
    return list(section.model_fields)


def _options_at(section: type[BaseModel], location: Sequence[str]) -> list[object]:
    """The alternatives of a key's type."""
    options: list[object] = [section]
    for part in location:
        nested = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        field = nested[0].model_fields.get(part) if nested else None
        if field is None:
            return []
        literal = get_origin(field.annotation) is Literal
        options = [field.annotation, *(() if literal else get_args(field.annotation))]
    return options


def _as_yaml(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
