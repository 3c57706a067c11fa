"""diffusers folders: where a configuration's pretrained model lies and what it is."""

from __future__ import annotations

from pathlib import Path

from framer.config.model import ModelConfig
from framer.errors import UserError
from framer.files import read_json_object

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
    hint = "'base' or a folder" if key == "model.pretrained" else "a folder"
    return read_json_object(folder / CONFIG_FILE, expected=f"{hint} written by diffusers' save_pretrained", name=key)


def class_in_folder(folder: Path) -> str:
    """Name of the model class that a folder holds.

    Raises:
        UserError: Its ``config.json`` is missing or damaged, or names none.
    """
    found = read_model_config(folder).get("_class_name")
    if not isinstance(found, str):
        raise UserError(f"model.pretrained: {folder} holds no diffusers model; its {CONFIG_FILE} names no class")
    return found
