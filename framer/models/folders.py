"""diffusers folders: where a configuration's pretrained model lies and what it is."""

from __future__ import annotations

import json
from pathlib import Path

from framer.config.model import ModelConfig
from framer.errors import UserError

BASE_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "base"
CONFIG_FILE = "config.json"


def pretrained_folder(config: ModelConfig) -> Path | None:
    """The folder that ``model.pretrained`` names; None for random weights."""
    if config.pretrained is None:
        return None
    return BASE_FOLDER if config.pretrained == "base" else Path(config.pretrained).expanduser()


def controlnet_folder(config: ModelConfig) -> Path | None:
    """The folder that ``model.controlnet`` names."""
    return None if config.controlnet is None else Path(config.controlnet).expanduser()


def read_model_config(folder: Path, *, key: str = "model.pretrained") -> dict[str, object]:
    """A folder's ``config.json``.

    Raises:
        UserError: It is missing or damaged.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        hint = "'base' or a folder" if key == "model.pretrained" else "a folder"
        raise UserError(f"{key}: {path} not found; expected {hint} written by diffusers' save_pretrained")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{key}: {path} is damaged: expected an object, got {type(content).__name__}")
    return content


def class_in_folder(folder: Path) -> str:
    """Name of the model class that a folder holds.

    Raises:
        UserError: Its ``config.json`` is missing or damaged, or names none.
    """
    found = read_model_config(folder).get("_class_name")
    if not isinstance(found, str):
        raise UserError(f"model.pretrained: {folder} holds no diffusers model; its {CONFIG_FILE} names no class")
    return found
