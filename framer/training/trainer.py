"""The training loop."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist

from framer.alignment import attach_heads_of, repa_encoder
from framer.analysis.history import AlignmentMetrics, LayerMetrics
from framer.config.loading import save_config
from framer.config.training import TrainConfig
from framer.data.evaluation_photographs import check_apart
from framer.data.outputs import sole_writer
from framer.data.samples import Sample
from framer.data.sources import null_text, with_data_settings
from framer.data.workers import dead_workers_named
from framer.distill import Framer
from framer.errors import UserError
from framer.extras import require
from framer.features.adapters import adapter_for
from framer.files import write_text
from framer.flops import model_flops_per_sample
from framer.models.build import build_model
from framer.models.controlled import ControlledModel
from framer.models.folders import controlnet_folder, pretrained_folder
from framer.models.restoration import check_restoration
from framer.models.restoration_model import RestorationModel
from framer.models.trainable import freeze_the_rest, trainable_parameters
from framer.seeding import derived_seed, seed_generators
from framer.training import checkpoint as checkpoints
from framer.training.activation_checkpointing import enable_activation_checkpointing
from framer.training.attention import check_backend, use_backend
from framer.training.batches import build_dataset, stream_batches
from framer.training.checkpoint_choice import choose_checkpoint
from framer.training.checkpoint_folder import clear_unfinished, find_checkpoints
from framer.training.checks import check_compilation, check_latents, check_sizes, check_texts
from framer.training.effective_config import effective_config
from framer.training.ema import Ema
from framer.training.engine import check_engine, release_gathered, start_engine, step
from framer.training.evaluation import Evaluated, evaluated_before, load_heldout, restore_heldout, samples_due
from framer.training.export import export_model
from framer.training.forward import ForwardPass
from framer.training.hardware import memory_use, peak_flops
from framer.training.health import (
    SkippedSteps,
    spoiled_if_not_finite,
)
from framer.training.metrics import MetricsLog, StepTime, TrainingStep, last_step
from framer.training.partitioning import build_partitioned_model
from framer.training.preemption import PreemptedError, Preemption
from framer.training.ranks import max_over_ranks, on_rank_zero, start_distributed
from framer.training.rendezvous import read_place
from framer.training.report import write_run_report, write_samples
from framer.training.run_folder import RunFolder
from framer.training.schedule import learning_rate
from framer.training.shares import EMA
from framer.training.skipping import count_skipped
from framer.training.stall import stall_warnings
from framer.training.step_losses import MicroStep, alignment_metrics, layer_metrics, mean_losses, step_losses
from framer.training.trackers import open_trackers
from framer.training.trainer_state import TrainerState
from framer.training.watch import CollapseWatch
from framer.training.watchdog import watch_ranks

if TYPE_CHECKING:
    from diffusers import ModelMixin

_PATIENCE_SECONDS: Final = 10.0
"""A launcher may start a run again while the ranks that it has killed are still ending."""


class Trainer:
    """Trains one model as its configuration says.

    Everything that a user can get wrong is checked while constructing, before the first step.

    Args:
        config: The run.

    Raises:
        UserError: A folder, photograph, model or checkpoint is missing, damaged or does not fit.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config = with_data_settings(config)
        self.folder = RunFolder(Path(config.output_dir).expanduser())
        check_latents(config)
        self.dataset = build_dataset(config)
        self.null_text = null_text(config.data)
        self.heldout = load_heldout(config)
        for folder in (pretrained_folder(config.model), controlnet_folder(config.model)):
            if folder is not None:
                check_restoration(folder, config)
        check_engine(config)
        start_distributed(config.distributed)
        on_rank_zero(lambda: check_apart(config))
        # Before a large model is built.
        check_backend(config)
        if config.deepspeed.zero_stage == 3:
            model = build_partitioned_model(config)
        else:
            model = build_model(config.model, seed=config.seed)
        check_sizes(model, config)
        check_texts(model, config, self.null_text)
        check_compilation(model, config)
        use_backend(model, config)
        freeze_the_rest(model, trainable_parameters(model, config.model))
        encoder = repa_encoder(config.framer)
        seed = derived_seed(config.seed, "projectors", config.framer.seed)
        attach_heads_of(adapter_for(model).model, config.framer, seed=seed, encoder=encoder)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        on_rank_zero(self._prepare_folder)
        resumed_from = choose_checkpoint(config.training.resume, self.folder.checkpoints)
        seed_generators(derived_seed(config.seed, "rank", self.rank))
        self.engine = start_engine(model, config)
        self.device = torch.device(self.engine.device)
        self.model: ModelMixin = self.engine.module
        if config.model.compile_blocks:
            beside = self.model.control_blocks.values() if isinstance(self.model, ControlledModel) else ()
            for block in (*adapter_for(self.model).blocks, *beside):
                block.compile()
        enable_activation_checkpointing(self.model, config.training.activation_checkpointing)
        self.framer: Framer | None = None
        if config.framer.enabled:
            seed = derived_seed(config.seed, "negatives", config.framer.seed)
            self.framer = Framer(
                self.model,
                config.framer.model_copy(update={"seed": seed}),
                prediction_type=config.objective.feature_prediction,
                encoder=encoder.to(self.device) if encoder is not None else None,
            )
        average = config.training.ema
        self.ema = Ema(self.engine, average) if average.decay is not None else None
        self.restoration = RestorationModel(self.model, config.model, self.device, null_text=self.null_text)
        self.forward = ForwardPass(
            self.restoration, config, self.framer, null_text=self.null_text, averaged=self._averaged_weights
        )
        self.checkpointer = checkpoints.Checkpointer(self.folder.checkpoints, config.training)
        self.preemption = Preemption()
        self.step = 0
        self.micro_steps = 0
        self.saved_step = 0
        self.skipped = SkippedSteps()
        self.collapse = CollapseWatch()
        # Rank 0 writes the metrics.
        self.sample_flops = _sample_flops(config) if self.rank == 0 else None
        self.peak_flops = peak_flops(config)
        if resumed_from is not None:
            self._restore(resumed_from)
            self.checkpointer.remove_old()
        on_rank_zero(self._write_settings)

    def _prepare_folder(self) -> None:
        self.folder.create()
        clear_unfinished(self.folder.checkpoints)

    def _write_settings(self) -> None:
        write_text(self.folder.config, save_config(self.config))
        write_text(self.folder.deepspeed, effective_config(self.engine))

    def train(self) -> Path:
        """Takes the remaining steps, then exports the model and writes the report.

        Returns:
            The report's path.

        Raises:
            NonFiniteLossError: Weights are not finite, or too many steps in a row; the last checkpoint is intact.
            PreemptedError: A scheduler asked the run to stop; it is saved.
            UserError: The disk is full.
        """
        with self.preemption:
            try:
                return self._take_steps()
            except PreemptedError:
                # Out here the model is what it is in training, wherever the signal was noticed.
                if self.saved_step != self.step:
                    self._save()
                self.checkpointer.finish()
                raise

    def _take_steps(self) -> Path:
        settings = self.config.training
        batches = self._batches(settings.max_steps - self.step)
        log = self._open_log()
        progress = require("tqdm", extra="train").tqdm(
            initial=self.step, total=settings.max_steps, desc="train", unit="step", disable=self.rank != 0
        )
        self.model.train()
        try:
            if evaluated_before(self.config, step=self.step):
                self._write_samples(log)
            self._write_missed_samples(log)
            while self.step < settings.max_steps:
                metrics = self._optimizer_step(batches)
                if log is not None:
                    log.write(metrics)
                progress.update()
                progress.set_postfix(loss="skipped" if metrics.loss is None else f"{metrics.loss:.4f}")
                last = self.step == settings.max_steps
                stopped_by = self._agree()
                if last or stopped_by or self.step % settings.checkpoint_steps == 0:
                    if log is not None:
                        log.sync()
                    self._save()
                if stopped_by:
                    raise PreemptedError(stopped_by, self.step)
                if samples_due(self.config, step=self.step):
                    self._write_samples(log)
            progress.close()
            return self._finish(log)
        finally:
            progress.close()
            if log is not None:
                log.close()

    def rehearse(self, steps: int) -> list[TrainingStep]:
        """Takes optimizer steps that are neither logged nor saved; every rank must call it.

        Raises:
            NonFiniteLossError: Weights are not finite, or too many steps in a row.
        """
        batches = self._batches(steps)
        self.model.train()
        return [self._optimizer_step(batches) for _ in range(steps)]

    def _batches(self, steps: int) -> Iterator[Sample]:
        return stream_batches(
            self.dataset,
            self.config,
            rank=self.rank,
            world_size=self.world_size,
            start=self.micro_steps,
            count=steps * self.config.training.gradient_accumulation_steps,
        )

    def _optimizer_step(self, batches: Iterator[Sample]) -> TrainingStep:
        settings = self.config.training
        rate = learning_rate(
            self.step,
            peak=self.config.optimizer.lr,
            max_steps=settings.max_steps,
            config=self.config.lr_scheduler,
        )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        started = time.perf_counter()
        waited = 0.0
        parts: list[MicroStep] = []
        for _ in range(settings.gradient_accumulation_steps):
            asked = time.perf_counter()
            with stall_warnings(self.config.health.stall_seconds, rank=self.rank, workers=self.config.data.workers):
                batch = next(batches)
            waited += time.perf_counter() - asked
            parts.append(self._micro_step(batch))
            self.micro_steps += 1
        self.step += 1
        outcome = parts[-1].outcome
        losses = mean_losses(parts)
        reason: str | None = None
        if outcome.skipped:
            reason = count_skipped(
                self.skipped,
                parts,
                losses,
                model=self.model,
                forward=self.forward,
                config=self.config,
                step=self.step,
                advice=self._advice(),
            )
        else:
            self.skipped.consecutive = 0
            if self.ema is not None:
                self.ema.update()
        seconds = time.perf_counter() - started
        images = settings.batch_size * settings.gradient_accumulation_steps * self.world_size
        taken = not outcome.skipped
        layers: LayerMetrics | None = None
        alignment: AlignmentMetrics | None = None
        if taken and self.framer is not None:
            names, method = self.framer.layer_names, self.config.framer.method
            if method == "framer":
                layers = layer_metrics(losses, names)
            else:
                alignment = alignment_metrics(losses, method, names)
        warning = None if layers is None else self.collapse.observe(layers)
        if warning is not None and self.rank == 0:
            sys.stderr.write(f"\nwarning: step {self.step}: {warning}\n")
        return TrainingStep(
            step=self.step,
            loss=float(losses.loss) if taken else None,
            noise_loss=float(losses.noise_loss) if taken else None,
            framer_loss=float(losses.framer_loss) if taken and self.framer is not None else None,
            gradient_norm=outcome.gradient_norm,
            learning_rate=rate,
            samples=self.step * images,
            layers=layers,
            alignment=alignment,
            skipped=outcome.skipped,
            skip_reason=reason,
            skipped_steps=self.skipped.total,
            overflow_steps=self.skipped.overflows,
            time=StepTime.of(
                seconds=seconds,
                waited=waited,
                images=images,
                ranks=self.world_size,
                sample_flops=self.sample_flops,
                peak=self.peak_flops,
            ),
            memory=memory_use(),
        )

    def _micro_step(self, batch: Sample) -> MicroStep:
        losses = self.forward.losses(self.engine, batch)
        self.engine.backward(spoiled_if_not_finite(losses.noise + losses.framer))
        outcome = step(self.engine)
        return MicroStep(step_losses(losses), batch, outcome)

    def _advice(self) -> str:
        saved = find_checkpoints(self.folder.checkpoints)
        last = f"the last checkpoint is {saved[-1]}" if saved else "no checkpoint was written yet"
        return f"Try a lower optimizer.lr or training.gradient_clipping; {last}."

    def _open_log(self) -> MetricsLog | None:
        log: MetricsLog | None = None

        def open_log() -> None:
            nonlocal log
            logged = last_step(self.folder.metrics)
            trackers = open_trackers(self.config, self.folder, start_step=self.step, last_logged=logged)
            log = MetricsLog(self.folder.metrics, trackers=trackers, start_step=self.step)

        on_rank_zero(open_log)
        return log

    def _state(self) -> TrainerState:
        return TrainerState(
            step=self.step,
            micro_steps=self.micro_steps,
            framer=dict(self.framer.state_dict()) if self.framer is not None else {},
            world_size=self.world_size,
            config=self.config.model_dump(mode="json"),
            # Through JSON and back, so that it equals what a checkpoint's file says.
            model=json.loads(json.dumps({k: v for k, v in self.model.config.items() if not k.startswith("_")})),
            model_class=type(self.model).__name__,
            skipped=self.skipped.state_dict(),
        )

    def _save(self) -> None:
        self.checkpointer.save(self.engine, self._state(), rank_state=self._rank_state())
        self.saved_step = self.step

    def _agree(self) -> int:
        """The signal that any rank was sent, or 0; also publishes a checkpoint that all ranks have written by now."""
        signal, busy = max_over_ranks([self.preemption.pending, int(self.checkpointer.busy)], self.device)
        if not busy:
            self.checkpointer.finish()
        return signal

    def _stop_if_asked(self) -> None:
        stopped_by = self._agree()
        if stopped_by:
            release_gathered(self.engine)
            raise PreemptedError(stopped_by, self.step)

    def _restore(self, path: Path) -> None:
        state, rank_state = checkpoints.load_checkpoint(
            self.engine, path, expected=self._state(), scratch=self.folder.checkpoints
        )
        if state.step > self.config.training.max_steps:
            raise UserError(
                f"{path} has taken {state.step} steps, more than training.max_steps {self.config.training.max_steps}"
            )
        self.step, self.micro_steps, self.saved_step = state.step, state.micro_steps, state.step
        self.skipped = SkippedSteps(**state.skipped)
        if self.framer is not None and state.framer:
            self.framer.load_state_dict(state.framer)
        self._load_rank_state(rank_state)

    def _rank_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of this rank alone."""
        return {} if self.ema is None else {EMA: self.ema.state_dict()}

    def _load_rank_state(self, state: dict[str, Any]) -> None:
        if self.ema is not None:
            self.ema.load_state_dict(state.get(EMA, {}))

    def _write_missed_samples(self, log: MetricsLog | None) -> None:
        """Writes those of the step resumed from, where the run was stopped before it could."""
        if samples_due(self.config, step=self.step) and not on_rank_zero(
            lambda: self.folder.sample_table(self.step).is_file()
        ):
            self._write_samples(log)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The average of the weights in the model's place, where there is one; every rank must enter and leave."""
        with nullcontext() if self.ema is None else self.ema.swapped_in():
            yield
            release_gathered(self.engine)

    def _evaluate(self) -> Evaluated:
        evaluated = restore_heldout(self.restoration, self.heldout, self.config, before_each=self._stop_if_asked)
        release_gathered(self.engine)
        return evaluated

    def _write_samples(self, log: MetricsLog | None) -> None:
        with self._averaged_weights():
            evaluated = self._evaluate()
        if self.rank == 0:
            write_samples(self.folder, evaluated, step=self.step)
            self._show_samples(log)

    def _show_samples(self, log: MetricsLog | None) -> None:
        if log is not None:
            log.write_image("samples", self.folder.sample_sheet(self.step), step=self.step)

    def _finish(self, log: MetricsLog | None) -> Path:
        self.checkpointer.finish()
        with self._averaged_weights():
            evaluated = self._evaluate()
            self._stop_if_asked()
            export_model(self.engine, self.config, self.folder.export, step=self.step, null_text=self.null_text)
            self._stop_if_asked()
            report = write_run_report(
                self.folder, self.config, self.restoration, evaluated, self.heldout, step=self.step
            )
        self._show_samples(log)
        return report


def _sample_flops(config: TrainConfig) -> float | None:
    try:
        return model_flops_per_sample(config)
    except UserError:  # a model that cannot be planned still trains, without these figures
        return None


def train(config: TrainConfig) -> Path:
    """Trains as the configuration says; the report's path.

    Raises:
        UserError: As :class:`Trainer` and its ``train``; or another process trains into the folder.
    """
    with watch_ranks(config), dead_workers_named(), _alone_in(config):
        return Trainer(config).train()


@contextmanager
def _alone_in(config: TrainConfig) -> Iterator[None]:
    """Lets no other run write into the folder; rank 0 holds the lock for all."""
    folder = Path(config.output_dir).expanduser()
    with ExitStack() as held:

        def lock() -> None:
            try:
                held.enter_context(sole_writer(folder, patience=_PATIENCE_SECONDS))
            except UserError as error:
                raise UserError(
                    f"output_dir: {error}; of a machine that crashed, a file server may keep the lock for minutes"
                ) from None

        if read_place(os.environ).world_size == 1:
            lock()
        else:
            start_distributed(config.distributed)
            on_rank_zero(lock)
        yield
