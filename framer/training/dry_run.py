"""Everything that a real start would do, for two steps, with nothing left behind."""

from __future__ import annotations

import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.features import adapter_for
from framer.training.checkpoint_choice import choose_checkpoint
from framer.training.checkpoint_folder import find_checkpoints
from framer.training.effective_config import effective_config
from framer.training.evaluation import HeldOut, evaluations_left, restore_heldout
from framer.training.export import DTYPES
from framer.training.metrics import MetricsLog, TrainingStep
from framer.training.ranks import gather_objects, on_rank_zero, raise_on_all_ranks, start_distributed
from framer.training.report import write_samples
from framer.training.run_folder import RunFolder
from framer.training.trackers import open_trackers
from framer.training.trainer import Trainer

STEPS: Final = 2
"""The second one is timed: the first fills caches and compiles."""


def dry_run(config: TrainConfig, *, verbose: bool = False) -> str:
    """Starts the run, takes two optimizer steps, restores one evaluation crop and says what the run will cost.

    The checkpoint that the run would continue from is loaded for it. Files go to a temporary folder beside those of
    the run, or where its folder would be; ``output_dir`` itself stays as it is. Every rank must call it.

    Args:
        config: The run.
        verbose: Whether the summary ends with the DeepSpeed configuration in effect.

    Returns:
        The summary on rank 0, nothing on the others.

    Raises:
        UserError: What a real start would raise; or the disk has no space for the run's checkpoints, or ranks do not
            share ``output_dir``.
    """
    start_distributed(config.distributed)
    output = Path(config.output_dir).expanduser()
    with _temporary_folder(output) as folder:
        found = RunFolder(output).checkpoints
        resumed_from = choose_checkpoint(config.training.resume, found, set_aside=False)
        trainer = Trainer(_rehearsal(config, folder, resumed_from))
        start = trainer.step
        on_rank_zero(lambda: _check_disk(trainer, folder, saved=len(find_checkpoints(found))))
        steps = trainer.rehearse(min(STEPS, config.training.max_steps - start))
        _check_steps(steps)
        all_crops = trainer.heldout
        crop = HeldOut(all_crops.names[:1], all_crops.hr[:1], all_crops.lr[:1], all_crops.lr_upsampled[:1])
        began = time.perf_counter()
        evaluated = restore_heldout(trainer.restoration, crop, trainer.config)
        crop_seconds = time.perf_counter() - began
        on_rank_zero(lambda: write_samples(trainer.folder, evaluated, step=trainer.step))
        on_rank_zero(lambda: _log(trainer, steps))
        memory = max(gather_objects(_peak_memory(trainer.device)))
        summary = _summary(
            trainer, steps, start=start, resumed_from=resumed_from, memory=memory, crop_seconds=crop_seconds
        )
        if verbose:
            summary += f"DeepSpeed's configuration:\n{effective_config(trainer.engine)}"
    return summary if trainer.rank == 0 else ""


@contextmanager
def _temporary_folder(output: Path) -> Iterator[Path]:
    folder = on_rank_zero(lambda: _make_folder(output))
    # By default the process would end at once and leave the folder behind.
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        unseen = None if folder.is_dir() else f"{folder}, made by rank 0, is not there"
        raise_on_all_ranks(unseen, "output_dir: all nodes must share its filesystem")
        yield folder
    finally:
        signal.signal(signal.SIGTERM, previous)
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _check_steps(steps: list[TrainingStep]) -> None:
    if steps and all(step.skipped for step in steps) and steps[-1].skipped_steps >= len(steps):
        raise UserError(f"all {len(steps)} steps were skipped: {steps[-1].skip_reason}")


def _make_folder(output: Path) -> Path:
    where = next(path for path in (output, *output.absolute().parents) if path.exists())
    try:
        return Path(tempfile.mkdtemp(prefix=".dry-run-", dir=where)).absolute()
    except OSError as error:
        raise UserError(f"output_dir: cannot write to {where}: {error.strerror or error}") from error


def _rehearsal(config: TrainConfig, folder: Path, resumed_from: Path | None) -> TrainConfig:
    wandb = config.trackers.wandb
    offline = None if wandb is None else wandb.model_copy(update={"mode": "offline"})
    return config.model_copy(
        update={
            "output_dir": str(folder / "run"),
            "training": config.training.model_copy(
                update={"resume": "never" if resumed_from is None else str(resumed_from.absolute())}
            ),
            "trackers": config.trackers.model_copy(update={"wandb": offline}),
        }
    )


def _log(trainer: Trainer, steps: list[TrainingStep]) -> None:
    trackers = open_trackers(trainer.config, trainer.folder, start_step=trainer.step - len(steps), last_logged=0)
    log = MetricsLog(trainer.folder.metrics, trackers=trackers, start_step=trainer.step - len(steps))
    for metrics in steps:
        log.write(metrics)
    log.write_image("samples", trainer.folder.sample_sheet(trainer.step), step=trainer.step)
    log.close()


def checkpoint_bytes(trainer: Trainer) -> int:
    """Estimated size of a checkpoint of all ranks: weights, average, AdamW's moments and float32 master weights."""
    total, trained = _parameters(trainer)
    zero, precision = trainer.config.deepspeed.zero_stage, trainer.config.training.precision
    # Stage 3 saves trained weights as the optimizer's master copy alone.
    weights = (total - trained if zero == 3 else total) * DTYPES[precision].itemsize
    master = trained * 4 if zero > 0 or precision != "fp32" else 0
    moments = trained * 8
    # Without ZeRO every rank saves the whole average.
    average = 0 if trainer.ema is None else trained * 4 * (trainer.world_size if zero == 0 else 1)
    return weights + master + moments + average


def _parameters(trainer: Trainer) -> tuple[int, int]:
    """How many there are, and how many of them are trained."""
    sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in trainer.model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _disk_needed(trainer: Trainer, *, saved: int) -> int:
    """Bytes that checkpoints yet to come and the export take at most, while the oldest is still there."""
    training = trainer.config.training
    to_come = -(-(training.max_steps - trainer.step) // training.checkpoint_steps)
    at_once = min(training.checkpoints_kept + 1, saved + to_come)
    export = _parameters(trainer)[0] * DTYPES[training.export_dtype].itemsize
    return max(at_once - saved, 0) * checkpoint_bytes(trainer) + export


def _check_disk(trainer: Trainer, folder: Path, *, saved: int) -> None:
    free, needed = shutil.disk_usage(folder).free, _disk_needed(trainer, saved=saved)
    if free < needed:
        raise UserError(
            f"output_dir: {_size(free)} are free on its disk, but checkpoints (training.checkpoints_kept "
            f"{trainer.config.training.checkpoints_kept}, about {_size(checkpoint_bytes(trainer))} each) and the "
            f"export need {_size(needed)}"
        )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _summary(
    trainer: Trainer,
    steps: list[TrainingStep],
    *,
    start: int,
    resumed_from: Path | None,
    memory: int,
    crop_seconds: float,
) -> str:
    config = trainer.config
    total, trained = _parameters(trainer)
    latent = config.data.crop_size // trainer.restoration.latents.shape.downscale
    height, width = trainer.restoration.backbone.feature_size(trainer.model, latent, latent)
    heads = adapter_for(trainer.model).channels
    left = config.training.max_steps - start
    rows = {
        "model": f"{type(trainer.model).__name__}, {total:,} parameters, {trained:,} of them trained",
        "tokens" if heads is None else "teacher's map": f"{height * width} a crop ({height} x {width})",
        "batch": f"{config.training.batch_size} a rank x {config.training.gradient_accumulation_steps} accumulated x "
        f"{trainer.world_size} rank(s)",
        "engine": f"DeepSpeed ZeRO {config.deepspeed.zero_stage}, {config.training.precision}, {trainer.device.type}",
        "peak memory": f"{_size(memory)} on the rank that takes most",
        "checkpoint": f"about {_size(checkpoint_bytes(trainer))}",
        "begins": "anew" if resumed_from is None else f"after step {start}, from {resumed_from}",
    }
    if steps:
        time = steps[-1].time
        rows["step"] = f"{time.seconds:.3g} s, {time.images_per_second:.3g} images/s"
        rows["steps left"] = f"{left}, about {_duration(left * time.seconds)} without evaluation and checkpoints"
        rows["loss"] = ", ".join("skipped" if at.loss is None else f"{at.loss:.4g}" for at in steps)
    else:
        rows["steps left"] = "none"
    crops, evaluations = len(trainer.heldout.names), evaluations_left(config, step=start)
    rows["evaluation"] = (
        f"{crops} crops x {evaluations} time(s), about {_duration(crops * evaluations * crop_seconds)} in all"
    )
    width = max(map(len, rows))
    lines = "".join(f"  {name.ljust(width)}  {value}\n" for name, value in rows.items())
    return f"the run would start:\n{lines}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} TiB"
