"""The configuration of a training run: one class a section of the YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from framer.config.base import ConfigSection
from framer.config.data import DataConfig, EvaluationConfig
from framer.config.distillation import FramerConfig, chosen_method
from framer.config.distributed import DistributedConfig
from framer.config.engine import ActivationCheckpointingConfig, DeepSpeedConfig, LossScalingConfig
from framer.config.health import EmaConfig, HealthConfig
from framer.config.model import ModelConfig
from framer.config.objective import NUM_TRAIN_TIMESTEPS, ObjectiveConfig
from framer.config.trackers import TrackersConfig
from framer.config.types import Fraction, NonEmptyText, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class OptimizerConfig(ConfigSection):
    """AdamW."""

    lr: PositiveFloat = 5e-5
    """Peak learning rate."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decay of the averages of the gradient and of its square."""
    weight_decay: NonNegativeFloat = 1e-2
    """Part of each weight that a step takes away, times the learning rate."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the average squared gradient before it divides."""


class LrSchedulerConfig(ConfigSection):
    """Learning rate as a function of the optimizer step."""

    type: Literal["constant", "cosine", "linear"] = "constant"
    """Shape after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up from 0."""
    final_fraction: Fraction = 0.0
    """Learning rate at ``training.max_steps`` as a fraction of the peak (``cosine`` and ``linear``)."""


class TrainingConfig(ConfigSection):
    """The loop."""

    max_steps: PositiveInt = 1000
    """Optimizer steps."""
    batch_size: PositiveInt = 16
    """Samples of one rank in one forward pass."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forward passes an optimizer step."""
    gradient_clipping: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 does not clip."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Compute precision of the transformer; the loss is always computed in fp32, master weights are too."""
    loss_scaling: LossScalingConfig = LossScalingConfig()
    """Loss scaling of ``fp16``."""
    ema: EmaConfig = EmaConfig()
    """Average of the weights, used for evaluation and export."""
    activation_checkpointing: ActivationCheckpointingConfig = ActivationCheckpointingConfig()
    """Recompute blocks in the backward pass instead of keeping their activations: ``true``, ``false`` or a section."""
    export_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the exported weights."""
    checkpoint_steps: PositiveInt = 500
    """Steps between checkpoints; one is also written at the end."""
    checkpoints_kept: PositiveInt = 2
    """Newest checkpoints that stay on disk."""
    checkpoint_keep_every: NonNegativeInt = 0
    """Checkpoints at multiples of this many steps stay for good; 0: none does. A multiple of ``checkpoint_steps``."""
    checkpoint_async: bool = False
    """Write checkpoints in the background; takes CPU memory as large as a rank's files."""
    sample_steps: NonNegativeInt = 0
    """Steps between sample sheets; 0 writes none on the way. There is one at the end, and before the first step where
    ``model.pretrained`` is given."""
    resume: str = "auto"
    """``auto`` (continue from the newest checkpoint in ``output_dir``, if any), ``never``, or a checkpoint folder."""

    @model_validator(mode="after")
    def _checkpoints_are_written_when_kept(self) -> TrainingConfig:
        if self.checkpoint_keep_every % self.checkpoint_steps:
            raise ValueError(
                f"checkpoint_keep_every {self.checkpoint_keep_every} is not a multiple of checkpoint_steps "
                f"{self.checkpoint_steps}: no checkpoint is written then"
            )
        return self


TEACHER_DECAY: Final = 0.9999
"""``training.ema.decay`` where the average teaches and none is given."""


class TrainConfig(ConfigSection):
    """A training run, from its photographs to its report."""

    output_dir: NonEmptyText
    """The run folder; created if needed. Rerunning with the same folder continues (``training.resume``)."""
    seed: NonNegativeInt = 0
    """Seed of initial weights, crops, degradations, noise, timesteps and random-layer negatives."""
    framer: FramerConfig = FramerConfig()
    """The loss that aligns layers."""
    data: DataConfig = DataConfig()
    """Photographs, crops and degradations."""
    model: ModelConfig = ModelConfig()
    """The model, what it diffuses, and which of its parameters train."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The loss beside the one that aligns layers."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    lr_scheduler: LrSchedulerConfig = LrSchedulerConfig()
    """The learning rate over the run."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batches, precision and checkpoints."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    """How the model is spread over memory and ranks."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How held-out photographs are restored and measured."""
    health: HealthConfig = HealthConfig()
    """When a run warns, skips a step, and stops."""
    trackers: TrackersConfig = TrackersConfig()
    """Programs that show the run's numbers."""
    distributed: DistributedConfig = DistributedConfig()
    """How long ranks wait for each other."""

    @model_validator(mode="before")
    @classmethod
    def _average_that_teaches(cls, data: object) -> object:
        """Turns the average of the weights on where it teaches and nothing is said about it."""
        if not isinstance(data, Mapping):
            return data
        framer, training = data.get("framer"), data.get("training", {})
        if not isinstance(framer, Mapping) or not isinstance(training, Mapping):
            return data
        teaches = framer.get("teacher") == "ema" or chosen_method(framer) == "sra"
        average = training.get("ema", {})
        if not teaches or framer.get("enabled") is False or not isinstance(average, Mapping) or "decay" in average:
            return data
        return {**data, "training": {**training, "ema": {**average, "decay": TEACHER_DECAY}}}

    @model_validator(mode="after")
    def _sections_fit_together(self) -> TrainConfig:
        architecture = self.model.architecture
        if self.model.pretrained is None and self.model.latents != "vae" and architecture.type == "sd3":
            patch = architecture.patch_size
            if self.data.crop_size % patch:
                raise ValueError(
                    f"data.crop_size {self.data.crop_size} is not a multiple of model.architecture.patch_size {patch}"
                )
            for height, width in self.data.buckets:
                if height % patch or width % patch:
                    raise ValueError(
                        f"data.buckets: [{height}, {width}] is not a multiple of model.architecture.patch_size {patch}"
                    )
        if self.evaluation.crop_size % self.data.scale:
            raise ValueError(
                f"evaluation.crop_size {self.evaluation.crop_size} is not a multiple of data.scale {self.data.scale}"
            )
        if self.evaluation.crop_size < self.data.crop_size:
            raise ValueError(
                f"evaluation.crop_size {self.evaluation.crop_size} is smaller than data.crop_size "
                f"{self.data.crop_size}, the tile of inference"
            )
        if self.training.precision != "fp32" and self.deepspeed.zero_stage < 2:
            raise ValueError(
                f"training.precision {self.training.precision} needs deepspeed.zero_stage 2 or 3, got "
                f"{self.deepspeed.zero_stage}: in stage 0 DeepSpeed sums gradients in low precision, and in stage 1 it "
                "takes another optimizer, which keeps all gradients in float32 on every rank; on one rank stage 2 "
                "costs nothing"
            )
        if self.model.compile_blocks and self.deepspeed.zero_stage == 3:
            raise ValueError(
                "model.compile_blocks with deepspeed.zero_stage 3: DeepSpeed gathers parameters between a block's "
                "modules, so that hardly anything would be compiled; use stage 2, or do not compile"
            )
        objective, space = self.objective.type, self.framer.feature_space
        if self.framer.enabled and space != "hidden" and objective != "flow_matching":
            raise ValueError(
                f"framer.feature_space {space} with objective.type {objective}: that space undoes the noise of flow "
                "matching; set framer.feature_space to hidden"
            )
        if self.framer.enabled and self.framer.method == "sra" and objective != "flow_matching":
            raise ValueError(
                f"framer.method sra with objective.type {objective}: its teacher sees flow matching's noise at a lower "
                "level; choose another method"
            )
        if self.model.conditioning == "none" and objective != "one_step":
            raise ValueError(
                f"model.conditioning none with objective.type {objective}: the model would never see the low-"
                "resolution image; set model.conditioning to concat, or objective.type to one_step"
            )
        if self.model.conditioning == "controlnet" and objective == "one_step":
            raise ValueError(
                "model.conditioning controlnet with objective.type one_step, whose input is the low-resolution image "
                "already; choose another objective, or set model.conditioning to none or concat"
            )
        if objective == "one_step" and self.objective.csd_weight and self.objective.csd_base is None:
            raise ValueError(
                f"objective.csd_weight {self.objective.csd_weight} needs objective.csd_base, the diffusers folder of "
                "the frozen model that score distillation asks"
            )
        if self.model.negative_text_embeddings is not None and not self.objective.csd_weight:
            raise ValueError(
                "model.negative_text_embeddings has no effect without score distillation (objective.csd_weight); leave "
                "it out"
            )
        if objective == "one_step" and self.model.latents == "residual":
            raise ValueError(
                "objective.type one_step with model.latents residual: one step subtracts the model's output from the "
                "low-resolution image's latents, and the residual has none; set model.latents to pixel"
            )
        if objective == "diffusion" and self.evaluation.num_inference_steps > NUM_TRAIN_TIMESTEPS:
            raise ValueError(
                f"evaluation.num_inference_steps {self.evaluation.num_inference_steps} exceeds the "
                f"{NUM_TRAIN_TIMESTEPS} timesteps of objective.type diffusion"
            )
        if self.framer.enabled and self.framer.teacher == "ema" and self.training.ema.decay is None:
            raise ValueError(
                f"framer.teacher ema (method {self.framer.method}) needs training.ema.decay, got null; set it to "
                "0.9999, for example"
            )
        if self.framer.enabled and self.framer.method == "repa" and self.framer.repa.encoder is None:
            raise ValueError(
                "framer.method repa needs framer.repa.encoder: the folder of a vision model of transformers, such as "
                "DINOv2"
            )
        if self.lr_scheduler.warmup_steps > self.training.max_steps:
            raise ValueError(
                f"lr_scheduler.warmup_steps {self.lr_scheduler.warmup_steps} exceeds "
                f"training.max_steps {self.training.max_steps}"
            )
        return self
