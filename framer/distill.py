"""FRAMER on a model: captured features, random-layer negatives, the loss and its reduction.

With another ``method`` in the config, the same captured features go into another alignment loss (``framer.alignment``).

Example:
    framer = Framer(model, FramerConfig(preset="paper", weight=0.1))
    with framer.capture():
        prediction = model(**inputs)
    out = framer.loss()
    loss = noise_loss + out.total
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from framer.alignment.base import AlignmentMaps, LayerLosses
from framer.alignment.encoders import ImageEncoder
from framer.alignment.layers import method_layers
from framer.alignment.projectors import WITH_PROJECTORS
from framer.alignment.registry import build_alignment
from framer.config.distillation import FramerConfig
from framer.errors import ConfigError
from framer.features import Capture, CaptureError, FeatureError, FeatureTap, adapter_for, feature_space
from framer.features.spaces import PredictionType, ToSpace
from framer.negatives import draw_negatives
from framer_kernels import BandAssignment, BandSplit, FramerLoss, framer_loss


class Features(NamedTuple):
    """The feature maps of one forward pass, in the configured feature space.

    Attributes:
        students: The students' maps, ``[B, C, H, W]``; of a video's F frames ``[B*F, C, H, W]``.
        teacher: The teacher's map, detached.
        layer_names: The students' names within the model.
        teacher_name: The teacher's name within the model.
    """

    students: list[Tensor]
    teacher: Tensor
    layer_names: tuple[str, ...]
    teacher_name: str


class FramerOutput(NamedTuple):
    """The alignment loss of one forward pass of N students and B samples.

    Attributes:
        total: Scalar to add to the noise loss: the layers' losses, reduced and weighted.
        layers: The unreduced loss ``[N]`` and, with method ``framer``, the diagnostics ``[N, B]``, as
            ``framer_kernels`` gives them.
        negatives: For each student the index of the student that served as its random-layer negative; none with other
            methods.
        layer_names: The students' names within the model.
        teacher_name: The teacher's name within the model; with ``repa`` the encoder's class, with ``dispersive`` None.
        assignment: With method ``framer``, which loss the low and the high band of ``layers`` have.
    """

    total: Tensor
    layers: FramerLoss | LayerLosses
    negatives: tuple[int, ...]
    layer_names: tuple[str, ...]
    teacher_name: str | None
    assignment: BandAssignment

    def first_non_finite_layer(self) -> str | None:
        """Names the first block, in forward order, whose feature is not finite on this rank.

        It waits for the device: call it when the loss has been found not to be finite, not every step.

        Returns:
            The block's name, the teacher's included; None if the features of this rank are finite. With other methods
            than ``framer``, the first student whose loss is not finite.
        """
        layers = self.layers
        if isinstance(layers, LayerLosses):
            finite = torch.isfinite(layers.loss).tolist()
            return next((name for name, good in zip(self.layer_names, finite, strict=True) if not good), None)
        finite = torch.isfinite(layers.energy_lf + layers.energy_hf).all(dim=1).tolist()
        for name, is_finite in zip(self.layer_names, finite, strict=True):
            if not is_finite:
                return name
        # With all students finite, an IntraCL that is not finite is the teacher's doing. InterCL does not tell, because
        # it holds the samples of other ranks. A similarity would, but Triton's maximum may drop a NaN.
        own = layers.intra if self.assignment in ("intra_low", "intra_both") else layers.align_lf
        return None if bool(torch.isfinite(own).all()) else self.teacher_name


class Framer:
    """Adds the FRAMER loss, or another alignment loss, to the training of a diffusers model.

    By default every block but the last is a student and the last one the teacher; of a U-Net every stage is a student
    and the last map before ``conv_out`` the teacher, and it must have heads (``framer.features.attach_heads``). A
    forward pass inside ``capture`` is recorded, and ``loss`` spends the record: one ``capture`` and one ``loss`` for
    each forward pass, also in gradient accumulation. Outside of ``capture`` the model carries nothing of it.

    Args:
        model: A diffusers model that has an adapter (see ``framer.features``), alone or within DeepSpeed's
            engine, ``DistributedDataParallel`` or ``torch.compile``.
        config: What to compute; by default the paper's loss.
        group: Processes whose samples are the other images in InterCL; by default all of
            them where ``torch.distributed`` is initialised. Without effect where the config's
            ``in_batch_negatives_across_ranks`` is off.
        prediction_type: What the model's output is, ``"velocity"`` or the clean ``"sample"``; feature spaces ``x0``
            and ``velocity`` depend on it.
        encoder: What the students of method ``repa`` learn from, on the model's device.

    Raises:
        UnsupportedModelError: Where the model keeps its features is not known, or it has fewer than 3 blocks.
        MissingHeadsError: The model's layers differ in shape, and a student lacks its head.
        ConfigError: The config has ``enabled=False``, or its students and teacher are not in the model; or the model
            lacks the projectors of method ``sra`` or ``repa`` (``framer.alignment.attach_projectors``).
    """

    def __init__(
        self,
        model: nn.Module,
        config: FramerConfig | None = None,
        *,
        group: dist.ProcessGroup | None = None,
        prediction_type: PredictionType = "velocity",
        encoder: ImageEncoder | None = None,
    ) -> None:
        self.config = FramerConfig() if config is None else config
        if not self.config.enabled:
            raise ConfigError("framer.enabled is false: train without a Framer, or set it to true.")
        self._adapter = adapter_for(model)
        names = self._adapter.block_names
        self._students, self._teacher = method_layers(self.config, names)
        self._alignment = build_alignment(self.config, self._adapter.model, self._students, encoder)
        self._in_teachers_shape = self._teacher is not None and self.config.method not in WITH_PROJECTORS
        if self._teacher is not None and self._in_teachers_shape:
            self._adapter.check_students(self._students, self._teacher)
        self.layer_names = tuple(names[student] for student in self._students)
        self.teacher_name = None if self._teacher is None else names[self._teacher]
        if self._alignment is not None and self._alignment.teacher_name is not None:
            self.teacher_name = self._alignment.teacher_name
        self._group = group
        self._prediction_type: PredictionType = prediction_type
        taught = () if self._teacher is None else (self._teacher,)
        average = self.config.teacher == "ema"
        self._tap = FeatureTap(self._adapter, self._students if average else (*self._students, *taught))
        self._teacher_tap = FeatureTap(self._adapter, taught) if average else None
        self._draws = 0
        self._detached = False

    def capture(self) -> AbstractContextManager[None]:
        """Records the features of the one forward pass of the model that runs inside.

        Raises:
            CaptureError: Gradients are disabled, or what ran inside was not one pass through all blocks.
            FeatureError: A block's tokens do not fill the token grid of the model's input.
        """
        if self._detached:
            raise CaptureError("this Framer was detached; make a new one to capture again.")
        return self._tap.record()

    @contextmanager
    def capture_teacher(self) -> Iterator[None]:
        """Records the teacher's feature of the one forward pass inside, which runs without gradients.

        Only where the config's teacher is ``ema``: the model, holding its averaged weights meanwhile, must see the same
        input as inside :meth:`capture`, before or after it; with method ``sra``, the same noise at a lower level
        (:func:`framer.alignment.sra.teacher_sigmas`).

        Raises:
            ConfigError: The teacher is a layer of the same forward pass.
            CaptureError: As in :meth:`capture`.
            FeatureError: As in :meth:`capture`.
        """
        if self._teacher_tap is None:
            raise ConfigError(f"capture_teacher() is for framer.teacher=ema; it is {self.config.teacher}")
        with torch.no_grad(), self._teacher_tap.record(gradients=False):
            yield

    def features(
        self,
        *,
        sample: Tensor | None = None,
        sigmas: Tensor | None = None,
        conditioning: Tensor | None = None,
    ) -> Features:
        """The captured maps in the configured feature space, for analysis; they stay captured.

        Args:
            sample: The noisy latent ``[B, C, H, W]``; needed where a feature space must convert a prediction.
            sigmas: Noise levels ``[B]`` in 0..1; needed where a feature space must convert a prediction.
            conditioning: Conditioning vector ``[B, E]`` for the head; by default the one the blocks saw.

        Raises:
            ConfigError: With the config's method, no layer teaches.
            CaptureError: Nothing is captured.
            FeatureError: A tensor that the feature space needs is missing or has another shape.
        """
        own, teacher = self._in_feature_space(sample, sigmas, conditioning)
        if teacher is None or self.teacher_name is None:
            raise ConfigError(f"features() compares students with a layer that teaches; {self.config.method} has none")
        return Features(self._to_teacher(own, teacher), teacher, self.layer_names, self.teacher_name)

    def loss(
        self,
        *,
        sample: Tensor | None = None,
        sigmas: Tensor | None = None,
        conditioning: Tensor | None = None,
        images: Tensor | None = None,
    ) -> FramerOutput:
        """The alignment loss of the captured features, which it drops.

        Args:
            sample: The noisy latent ``[B, C, H, W]``; needed where a feature space must convert a prediction.
            sigmas: Noise levels ``[B]`` in 0..1; needed where a feature space must convert a prediction.
            conditioning: Conditioning vector ``[B, E]`` for the head; by default the one the blocks saw.
            images: The clean images ``[B, 3, H, W]`` in -1..1; needed by method ``repa``.

        Raises:
            CaptureError: Nothing is captured, or nothing that trains has a part in the students' features.
            FeatureError: A tensor that the feature space needs is missing or has another shape, or the
                features do not suit the config.
        """
        own, teacher = self._in_feature_space(sample, sigmas, conditioning)
        # Before the heads, which always train.
        self._check_gradient(own)
        if teacher is not None and self._in_teachers_shape:
            own = self._to_teacher(own, teacher)
        layers: FramerLoss | LayerLosses
        if self._alignment is None:
            assert teacher is not None
            negatives = draw_negatives(len(own), self.config.negatives, self.config.seed, self._draws)
            layers = self._framer_loss(own, teacher, negatives)
            self._draws += 1
        else:
            negatives = []
            maps = AlignmentMaps(tuple(own), teacher, images, self._captured().autocast, self._negatives_group())
            layers = LayerLosses(self._alignment.losses(maps))
        reduced = layers.loss.sum() if self.config.reduce == "sum" else layers.loss.mean()
        self._clear()
        return FramerOutput(
            self.config.weight * reduced,
            layers,
            tuple(negatives),
            self.layer_names,
            self.teacher_name,
            self.config.assignment,
        )

    def _framer_loss(self, students: list[Tensor], teacher: Tensor, negatives: list[int]) -> FramerLoss:
        config = self.config
        try:
            return framer_loss(
                students,
                teacher,
                negatives=negatives,
                bands=_band_split(config),
                representation=config.representation,
                temperature=config.temperature,
                shared_negatives=config.shared_negatives,
                faw=config.faw,
                fam=config.fam,
                assignment=config.assignment,
                group=self._negatives_group(),
                group_mode=config.group_mode,
                backend=config.backend,
                precision=config.precision,
            )
        except ValueError as error:
            # What only the features' size can tell, such as a cutoff that leaves a small map no high band.
            raise FeatureError(f"FRAMER loss: {error}") from error

    def detach(self) -> None:
        """Drops what is captured and refuses further captures; the model itself carries nothing of it."""
        self._clear()
        self._detached = True

    def state_dict(self) -> dict[str, int]:
        """The number of draws so far, from which a resumed run goes on with the same negatives."""
        return {"draws": self._draws}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restores what ``state_dict`` gave.

        Raises:
            ValueError: The state is not one of a Framer.
        """
        draws = state.get("draws")
        if set(state) != {"draws"} or type(draws) is not int or draws < 0:
            raise ValueError(f"expected the state of a Framer, {{'draws': 0 or more}}, got {dict(state)!r}")
        self._draws = draws

    def _in_feature_space(
        self, sample: Tensor | None, sigmas: Tensor | None, conditioning: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """The students' maps, each in its own shape, and the teacher's, detached, where a layer teaches."""
        adapter, space = self._adapter, self.config.feature_space

        def to_space(capture: Capture) -> ToSpace:
            return feature_space(
                capture,
                adapter,
                space,
                sample=sample,
                sigmas=sigmas,
                conditioning=conditioning,
                prediction_type=self._prediction_type,
            )

        own = self._captured()
        convert = to_space(own)
        teacher: Tensor | None = None
        if self._teacher is not None:
            taught = own if self._teacher_tap is None else self._captured_teacher()
            with torch.no_grad():
                teacher = to_space(taught)(taught.features[self._teacher]).detach()
        return [convert(own.features[student]) for student in self._students], teacher

    def _to_teacher(self, students: list[Tensor], teacher: Tensor) -> list[Tensor]:
        with self._captured().autocast():
            return [
                self._adapter.to_teacher(number, student, teacher)
                for number, student in zip(self._students, students, strict=True)
            ]

    def _captured(self) -> Capture:
        capture = self._tap.capture
        if capture is None:
            raise CaptureError(
                "no features are captured: run the model inside 'with framer.capture():' and leave it before "
                "each call of loss(), which drops them."
            )
        return capture

    def _captured_teacher(self) -> Capture:
        assert self._teacher_tap is not None
        if self._teacher_tap.capture is None:
            raise CaptureError(
                "framer.teacher=ema, and no teacher's feature is captured: run the model with its averaged weights "
                "inside 'with framer.capture_teacher():' before each call of loss()."
            )
        return self._teacher_tap.capture

    def _clear(self) -> None:
        self._tap.clear()
        if self._teacher_tap is not None:
            self._teacher_tap.clear()

    def _check_gradient(self, students: list[Tensor]) -> None:
        if any(student.requires_grad for student in students):
            return
        if any(parameter.requires_grad for parameter in self._adapter.model.parameters()):
            raise CaptureError(
                "none of the parameters that train has a part in a student's feature, so FRAMER would have "
                "no effect: let parameters of the blocks train, or train without FRAMER."
            )

    def _negatives_group(self) -> dist.ProcessGroup | None:
        if not (self.config.in_batch_negatives_across_ranks and dist.is_available() and dist.is_initialized()):
            return None
        group = dist.group.WORLD if self._group is None else self._group
        # A group of one has no other rank to ask, and asking waits for the device.
        return group if dist.get_world_size(group) > 1 else None


def _band_split(config: FramerConfig) -> BandSplit:
    if config.bands == "radial":
        return BandSplit.radial(config.cutoff)
    return BandSplit.quantile(config.quantile)
