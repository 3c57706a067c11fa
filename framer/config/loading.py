"""Reading a YAML configuration, applying dotted overrides, and saying what is wrong with it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from framer.config.base import ConfigSection
from framer.errors import ConfigError

Section = TypeVar("Section", bound=ConfigSection)


class _Loader(yaml.SafeLoader):
    """``yaml.SafeLoader`` that reads ``1e-4`` as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key '{key}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
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
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from None
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
    return build_config(section, content, source=str(path))


def build_config(section: type[Section], content: Mapping[str, Any], *, source: str) -> Section:
    """Validates a mapping into a typed configuration; errors name ``source`` and each key's dotted path."""
    try:
        return section.model_validate(dict(content))
    except ValidationError as error:
        lines = [f"  {_explain(section, detail)}" for detail in error.errors(include_url=False)]
        raise ConfigError(f"the configuration {source} is not valid:\n" + "\n".join(lines)) from None


def save_config(config: ConfigSection) -> str:
    """The resolved configuration as YAML text, every default written out; loads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override '{override}': expected key=value, for example optimizer.lr=1e-4")
    try:
        parsed = _parse(value)
    except yaml.YAMLError:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from None
    node = content
    for depth, part in enumerate(parts[:-1], start=1):
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise ConfigError(f"override '{override}': '{'.'.join(parts[:depth])}' is a value, not a section")
    node[parts[-1]] = parsed


def _explain(section: type[ConfigSection], detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    path = ".".join(location) or "(top level)"
    if detail["type"] == "extra_forbidden":
        known = _fields_at(section, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"{path}: unknown key; {hint}allowed here: {', '.join(known)}"
    if detail["type"] == "missing":
        return f"{path}: required, but not given"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if detail["type"] == "value_error" or detail["type"].startswith("model"):
        return f"{path}: {message}"
    return f"{path}: {message}, got {detail['input']!r}"


def _fields_at(section: type[BaseModel], location: Sequence[str]) -> list[str]:
    for part in location:
        field = section.model_fields.get(part)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        nested = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not nested:
            return []
        section = nested[0]
    return list(section.model_fields)
