"""An exported folder as a restorer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from framer.config.model import ModelConfig
from framer.config.objective import FIELDS, ObjectiveConfig
from framer.errors import UserError
from framer.inference.restore import Restorer
from framer.models.build import build_model
from framer.models.restoration import RESTORATION_FILE
from framer.models.restoration_model import RestorationModel
from framer.objectives import build_objective

_MODEL = ("latents", "latents_scale", "conditioning", "text_tokens", "text_embeddings", "vae", "vae_precision")


def load_restorer(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    num_inference_steps: int | None = None,
    tile_overlap: float = 0.25,
    vae: str | None = None,
    text_embeddings: str | None = None,
    pretrained: str | None = None,
) -> Restorer:
    """Loads what a run exported, ready to restore images.

    Args:
        folder: A run's ``export``: a diffusers folder with ``restoration.json``.
        device: Where the model goes.
        num_inference_steps: Sampling steps; by default those of the run's own evaluation.
        tile_overlap: Part of a tile that its neighbour covers too, from 0 to below 1.
        vae: The autoencoder's folder, where it is no longer where it was in training.
        text_embeddings: The file of text embeddings, likewise; of a model that was trained with images' own texts, the
            empty text's by default.
        pretrained: The folder of the model that a ControlNet was trained beside, likewise.

    Raises:
        UserError: A file is missing, damaged or does not fit.
    """
    if num_inference_steps is not None and num_inference_steps < 1:
        raise UserError(f"num_inference_steps: expected 1 or more, got {num_inference_steps}")
    folder, device = Path(folder).expanduser(), torch.device(device)
    settings = _read_settings(folder / RESTORATION_FILE)
    moved = {"vae": vae, "text_embeddings": text_embeddings}
    try:
        own = {name: settings[name] for name in _MODEL if name in settings}
        own |= {name: value for name, value in moved.items() if value is not None}
        if own.get("text_embeddings") is None and settings.get("null_text") is not None:
            own["text_embeddings"] = str(folder / settings["null_text"])
        if own["latents"] != "residual":
            own.pop("latents_scale", None)
        if own["conditioning"] == "controlnet":
            own |= {"controlnet": str(folder), "pretrained": pretrained or settings["pretrained"]}
        else:
            own["pretrained"] = str(folder)
        config = ModelConfig.model_validate(own)
        kind = settings.get("objective", "flow_matching")
        objective = ObjectiveConfig.model_validate(
            {"type": kind, **{name: settings[name] for name in FIELDS[kind] if name in settings}}
        )
        tile = int(settings["tile"])
        steps = int(settings.get("num_inference_steps", 1)) if num_inference_steps is None else num_inference_steps
    except (KeyError, ValueError, TypeError, ValidationError) as error:
        raise UserError(f"{folder / RESTORATION_FILE} is damaged: {error!r}") from None
    model = build_model(config, seed=0).eval().requires_grad_(False).to(device)
    restoration = RestorationModel(model, config, device)
    return Restorer(
        model=restoration.predict,
        latents=restoration.latents,
        objective=build_objective(objective, restoration.latents),
        tile=tile // restoration.latents.shape.downscale,
        tile_overlap=tile_overlap,
        multiple=restoration.backbone.multiple(model),
        num_inference_steps=steps,
    )


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} not found; expected the folder that a run exported")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} is damaged: expected an object, got {type(settings).__name__}")
    return settings
