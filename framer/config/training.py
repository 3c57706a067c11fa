"""The configuration of a training run: one class a section of the YAML file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticKnownError

from framer.config.base import ConfigSection
from framer.config.distillation import FramerConfig

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonEmptyText = Annotated[str, Field(min_length=1)]
Degradation = Literal["heavy", "light", "stablesr"]


def _integer(value: object) -> object:
    """Refuses ``true`` and ``4.0`` where a Literal of integers takes them, as ``True == 1``."""
    if isinstance(value, bool | float):
        raise PydanticKnownError("int_type")
    return value


class DataConfig(ConfigSection):
    """Photographs, crops and degradations."""

    train: NonEmptyText = "bundled"
    """``bundled`` (the photographs that install with the package) or a folder of images, read recursively."""
    evaluation: NonEmptyText = "heldout"
    """``heldout`` (bundled photographs that nothing is trained or chosen on), ``validation`` (a bundled photograph to
    choose settings on) or a folder of images."""
    crop_size: PositiveInt = 64
    """Height and width of a training crop of the high-resolution photograph, in pixels."""
    scale: Annotated[Literal[2, 4, 8], BeforeValidator(_integer)] = 4
    """Upscaling factor."""
    degradation: Degradation = "light"
    """Preset of the second-order degradation: ``heavy`` (Real-ESRGAN), ``light`` (PiSA-SR), ``stablesr``."""
    horizontal_flip: bool = True
    """Mirror half of the crops."""
    quarter_turns: bool = False
    """Turn crops by 0, 90, 180 or 270 degrees; for few photographs."""
    rescale: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [1.0]
    """Sizes that photographs are used at, as factors up to 1, with equal probability."""
    colour_jitter: bool = False
    """Permute the colour channels and change gamma, brightness and saturation; for few photographs."""
    on_broken: Literal["skip", "error"] = "error"
    """What to do with files that cannot be read or are smaller than the crop: each is named either way."""
    workers: NonNegativeInt = 1
    """Processes that degrade crops while the model trains; 0 degrades in the training process."""

    @model_validator(mode="after")
    def _crop_is_a_multiple_of_scale(self) -> DataConfig:
        if self.crop_size % self.scale:
            raise ValueError(f"crop_size {self.crop_size} is not a multiple of scale {self.scale}")
        return self


class ArchitectureConfig(ConfigSection):
    """A ``diffusers.SD3Transformer2DModel`` to be trained from random weights."""

    patch_size: PositiveInt = 4
    num_layers: Annotated[int, Field(ge=3)] = 8
    """Transformer blocks; FRAMER needs at least two students and a teacher."""
    num_attention_heads: PositiveInt = 4
    attention_head_dim: PositiveInt = 32
    """Channels of a head; times the heads a multiple of 4, for the two-dimensional sine and cosine positions."""
    joint_attention_dim: PositiveInt = 32
    """Channels of the text tokens."""
    pooled_projection_dim: PositiveInt = 32
    """Channels of the pooled text embedding."""
    pos_embed_max_size: Annotated[int, Field(ge=2)] = 32
    """Largest token grid, in tokens a side."""
    qk_norm: Literal["rms_norm"] | None = "rms_norm"
    dual_attention_layers: list[NonNegativeInt] = []
    """Blocks with a second, image-only attention, as in SD3.5-medium; counted from 0."""

    @model_validator(mode="after")
    def _model_can_be_built(self) -> ArchitectureConfig:
        width = self.num_attention_heads * self.attention_head_dim
        if width % 4:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} times attention_head_dim {self.attention_head_dim} "
                f"is {width}, not a multiple of 4"
            )
        absent = [block for block in self.dual_attention_layers if block >= self.num_layers]
        if absent:
            raise ValueError(
                f"dual_attention_layers {absent}: num_layers is {self.num_layers}, so blocks are 0 to "
                f"{self.num_layers - 1}"
            )
        return self


class ModelConfig(ConfigSection):
    """The transformer and what it diffuses."""

    pretrained: str | None = None
    """``base`` (the small model that ships with the package), a diffusers folder, or null: random weights."""
    architecture: ArchitectureConfig = ArchitectureConfig()
    """Read only where ``pretrained`` is null."""
    conditioning: Literal["concat"] = "concat"
    """How the low-resolution image enters: joined to the noisy input by channels."""
    latents: Literal["pixel", "residual"] = "residual"
    """What is diffused: ``pixel``, the image in [-1, 1]; ``residual``, the image minus the bicubic upscaling."""
    latents_scale: PositiveFloat = 6.0
    """Factor that brings the residual to about unit variance; ``pixel`` ignores it."""


class ObjectiveConfig(ConfigSection):
    """Flow matching as Stable Diffusion 3 trains it (arXiv 2403.03206)."""

    prediction_type: Literal["velocity", "sample"] = "velocity"
    """What the model's output is: ``velocity``, noise minus clean sample, as SD3; ``sample``, the clean sample."""
    target: Literal["velocity", "x0"] = "velocity"
    """Where the squared error is measured: on the ``velocity``, or on the clean sample ``x0``."""
    logit_mean: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Mean of logit(sigma) before the shift."""
    logit_std: PositiveFloat = 1.0
    """Standard deviation of logit(sigma)."""
    timestep_shift: PositiveFloat = 3.0
    """SD3's resolution shift s: sigma -> s * sigma / (1 + (s - 1) * sigma), in training and inference."""


class OptimizerConfig(ConfigSection):
    """AdamW."""

    lr: PositiveFloat = 5e-5
    """Peak learning rate."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decay of the averages of the gradient and of its square."""
    weight_decay: NonNegativeFloat = 1e-2
    eps: PositiveFloat = 1e-8


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
    precision: Literal["fp32", "bf16"] = "fp32"
    """Compute precision of the transformer; the loss is always computed in fp32."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    export_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the exported weights."""
    checkpoint_steps: PositiveInt = 500
    """Steps between checkpoints; one is also written at the end."""
    checkpoints_kept: PositiveInt = 2
    """Newest checkpoints that stay on disk."""
    sample_steps: NonNegativeInt = 0
    """Steps between sample sheets; 0 writes one at the end only."""
    resume: str = "auto"
    """``auto`` (continue from the newest checkpoint in ``output_dir``, if any), ``never``, or a checkpoint folder."""
    tensorboard: bool = True
    """Write TensorBoard event files to ``output_dir/tensorboard``."""


class DeepSpeedConfig(ConfigSection):
    """The engine."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_integer)] = 0
    """Partitioning over ranks: 1 optimizer state, 2 also gradients, 3 also parameters."""
    stage3_param_persistence_threshold: NonNegativeInt = 100_000
    """Parameters with fewer elements are not partitioned in stage 3."""


class EvaluationConfig(ConfigSection):
    """Held-out photographs: sample sheets, PSNR and SSIM."""

    crop_size: Annotated[int, Field(ge=11)] = 256
    """Height and width of an evaluation crop, in pixels; SSIM needs 11."""
    crops_per_photo: PositiveInt = 1
    seed: NonNegativeInt = 0
    """Seed of the degradation and of the initial noise; independent of ``seed`` so that runs compare."""
    num_inference_steps: PositiveInt = 4
    """Euler steps of the flow from noise to image."""
    tile_overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    """Part of a tile that its neighbour covers too; tiles have the size of a training crop."""


class TrainConfig(ConfigSection):
    """A training run, from its photographs to its report."""

    output_dir: NonEmptyText
    """The run folder; created if needed. Rerunning with the same folder continues (``training.resume``)."""
    seed: NonNegativeInt = 0
    """Seed of initial weights, crops, degradations, noise, timesteps and random-layer negatives."""
    framer: FramerConfig = FramerConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_scheduler: LrSchedulerConfig = LrSchedulerConfig()
    training: TrainingConfig = TrainingConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _sections_fit_together(self) -> TrainConfig:
        patch = self.model.architecture.patch_size
        if self.model.pretrained is None and self.data.crop_size % patch:
            raise ValueError(
                f"data.crop_size {self.data.crop_size} is not a multiple of model.architecture.patch_size {patch}"
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
        if self.lr_scheduler.warmup_steps > self.training.max_steps:
            raise ValueError(
                f"lr_scheduler.warmup_steps {self.lr_scheduler.warmup_steps} exceeds "
                f"training.max_steps {self.training.max_steps}"
            )
        return self
