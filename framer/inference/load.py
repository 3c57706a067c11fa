"""An exported folder as a model that restores images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from torch import nn

from framer.config.model import ModelConfig
from framer.config.objective import FIELDS, ObjectiveConfig
from framer.errors import UserError
from framer.files import read_json_object
from framer.inference.restore import Restorer
from framer.inference.tiled_latents import AutoencoderTiles, TiledLatents
from framer.models.build import build_model
from framer.models.folders import BASE_FOLDER
from framer.models.restoration import RESTORATION_FILE
from framer.models.restoration_model import RestorationModel
from framer.models.text import TextEmbeddings, TextSizes, check_tokens, text_embeddings
from framer.objectives import Objective, OneStep, build_objective

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MODEL = ("latents", "latents_scale", "conditioning", "text_tokens", "text_embeddings", "vae", "vae_precision")
_FOLDERS = frozenset({"vae", "text_embeddings", "pretrained", "null_text"})


@dataclass(frozen=True)
class RestoringModel:
    """What an export is once loaded.

    Attributes:
        settings: As ``restoration.json`` has them.
        restoration: Calls the model.
        objective: What it was trained on.
        scale: The factor that it was trained for.
        tile: Height and width that it was trained at, in pixels.
        num_inference_steps: Of its run's own evaluation.
    """

    settings: dict[str, Any]
    restoration: RestorationModel
    objective: Objective
    scale: int
    tile: int
    num_inference_steps: int

    @property
    def text_sizes(self) -> TextSizes:
        """Of the text embeddings that the model takes."""
        return self.restoration.backbone.text_sizes(self.restoration.model)

    @property
    def text_tokens(self) -> int | None:
        """Tokens of the texts that it was trained with; None where it had none, but a single token of zeros."""
        tokens = len(self.restoration.text.prompt)
        return tokens if tokens > 1 else None

    def fingerprint(self) -> str:
        """SHA-256 of what results depend on: parameters, text and settings; folders, which may move, are left out."""
        digest = hashlib.sha256()
        settings = {name: value for name, value in self.settings.items() if name not in _FOLDERS}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        restoration = self.restoration
        parts: list[nn.Module | None] = [restoration.model, restoration.latents.vae]
        for part in parts:
            if part is None:
                continue
            config = {name: value for name, value in dict(getattr(part, "config", {})).items() if name[0] != "_"}
            digest.update(json.dumps(config, sort_keys=True, default=str).encode())
            for name, value in part.state_dict().items():
                _update(digest, name, value)
        _update(digest, "prompt", restoration.text.prompt)
        if restoration.text.pooled is not None:
            _update(digest, "pooled", restoration.text.pooled)
        return digest.hexdigest()

    def negative_text(self, file: Path) -> TextEmbeddings:
        """Text embeddings of a file, to be guided away from.

        Raises:
            UserError: The file is missing, damaged or not for the model.
        """
        text = text_embeddings(ModelConfig(negative_text_embeddings=str(file)), self.text_sizes, negative=True)
        check_tokens(text, self.text_tokens, name=str(file))
        return text

    def restorer(
        self,
        *,
        device: torch.device | None = None,
        num_inference_steps: int | None = None,
        tile: int | None = None,
        tile_overlap: float = 0.25,
        tile_batch: int = 16,
        autoencoder_tiles: AutoencoderTiles | None = None,
        start_from_image: bool = False,
        strength: float = 1.0,
    ) -> Restorer:
        """A restorer around the model.

        Args:
            device: Where tiles go; None: where the images are.
            num_inference_steps: Sampling steps; by default those of the run's own evaluation.
            tile: Height and width of a tile in pixels; by default what the model was trained at.
            tile_overlap: Part of a tile that its neighbour covers too, from 0 to below 1.
            tile_batch: Tiles that the model sees at once.
            autoencoder_tiles: How the autoencoder's images are cut; None: not at all.
            start_from_image: See :class:`Restorer`.
            strength: See :class:`Restorer`.

        Raises:
            UserError: A value is out of range or does not fit the model.
        """
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise UserError(f"num_inference_steps: expected 1 or more, got {steps}")
        if isinstance(self.objective, OneStep) and num_inference_steps not in (None, 1):
            raise UserError(f"{num_inference_steps} sampling steps have no effect on a model that restores in one step")
        if not 0 <= tile_overlap < 1:
            raise UserError(f"tile overlap {tile_overlap}: expected from 0 to below 1")
        if tile_batch < 1:
            raise UserError(f"tile batch {tile_batch}: expected 1 or more")
        latents, model = self.restoration.latents, self.restoration.model
        multiple = self.restoration.backbone.multiple(model)
        if latents.vae is None and autoencoder_tiles not in (None, AutoencoderTiles()):
            raise UserError("VAE tiles have no effect on a model without an autoencoder; leave their settings out")
        if autoencoder_tiles is not None:
            latents = TiledLatents(latents, autoencoder_tiles, device)
        self.objective.check_start(from_image=start_from_image, strength=strength, steps=steps)
        return Restorer(
            model=self.restoration.predict,
            latents=latents,
            objective=self.objective,
            tile=self._tile_of_latents(self.tile if tile is None else tile, multiple, chosen=tile is not None),
            tile_overlap=tile_overlap,
            multiple=multiple,
            num_inference_steps=steps,
            tile_batch=tile_batch,
            device=device,
            start_from_image=start_from_image,
            strength=strength,
        )

    def _tile_of_latents(self, tile: int, multiple: int, *, chosen: bool) -> int:
        downscale = self.restoration.latents.shape.downscale
        if not chosen:
            return tile // downscale
        largest = self.restoration.backbone.largest_side(self.restoration.model)
        pixels = multiple * downscale
        if tile < 1 or tile % pixels:
            raise UserError(f"tile of {tile} pixels: expected a positive multiple of {pixels}, the model's patch")
        if largest is not None and tile > largest * downscale:
            raise UserError(f"tile of {tile} pixels: the model has positions for {largest * downscale} pixels a side")
        return tile // downscale


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
        folder: A run's ``export``: a diffusers folder with ``restoration.json``; or ``base``, the bundled model.
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
    model = load_restoring_model(folder, device=device, vae=vae, text_embeddings=text_embeddings, pretrained=pretrained)
    return model.restorer(num_inference_steps=num_inference_steps, tile_overlap=tile_overlap)


def load_restoring_model(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    precision: Precision | None = None,
    vae: str | None = None,
    text_embeddings: str | None = None,
    pretrained: str | None = None,
) -> RestoringModel:
    """Loads what a run exported.

    Args:
        folder: As in :func:`load_restorer`.
        device: Where the model goes.
        precision: Of model and autoencoder; by default float32, and the autoencoder's as in training.
        vae: As in :func:`load_restorer`.
        text_embeddings: As in :func:`load_restorer`.
        pretrained: As in :func:`load_restorer`.

    Raises:
        UserError: A file is missing, damaged or does not fit.
    """
    device = torch.device(device)
    folder = BASE_FOLDER if str(folder) == "base" else Path(folder).expanduser()
    settings = read_settings(folder / RESTORATION_FILE)
    parsed = parse_settings(
        settings,
        folder,
        moved={"vae": vae, "text_embeddings": text_embeddings, "vae_precision": precision, "pretrained": pretrained},
    )
    model = build_model(parsed.model, seed=0).eval().requires_grad_(False)
    # Not the model's own method, which warns about parameters that from_pretrained would keep in float32.
    nn.Module.to(model, device, DTYPES[precision or "fp32"])
    restoration = RestorationModel(model, parsed.model, device)
    if settings.get("null_text") is not None:  # images had texts of their own, of which the settings know the length
        check_tokens(restoration.text, parsed.model.text_tokens, name=str(parsed.model.text_embeddings))
    return restoring_model(restoration, settings, parsed)


def _update(digest: hashlib._Hash, name: str, value: torch.Tensor) -> None:
    digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class ParsedSettings(NamedTuple):
    """What ``restoration.json`` says."""

    model: ModelConfig
    objective: ObjectiveConfig
    scale: int
    tile: int
    num_inference_steps: int


def parse_settings(settings: Mapping[str, Any], folder: Path, *, moved: Mapping[str, str | None]) -> ParsedSettings:
    """Reads an export's settings.

    Args:
        settings: As ``restoration.json`` has them.
        folder: Where the export lies.
        moved: Where other things lie now, by their names among the settings; None: where they were in training. Also
            ``vae_precision``, where it is another.

    Raises:
        UserError: The settings are damaged, or the export has no use for something that has moved.
    """
    given = {name: value for name, value in moved.items() if value is not None}
    unused = sorted(set(given) - movable(settings) - {"vae_precision"})
    if unused:
        raise UserError(
            f"{folder} has no use for {' and '.join(unused)}: a vae is for models of an autoencoder's latents, "
            "pretrained for ControlNets; leave it out"
        )
    try:
        own = {name: settings[name] for name in _MODEL if name in settings}
        own |= {name: value for name, value in given.items() if name in _MODEL}
        if own.get("text_embeddings") is None and settings.get("null_text") is not None:
            own["text_embeddings"] = str(folder / settings["null_text"])
        if own["latents"] != "residual":
            own.pop("latents_scale", None)
        if own["conditioning"] == "controlnet":
            own |= {"controlnet": str(folder), "pretrained": given.get("pretrained") or settings["pretrained"]}
        else:
            own["pretrained"] = str(folder)
        config = ModelConfig.model_validate(own)
        kind = settings.get("objective", "flow_matching")
        objective = ObjectiveConfig.model_validate(
            {"type": kind, **{name: settings[name] for name in FIELDS[kind] if name in settings}}
        )
        scale, tile = int(settings["scale"]), int(settings["tile"])
        return ParsedSettings(config, objective, scale, tile, int(settings.get("num_inference_steps", 1)))
    except (KeyError, ValueError, TypeError, ValidationError) as error:
        raise UserError(f"{folder / RESTORATION_FILE} is damaged: {error!r}") from None


def movable(settings: Mapping[str, Any]) -> frozenset[str]:
    """What a model of these settings needs that does not lie in its export, by the names among the settings."""
    names = {"text_embeddings"}
    if settings.get("latents") == "vae":
        names.add("vae")
    if settings.get("conditioning") == "controlnet":
        names.add("pretrained")
    return frozenset(names)


def restoring_model(
    restoration: RestorationModel, settings: Mapping[str, Any], parsed: ParsedSettings
) -> RestoringModel:
    """A model in memory as one that restores images."""
    return RestoringModel(
        settings=dict(settings),
        restoration=restoration,
        objective=build_objective(parsed.objective, restoration.latents),
        scale=parsed.scale,
        tile=parsed.tile,
        num_inference_steps=parsed.num_inference_steps,
    )


def read_settings(path: Path) -> dict[str, Any]:
    """What a ``restoration.json`` says.

    Raises:
        UserError: The file is missing or damaged.
    """
    return read_json_object(path, expected="the folder that a run exported")
