"""What a run needs on disk, looked at before any run of a study is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from framer.ablation.plan import PlannedRun
from framer.config.training import TrainConfig
from framer.data.evaluation_photographs import check_apart, check_crops
from framer.data.sources import (
    training_texts,
    with_data_settings,
)
from framer.errors import UserError
from framer.files import check_writable, writing
from framer.models.backbones import backbone_for
from framer.models.folders import controlnet_folder, pretrained_folder
from framer.models.latents import latent_shape
from framer.models.restoration import check_restoration
from framer.models.weights import check_weights


def check_runs(planned: Sequence[PlannedRun], output: Path) -> None:
    """Looks at what all runs need: their images and texts, their models' folders, and the folder that they go to.

    No weight is read, and of images their headers and sizes, and the content where sizes are equal.

    Args:
        planned: The runs that are to be trained.
        output: Folder of all runs; made.

    Raises:
        UserError: Something is missing, empty or contradicts a configuration, each named with the variants that it
            holds for; or ``output`` cannot be written to.
    """
    problems: dict[str, list[str]] = {}
    for run in planned:
        for problem in dict.fromkeys(_problems(run.config)):
            variants = problems.setdefault(problem, [])
            if run.variant not in variants:
                variants.append(run.variant)
    if problems:
        listed = [f"variant {', '.join(variants)}: {problem}" for problem, variants in problems.items()]
        raise UserError("\n".join([*listed, "no run was started"]))
    check_writable(output)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)


def _problems(config: TrainConfig) -> list[str]:
    checks: list[Callable[[], object]] = [
        lambda: _check_training_data(config),
        lambda: check_crops(config),
        lambda: check_apart(config),
        lambda: _check_model(config),
    ]
    found = []
    for check in checks:
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return found


def _check_training_data(config: TrainConfig) -> None:
    with_data_settings(config)
    training_texts(config.data)


def _check_model(config: TrainConfig) -> None:
    backbone_for(config.model)
    latent_shape(config.model)
    for key, folder in (
        ("model.pretrained", pretrained_folder(config.model)),
        ("model.controlnet", controlnet_folder(config.model)),
    ):
        if folder is not None:
            check_weights(folder, key=key)
            check_restoration(folder, config)
    text = config.model.text_embeddings
    if text is not None and not Path(text).expanduser().is_file():
        raise UserError(f"model.text_embeddings: {text} not found")
