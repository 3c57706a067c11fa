"""What a run shows people: sample sheets, plots, the table, ``report.md``."""

from __future__ import annotations

import shlex
from pathlib import Path
from statistics import fmean

import diffusers
import torch
import torch.distributed as dist
from torch import nn

from framer.alignment.layers import method_layers
from framer.analysis.history import read_metrics
from framer.analysis.losses import plot_losses
from framer.analysis.report import Figure, write_report
from framer.analysis.similarity import DepthSimilarity, depth_similarity, plot_depth_similarity
from framer.analysis.weights import plot_modulation
from framer.config.distillation import FramerConfig
from framer.config.training import TrainConfig
from framer.distill import Framer
from framer.evaluation.sheets import SheetRow, write_sample_sheet
from framer.evaluation.table import EvaluationRow, evaluate, read_evaluation, write_evaluation
from framer.features import adapter_for, without_heads
from framer.features.heads import HEADS, FeatureHeads
from framer.models.backbones import backbone_for
from framer.models.restoration_model import RestorationModel
from framer.objectives import build_objective
from framer.seeding import normal_per_sample
from framer.training.evaluation import Evaluated, HeldOut
from framer.training.run_folder import RunFolder
from framer_kernels import BandSplit

SIMILARITY_TIMESTEPS = (300, 700)
"""Timesteps of the paper's Fig. 3."""
SIMILARITY_TILES = 64
"""Most held-out tiles that the similarity is averaged over."""


SHEET_ROWS = 8
"""Crops on a sample sheet; of more, this many spread evenly."""


def write_samples(folder: RunFolder, evaluated: Evaluated, *, step: int) -> tuple[list[EvaluationRow], Figure]:
    """Writes the sample sheet and the table of one evaluation; the table's rows and the sheet.

    Args:
        folder: The run's.
        evaluated: The crops, and what was made of them.
        step: The optimizer step that it was after.
    """
    rows = evaluate(evaluated.names, evaluated.sr, evaluated.bicubic, evaluated.hr)
    sheet = folder.sample_sheet(step)
    crops = [
        SheetRow(name=n, lr=lr, bicubic=bicubic, sr=sr, hr=hr)
        for n, lr, bicubic, sr, hr in zip(*evaluated, strict=True)
    ]
    shown = crops if len(crops) <= SHEET_ROWS else [crops[i * len(crops) // SHEET_ROWS] for i in range(SHEET_ROWS)]
    some = "" if shown is crops else f", {len(shown)} of {len(crops)} crops"
    when = f"after {step} steps" if step else "before training"
    caption = write_sample_sheet(sheet, shown, title=f"Evaluation photographs {when}{some}")
    write_evaluation(folder.sample_table(step), rows)
    return rows, Figure(path=sheet.relative_to(folder.root), title="Samples", caption=caption)


def write_run_report(
    folder: RunFolder,
    config: TrainConfig,
    model: RestorationModel,
    evaluated: Evaluated,
    heldout: HeldOut,
    *,
    step: int,
) -> Path:
    """Draws the run's figures and writes its report; every rank must call it.

    Args:
        folder: The run's.
        config: The run.
        model: With the weights that were evaluated.
        evaluated: The crops of the last evaluation, and what was made of them.
        heldout: The crops that the layers are compared on.
        step: The last optimizer step.

    Returns:
        The report's path; rank 0 has written it.
    """
    similarities = similarity_against_depth(model, heldout, config)
    path = folder.root / "report.md"
    if dist.get_rank() != 0:
        return path
    rows, sheet = write_samples(folder, evaluated, step=step)
    metrics = read_metrics(folder.metrics)
    figures = [sheet]

    def add(name: str, title: str, caption: str) -> None:
        figures.append(Figure(path=Path(folder.plots.name) / name, title=title, caption=caption))

    if similarities:
        title = "Similarity to the last layer"
        caption = plot_depth_similarity(folder.plots / "similarity.png", similarities, title=title)
        add("similarity.png", f"{title} against depth", caption)
    if config.framer.method == "framer" and config.framer.fam and any(record.layers is not None for record in metrics):
        caption = plot_modulation(folder.plots / "modulation.png", metrics, title="FAW x FAM weights by layer")
        add("modulation.png", "FAW x FAM weights by layer", caption)
    if metrics:
        add("losses.png", "Losses", plot_losses(folder.plots / "losses.png", metrics))
    return write_report(
        folder.root,
        title=f"{folder.root.name}: {_method(config.framer)}, {step} steps",
        command=f"deepspeed train.py --config {shlex.quote(str(folder.config))} "
        f"output_dir={shlex.quote(f'{folder.root}-again')}",
        config_summary=_summary(config, model, step),
        evaluation=rows,
        figures=figures,
        notes=_notes(config),
        before=[] if config.model.pretrained is None else _rows_before(folder, rows),
        trained_on=config.evaluation.allow_training_photographs,
    )


def _rows_before(folder: RunFolder, rows: list[EvaluationRow]) -> list[EvaluationRow]:
    """The evaluation before the first step, where there was one of the same crops."""
    table = folder.sample_table(0)
    before = read_evaluation(table) if table.is_file() else []
    # A run may go on with another section evaluation.
    same = [(row.name, row.psnr_bicubic) for row in before] == [(row.name, row.psnr_bicubic) for row in rows]
    return before if same else []


@torch.enable_grad()
def similarity_against_depth(
    model: RestorationModel, heldout: HeldOut, config: TrainConfig
) -> dict[int, DepthSimilarity]:
    """Similarity of every block to the last one on the held-out photographs, at t = 300 and 700 (Fig. 3).

    Measured in feature space ``hidden`` with the bands of the paper's preset, whatever the run trained with, so
    that runs compare; in one step at the only timestep that there is. Every rank must call it under ZeRO 3. Nothing for
    a U-Net without heads, whose stages cannot be compared.
    """
    settings = _settings_of_similarity(model.model, config.framer)
    if settings is None:
        return {}
    framer = Framer(model.model, settings)
    objective = build_objective(config.objective, model.latents)
    tile = config.data.crop_size
    upsampled = _tiles(heldout.lr_upsampled, tile).to(model.device)
    indices, seed = list(range(len(upsampled))), config.evaluation.seed
    clean = model.latents.encode(_tiles(heldout.hr, tile).to(model.device), upsampled, indices=indices, seed=seed)
    noise = normal_per_sample(clean.shape[1:], indices, seed, "similarity").to(model.device)
    reference = model.latents.reference(upsampled)
    similarities = {}
    was_training = model.model.training
    model.model.eval()
    only = objective.fixed_timestep
    for timestep in SIMILARITY_TIMESTEPS if only is None else (only,):
        noisy = objective.at_timestep(clean, reference, noise, timestep)
        parts: list[DepthSimilarity] = []
        # As many at a time as fit in training: the pass keeps its activations.
        for start in range(0, len(clean), config.training.batch_size):
            some = slice(start, start + config.training.batch_size)
            with framer.capture():
                model.predict(noisy.sample[some], reference[some], noisy.timesteps[some])
            features = framer.features()
            parts += [
                depth_similarity(
                    [student[b : b + 1].detach().float() for student in features.students],
                    features.teacher[b : b + 1].float(),
                    bands=BandSplit.radial(settings.cutoff),
                    representation=settings.representation,
                )
                for b in range(len(noisy.sample[some]))
            ]
            del features
        similarities[timestep] = DepthSimilarity(
            lf=[fmean(values) for values in zip(*(part.lf for part in parts), strict=True)],
            hf=[fmean(values) for values in zip(*(part.hf for part in parts), strict=True)],
        )
    framer.detach()
    model.model.train(was_training)
    return similarities


def _settings_of_similarity(model: nn.Module, trained: FramerConfig) -> FramerConfig | None:
    if adapter_for(model).channels is None:
        return FramerConfig(preset="paper")
    if not isinstance(getattr(adapter_for(model).model, HEADS, None), FeatureHeads):
        return None
    # The stages that have heads are those that were trained.
    students, teacher = method_layers(trained, adapter_for(model).block_names)
    compared = [student for student in students if student != teacher]
    if teacher is None or len(compared) < 2:
        return None
    return FramerConfig(preset="paper", students=compared, teacher=teacher)


def _tiles(images: torch.Tensor, tile: int) -> torch.Tensor:
    """Non-overlapping tiles, ``[n, C, tile, tile]``, evenly picked where there are too many."""
    tiles = images.unfold(2, tile, tile).unfold(3, tile, tile)
    tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return tiles[:: -(-len(tiles) // SIMILARITY_TILES)]


def _summary(config: TrainConfig, restoration: RestorationModel, step: int) -> dict[str, str]:
    model = restoration.model
    own = without_heads(dict(model.named_parameters())).values()
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in own)
    blocks = len(adapter_for(model).blocks)
    training, framer, ranks = config.training, config.framer, dist.get_world_size()
    batch = training.batch_size * training.gradient_accumulation_steps * ranks
    method = f"preset {framer.preset}, feature space {framer.feature_space}, weight {framer.weight:g}"
    if not framer.enabled:
        method = "off"
    elif framer.method != "framer":
        method = f"{framer.method} in its place, weight {framer.weight:g}"
    return {
        "model": f"{type(model).__name__}, {parameters / 1e6:.2f} M parameters, {blocks} blocks",
        "started from": config.model.pretrained or "random weights",
        "FRAMER": method,
        "photographs": config.data.train,
        "degradation": f"{config.data.degradation}, x{config.data.scale}",
        "training crop": _crops(config),
        "steps": f"{step} of batch {batch}",
        "learning rate": f"{config.optimizer.lr:g}, {config.lr_scheduler.type}",
        "engine": f"DeepSpeed ZeRO {config.deepspeed.zero_stage}, {training.precision}, {ranks} rank(s)",
        "weights shown and exported": f"average, decay {training.ema.decay:g}"
        if training.ema.decay
        else "the last ones",
        "sampling": build_objective(config.objective, restoration.latents).describe_sampling(
            config.evaluation.num_inference_steps
        ),
        "seed": str(config.seed),
    }


def _method(config: FramerConfig) -> str:
    if not config.enabled:
        return "no FRAMER"
    return "FRAMER" if config.method == "framer" else config.method


def _crops(config: TrainConfig) -> str:
    sizes = config.data.buckets or [[config.data.crop_size] * 2]
    return f"{', '.join(f'{height} x {width}' for height, width in sizes)} pixels"


def _notes(config: TrainConfig) -> list[str]:
    where = {
        "heldout": "the bundled held-out photographs, on which nothing is trained or chosen",
        "validation": "the bundled validation photograph, on which settings are chosen",
    }.get(config.data.evaluation, f"the photographs in `{config.data.evaluation}`")
    decay, loader = config.training.ema.decay, backbone_for(config.model).exported_class
    without = " without this package" if hasattr(diffusers, loader) else ""
    average = "Pictures, table and export are of the average of the weights (decay {:g}); checkpoints hold the last."
    text = "the empty one" if config.model.text_embeddings is None else "that of `model.text_embeddings`"
    texts = "Images had their own texts in training, the empty one with probability {:g}; here all see {}."
    return [
        *([average.format(decay)] if decay is not None else []),
        *([texts.format(config.data.null_text_probability, text)] if config.data.texts_fingerprint is not None else []),
        f"SR was measured on {where}. The degradation and the initial noise are seeded: the table comes out the same "
        "again on the same kind of machine.",
        f"`export/` is a diffusers folder: `{loader}.from_pretrained` loads it{without}.",
        "`metrics.jsonl` has every step; `tensorboard --logdir .` shows it live.",
    ]
