"""Adapter of diffusers' U-Nets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from framer.features.adapters.base import Adapter
from framer.features.adapters.layouts import Arguments, TokenGrid
from framer.features.errors import FeatureError, MissingHeadsError, UnsupportedModelError
from framer.features.heads import FeatureHead, heads_of


class UNetAdapter(Adapter):
    """A U-Net's stages on the way down, in the middle and on the way up, then the last map before ``conv_out``.

    Of SD1.5 and SD2.1 these are 4 + 1 + 4 students and the teacher, of SDXL 3 + 1 + 3. That last map is what
    ``conv_act`` returns.

    Stages differ in shape, so that students need heads (see ``framer.features.attach_heads``). Parts of a stage are
    recomputed in the backward pass, never a whole one: what a stage returns is seen once.

    Args:
        model: The U-Net itself.

    Raises:
        UnsupportedModelError: It has no output norm and activation, as with the K-diffusion stages.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if not self.model.conv_norm_out:
            raise UnsupportedModelError(
                f"this {type(model).__name__} has norm_num_groups=None: without an output norm and activation before "
                "conv_out, FRAMER does not know which map is the teacher's."
            )
        middle = () if self.model.mid_block is None else (self.model.mid_block,)
        stages: list[Any] = [*self.model.down_blocks, *middle, *self.model.up_blocks]
        # The resnets tell, not the config: their widths hold for every kind of stage, and adapters leave them alone.
        widths = [int(stage.resnets[-1].out_channels) for stage in stages]
        self._layers: tuple[nn.Module, ...] = (*stages, self.model.conv_act)
        self._channels = (*widths, int(self.model.conv_norm_out.num_channels))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The stages, and the activation before ``conv_out``."""
        return self._layers

    def recomputed_parts(self, index: int) -> Sequence[nn.Module]:
        """A stage's resnets and the blocks of its transformers: a stage as a whole holds most of the activations."""
        stage = self._layers[index]
        transformers = [part for part in getattr(stage, "attentions", ()) if hasattr(part, "transformer_blocks")]
        blocks = [block for transformer in transformers for block in transformer.transformer_blocks]
        return (*getattr(stage, "resnets", ()), *blocks)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of every layer's map."""
        return self._channels

    def feature(self, index: int, output: Any) -> Tensor:
        """The map that a stage hands on; what it returns beside it are the skip connections.

        Raises:
            FeatureError: The stage returned no map.
        """
        value = output[0] if isinstance(output, tuple) else output
        if not isinstance(value, Tensor) or value.ndim != 4:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise FeatureError(f"{self.block_names[index]} returned no map [B, D, h, w], but a value of {got}.")
        return value

    def token_grid(self, arguments: Arguments) -> TokenGrid:
        """The size of the teacher's map, which is that of the input.

        Raises:
            FeatureError: The forward was given no sample.
        """
        sample = arguments.get("sample")
        if not isinstance(sample, Tensor):
            raise FeatureError(
                f"{type(self.model).__name__} got no sample [B, C, H, W]; its arguments: {', '.join(arguments)}."
            )
        return TokenGrid(1, sample.shape[-2], sample.shape[-1])

    def to_map(self, index: int, feature: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
        """The map itself, of the stage's own size."""
        return feature

    def check_students(self, students: Sequence[int], teacher: int) -> None:
        """Checks that every student has a head for the teacher's channels.

        Raises:
            MissingHeadsError: Some have none, or one for other channels; names each.
        """
        names, channels = self.block_names, self._channels[teacher]
        heads = {names[student]: self._head(student) for student in students}
        unfit = [name for name, head in heads.items() if head is None or head.project.out_channels != channels]
        if unfit:
            raise MissingHeadsError(
                f"the stages of {type(self.model).__name__} differ in shape, and these students have no head for the "
                f"{channels} channels of the teacher {names[teacher]}: {', '.join(unfit)}. Call "
                "framer.features.attach_heads(unet, students, teacher) with the FRAMER config's students and teacher, "
                "before the optimizer and the distributed engine are made."
            )

    def to_teacher(self, index: int, feature: Tensor, teacher: Tensor) -> Tensor:
        """The student's map through its head.

        Raises:
            MissingHeadsError: The head has been taken off.
        """
        head = self._head(index)
        if head is None:
            raise MissingHeadsError(
                f"the head of {self.block_names[index]} has been taken off since the Framer was made: put it back."
            )
        mapped: Tensor = head(feature, teacher)
        return mapped

    def _head(self, index: int) -> FeatureHead | None:
        heads = heads_of(self.model)
        return None if heads is None else heads.head(self.block_names[index])
