"""What inference and further training must know beside the weights: ``restoration.json`` in an exported folder."""

from __future__ import annotations

import json
from pathlib import Path

from framer.config.training import TrainConfig
from framer.errors import ConfigError, UserError

RESTORATION_FILE = "restoration.json"
STEP = "step"
"""The optimizer steps that an export's weights have taken; exports from before it was written have none."""
# A model means something else under another value of these; the tile and the shift may change.
_FIXED = {
    "latents": "model.latents",
    "latents_scale": "model.latents_scale",
    "conditioning": "model.conditioning",
    "scale": "data.scale",
    "text_tokens": "model.text_tokens",
    "objective": "objective.type",
}
_OBJECTIVE_FIXED = ("prediction_type", "zero_terminal_snr", "timestep")
"""Those of the objective's own settings that are fixed likewise; which there are depends on its type."""
_ADDED_LATER = {"text_tokens": 1, "objective": "flow_matching"}
"""What a folder means that was exported before there was such a setting."""


def restoration_settings(config: TrainConfig) -> dict[str, str | int | float | None]:
    """The settings that an export carries; that of a ControlNet also where the model is."""
    model = config.model
    return {
        "latents": model.latents,
        "latents_scale": model.latents_scale if model.latents == "residual" else 1.0,
        "conditioning": config.model.conditioning,
        **({"pretrained": model.pretrained} if model.conditioning == "controlnet" else {}),
        "scale": config.data.scale,
        "text_tokens": config.model.text_tokens,
        "text_embeddings": model.text_embeddings,
        "vae": model.vae,
        "vae_precision": model.vae_precision,
        "tile": config.data.crop_size,
        "num_inference_steps": config.evaluation.num_inference_steps,
        "objective": config.objective.type,
        **config.objective.sampling_settings(),
    }


def check_restoration(folder: Path, config: TrainConfig) -> None:
    """Compares a pretrained folder's settings, where it has some, with the configuration.

    Raises:
        ConfigError: The model was trained under other settings; each is named.
        UserError: The file is damaged.
    """
    path = folder / RESTORATION_FILE
    if not path.is_file():
        return
    try:
        trained = {**_ADDED_LATER, **json.loads(path.read_text(encoding="utf-8"))}
        wanted = restoration_settings(config)
        compared = dict(_FIXED)
        if trained["objective"] == wanted["objective"]:
            compared |= {name: f"objective.{name}" for name in _OBJECTIVE_FIXED if name in wanted}
        differing = [
            f"{key}={wanted[name]} (trained with {trained[name]})"
            for name, key in compared.items()
            if trained[name] != wanted[name]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"model.pretrained: {path} is damaged: {error!r}") from None
    if differing:
        raise ConfigError(f"{folder} was trained under other settings: {', '.join(differing)}; set them to its own")
