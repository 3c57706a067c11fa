"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from framer.analysis.history import LayerMetrics
from framer.config.loading import save_config
from framer.config.training import TrainConfig
from framer.data.dataset import Sample
from framer.distill import Framer, FramerOutput
from framer.errors import UserError
from framer.extras import require
from framer.files import write_text
from framer.models.build import build_transformer, pretrained_folder
from framer.models.conditioning import model_inputs
from framer.models.latents import build_latents
from framer.models.restoration import check_restoration
from framer.objectives import FlowMatching
from framer.seeding import derived_seed, seed_generators
from framer.training import checkpoint as checkpoints
from framer.training.batches import build_dataset, stream_batches
from framer.training.engine import NonFiniteGradientError, start_engine, step
from framer.training.evaluation import Evaluated, load_heldout, restore_heldout
from framer.training.export import export_model
from framer.training.health import NonFiniteLossError, first_non_finite_layer
from framer.training.metrics import MetricsLog, StepTime, TrainingStep
from framer.training.preemption import PreemptedError, Preemption
from framer.training.ranks import max_over_ranks, mean_over_ranks, on_rank_zero, start_distributed
from framer.training.report import write_run_report, write_samples
from framer.training.run_folder import RunFolder
from framer.training.schedule import learning_rate
from framer_kernels import BandSplit

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

LAYER_METRICS = ("intra", "inter", "weight_lf", "weight_hf", "align_lf", "align_hf")


class StepLosses(NamedTuple):
    """Means over the micro-steps and ranks of one optimizer step."""

    loss: Tensor
    noise_loss: Tensor
    framer_loss: Tensor
    layers: Tensor
    """``[6, N]``, in the order of ``LAYER_METRICS``; empty without FRAMER."""
    gradient_norm: Tensor
    """0 but in the last micro-step."""


class Trainer:
    """Trains one model as its configuration says.

    Everything that a user can get wrong is checked while constructing, before the first step.

    Args:
        config: The run.

    Raises:
        UserError: A folder, photograph, model or checkpoint is missing, damaged or does not fit.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.folder = RunFolder(Path(config.output_dir).expanduser())
        self.dataset = build_dataset(config)
        self.heldout = load_heldout(config)
        pretrained = pretrained_folder(config.model)
        if pretrained is not None:
            check_restoration(pretrained, config)
        transformer = build_transformer(config.model, seed=config.seed)
        _check_tokens(transformer, config)
        start_distributed()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        on_rank_zero(self._prepare_folder)
        resumed_from = checkpoints.choose_checkpoint(config.training.resume, self.folder.checkpoints)
        seed_generators(derived_seed(config.seed, "rank", self.rank))
        self.engine = start_engine(transformer, config)
        self.device = torch.device(self.engine.device)
        self.model: SD3Transformer2DModel = self.engine.module
        if config.training.activation_checkpointing.backend is not None:
            self.model.enable_gradient_checkpointing()
        self.latents = build_latents(config.model)
        self.objective = FlowMatching(config.objective)
        self.framer: Framer | None = None
        if config.framer.enabled:
            seed = derived_seed(config.seed, "negatives", config.framer.seed)
            self.framer = Framer(
                self.model,
                config.framer.model_copy(update={"seed": seed}),
                prediction_type=config.objective.prediction_type,
            )
        self.checkpointer = checkpoints.Checkpointer(self.folder.checkpoints, config.training)
        self.preemption = Preemption()
        self.step = 0
        self.micro_steps = 0
        self.saved_step = 0
        if resumed_from is not None:
            self._restore(resumed_from)
        on_rank_zero(lambda: write_text(self.folder.config, save_config(config)))

    def _prepare_folder(self) -> None:
        self.folder.create()
        checkpoints.clear_unfinished(self.folder.checkpoints)

    def train(self) -> Path:
        """Takes the remaining steps, then exports the model and writes the report.

        Returns:
            The report's path.

        Raises:
            NonFiniteLossError: The loss is not finite; the last checkpoint is intact.
            PreemptedError: A scheduler asked the run to stop; it is saved.
            UserError: The disk is full.
        """
        with self.preemption:
            try:
                self._take_steps()
                return self._finish()
            except PreemptedError:
                # Out here the model is what it is in training, wherever the signal was noticed.
                if self.saved_step != self.step:
                    self._save()
                self.checkpointer.finish()
                raise

    def _take_steps(self) -> None:
        settings = self.config.training
        batches = stream_batches(
            self.dataset,
            self.config,
            rank=self.rank,
            world_size=self.world_size,
            start=self.micro_steps,
            count=(settings.max_steps - self.step) * settings.gradient_accumulation_steps,
        )
        log = self._open_log()
        progress = require("tqdm", extra="train").tqdm(
            initial=self.step, total=settings.max_steps, desc="train", unit="step", disable=self.rank != 0
        )
        self.model.train()
        try:
            self._write_missed_samples()
            while self.step < settings.max_steps:
                metrics = self._optimizer_step(batches)
                if log is not None:
                    log.write(metrics)
                progress.update()
                progress.set_postfix(loss=f"{metrics.loss:.4f}")
                last = self.step == settings.max_steps
                stopped_by = self._agree()
                if last or stopped_by or self.step % settings.checkpoint_steps == 0:
                    if log is not None:
                        log.sync()
                    self._save()
                if stopped_by:
                    raise PreemptedError(stopped_by, self.step)
                if self._samples_due():
                    self._write_samples()
        finally:
            progress.close()
            if log is not None:
                log.close()

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
        parts: list[StepLosses] = []
        for _ in range(settings.gradient_accumulation_steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            parts.append(self._micro_step(batch))
            self.micro_steps += 1
        self.step += 1
        losses = StepLosses(*(mean_over_ranks(torch.stack(values).mean(dim=0)) for values in zip(*parts, strict=True)))
        seconds = time.perf_counter() - started
        images = settings.batch_size * settings.gradient_accumulation_steps * self.world_size
        return TrainingStep(
            step=self.step,
            loss=float(losses.loss),
            noise_loss=float(losses.noise_loss),
            framer_loss=float(losses.framer_loss) if self.framer is not None else None,
            gradient_norm=float(parts[-1].gradient_norm),
            learning_rate=rate,
            samples=self.step * images,
            layers=self._layer_metrics(losses.layers),
            time=StepTime(seconds=seconds, images_per_second=images / seconds, data_wait_fraction=waited / seconds),
        )

    def _micro_step(self, batch: Sample) -> StepLosses:
        dtype = next(self.model.parameters()).dtype
        upsampled = batch["lr_upsampled"].to(self.device)
        noisy = self.objective.add_noise(
            self.latents.encode(batch["hr"].to(self.device), upsampled),
            torch.as_tensor(batch["index"]).tolist(),
            self.config.seed,
        )
        condition = self.latents.condition(upsampled).to(dtype)
        inputs = model_inputs(self.model, noisy.sample.to(dtype), condition, noisy.timesteps)
        out: FramerOutput | None = None
        if self.framer is None:
            output = self.engine(**inputs).sample
        else:
            with self.framer.capture():
                output = self.engine(**inputs).sample
            out = self.framer.loss(sample=noisy.sample, sigmas=noisy.sigmas)
        noise_loss = self.objective.loss(output, noisy)
        framer_loss = noise_loss.new_zeros(()) if out is None else out.total
        loss = noise_loss + framer_loss
        if not math.isfinite(float(mean_over_ranks(loss.detach()))):
            self._fail(inputs, float(noise_loss.detach()), float(framer_loss.detach()))
        self.engine.backward(loss)
        norm = torch.tensor(self._engine_step(), device=self.device)
        layers = torch.empty(0, device=self.device) if out is None else _mean_diagnostics(out)
        return StepLosses(loss.detach(), noise_loss.detach(), framer_loss.detach(), layers, norm)

    def _engine_step(self) -> float:
        try:
            return step(self.engine)
        except NonFiniteGradientError as error:
            raise NonFiniteLossError(
                f"step {self.step + 1}: the gradient is not finite although the loss is ({error}). {self._advice()}"
            ) from None

    def _advice(self) -> str:
        saved = checkpoints.find_checkpoints(self.folder.checkpoints)
        last = f"the last checkpoint is {saved[-1]}" if saved else "no checkpoint was written yet"
        return f"Try a lower optimizer.lr or training.gradient_clipping; {last}."

    def _fail(self, inputs: dict[str, Tensor], noise_loss: float, framer_loss: float) -> None:
        layer = first_non_finite_layer(self.model, inputs)
        where = f"the first layer whose output is not finite is {layer}" if layer else "every layer's output is finite"
        raise NonFiniteLossError(
            f"step {self.step + 1}: the loss is not finite (noise loss {noise_loss:g}, FRAMER loss "
            f"{framer_loss:g}); {where}. {self._advice()}"
        )

    def _layer_metrics(self, layers: Tensor) -> LayerMetrics | None:
        if self.framer is None:
            return None
        values = dict(zip(LAYER_METRICS, layers.tolist(), strict=True))
        return LayerMetrics(names=list(self.framer.layer_names), **values)

    def _open_log(self) -> MetricsLog | None:
        tensorboard = self.folder.tensorboard if self.config.training.tensorboard else None
        log: MetricsLog | None = None

        def open_log() -> None:
            nonlocal log
            log = MetricsLog(self.folder.metrics, tensorboard=tensorboard, start_step=self.step)

        on_rank_zero(open_log)
        return log

    def _state(self) -> checkpoints.TrainerState:
        return checkpoints.TrainerState(
            step=self.step,
            micro_steps=self.micro_steps,
            framer=dict(self.framer.state_dict()) if self.framer is not None else {},
            world_size=self.world_size,
            config=self.config.model_dump(mode="json"),
            # Through JSON and back, so that it equals what a checkpoint's file says.
            model=json.loads(json.dumps({k: v for k, v in self.model.config.items() if not k.startswith("_")})),
        )

    def _save(self) -> None:
        self.checkpointer.save(self.engine, self._state())
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
            raise PreemptedError(stopped_by, self.step)

    def _restore(self, path: Path) -> None:
        state, _ = checkpoints.load_checkpoint(
            self.engine, path, expected=self._state(), scratch=self.folder.checkpoints
        )
        if state.step > self.config.training.max_steps:
            raise UserError(
                f"{path} has taken {state.step} steps, more than training.max_steps {self.config.training.max_steps}"
            )
        self.step, self.micro_steps, self.saved_step = state.step, state.micro_steps, state.step
        if self.framer is not None and state.framer:
            self.framer.load_state_dict(state.framer)

    def _samples_due(self) -> bool:
        every, last = self.config.training.sample_steps, self.step == self.config.training.max_steps
        return every > 0 and self.step > 0 and self.step % every == 0 and not last

    def _write_missed_samples(self) -> None:
        """Writes those of the step resumed from, where the run was stopped before it could."""
        if self._samples_due() and not on_rank_zero(lambda: self.folder.sample_table(self.step).is_file()):
            self._write_samples()

    def _write_samples(self) -> None:
        evaluated = self._evaluate()
        if self.rank == 0:
            write_samples(self.folder, evaluated, step=self.step)

    def _evaluate(self) -> Evaluated:
        return restore_heldout(self.model, self.heldout, self.config, self.device, before_each=self._stop_if_asked)

    def _finish(self) -> Path:
        self.checkpointer.finish()
        evaluated = self._evaluate()
        self._stop_if_asked()
        export_model(self.engine, self.config, self.folder.export)
        self._stop_if_asked()
        return write_run_report(
            self.folder, self.config, self.model, evaluated, self.heldout, step=self.step, device=self.device
        )


def train(config: TrainConfig) -> Path:
    """Trains as the configuration says; the report's path."""
    return Trainer(config).train()


def _mean_diagnostics(out: FramerOutput) -> Tensor:
    return torch.stack([getattr(out.layers, name).float().mean(dim=1) for name in LAYER_METRICS])


def _check_tokens(model: SD3Transformer2DModel, config: TrainConfig) -> None:
    patch, largest = int(model.config.patch_size), int(model.config.pos_embed_max_size)
    crop = config.data.crop_size
    if crop % patch or crop // patch > largest:
        raise UserError(
            f"data.crop_size {crop}: the model needs a multiple of its patch size {patch}, at most {patch * largest}"
        )
    side = crop // patch if config.framer.feature_space == "hidden" else crop
    if config.framer.enabled and config.framer.bands == "radial":
        try:
            BandSplit.radial(config.framer.cutoff).low_mask(torch.zeros(1, 1, side, side, dtype=torch.complex64))
        except ValueError as error:
            raise UserError(f"framer.cutoff {config.framer.cutoff} with data.crop_size {crop}: {error}") from None
    if config.evaluation.crop_size % patch:
        raise UserError(
            f"evaluation.crop_size {config.evaluation.crop_size}: the model needs a multiple of its patch size {patch}"
        )
