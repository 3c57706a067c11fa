"""Whether every model can be measured as asked, found out before the first one is: from settings, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from framer.analysis.paper.measure import MeasureSettings, check_space
from framer.analysis.paper.sources import Source
from framer.config.architecture import SD3Architecture, UNetArchitecture
from framer.config.loading import build_config
from framer.config.model import ModelConfig
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.inference.load import movable, parse_settings
from framer.models.backbones import Backbone, backbone_for, model_class
from framer.models.build import build_model_without_weights
from framer.models.controlled import ControlledModel
from framer.models.latents import latent_shape
from framer.models.weights import check_weights
from framer.training.trainer_state import STATE_FILE, read_state

if TYPE_CHECKING:
    from diffusers import ModelMixin

_META: Final = torch.device("meta")


def check_sources(
    sources: Sequence[Source], settings: MeasureSettings, *, tile: int, vae: str | None, pretrained: str | None
) -> None:
    """Refuses what could not be measured.

    Args:
        sources: The models.
        settings: How features are compared.
        tile: Pixels a side of a tile.
        vae: The autoencoder's folder, where it has moved.
        pretrained: The folder of the model beside a ControlNet, likewise.

    Raises:
        UserError: Something is missing or damaged, or the feature space, the cutoff or the tile does not suit a model;
            every such model is named.
    """
    moved = {"vae": vae, "pretrained": pretrained}
    problems: dict[str, list[str]] = {}
    for source in sources:
        try:
            _check(source, settings, tile, moved)
        except UserError as error:
            problems.setdefault(str(error), []).append(source.label)
    if problems:
        raise UserError("\n".join(f"{', '.join(labels)}: {problem}" for problem, labels in problems.items()))


def _check(source: Source, settings: MeasureSettings, tile: int, moved: dict[str, str | None]) -> None:
    own = source.settings()
    # What has moved is told for all models at once; each takes what it needs of it.
    parsed = parse_settings(
        own, source.folder, moved={name: value for name, value in moved.items() if name in movable(own)}
    )
    check_space(settings.space, parsed.objective.type)
    # Asked now for the sake of a configuration that is damaged.
    _ = source.fam
    model, backbone = _of_checkpoint(source.folder) if source.checkpoint else _of_export(parsed.model)
    if parsed.model.vae is not None:
        check_weights(Path(parsed.model.vae).expanduser(), key="model.vae")
    downscale = latent_shape(parsed.model).downscale
    multiple, side = backbone.multiple(model) * downscale, backbone.largest_side(model)
    largest = None if side is None else side * downscale
    if tile % multiple or (largest is not None and tile > largest):
        most = "" if largest is None else f", at most {largest}"
        raise UserError(f"--tile {tile}: the model takes multiples of {multiple} pixels{most}")
    height, width = tile // downscale, tile // downscale
    if settings.space == "hidden":
        height, width = backbone.feature_size(model, height, width)
    try:
        settings.bands.low_mask(torch.zeros(1, 1, height, width, dtype=torch.complex64))
    except ValueError as error:
        raise UserError(f"the features cannot be compared: {error}; lower --cutoff, or take larger --tile") from error


def _of_export(config: ModelConfig) -> tuple[ModelMixin, Backbone]:
    assert config.pretrained is not None
    folders = {"model.pretrained": config.pretrained, "model.controlnet": config.controlnet}
    for key, folder in folders.items():
        if folder not in (None, "base"):
            check_weights(Path(str(folder)).expanduser(), key=key)
    with _META:
        return build_model_without_weights(config), backbone_for(config)


def _of_checkpoint(folder: Path) -> tuple[Any, Backbone]:
    """By its own settings: the folders that its run began with are not needed any more."""
    state = read_state(folder)
    config = build_config(TrainConfig, state.config, source=str(folder / STATE_FILE)).model
    with _META:
        model = model_class(state.model_class).from_config(state.model)
    own = model.module if isinstance(model, ControlledModel) else model
    architecture = UNetArchitecture() if type(own).__name__ == "UNet2DConditionModel" else SD3Architecture()
    return model, backbone_for(config.model_copy(update={"pretrained": None, "architecture": architecture}))
