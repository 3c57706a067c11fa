"""Reading a YAML configuration, applying dotted overrides, and saying what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from framer.config.base import ConfigSection
from framer.config.explain import explain
from framer.errors import ConfigError

Section = TypeVar("Section", bound=ConfigSection)


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
        lines = [f"  {line}" for line in explain(section, error.errors(include_url=False))]
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
