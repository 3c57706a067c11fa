"""The contrastive losses of many layers as one operator with a gradient, known to `torch.library`.

Between forward and backward it keeps its inputs and the coefficients of the gradient, ``[N, B, 5 + G]`` numbers, with
shared negatives ``[N, B, 4 + 2 G]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from framer_kernels.backends import choose_backend, load_backend
from framer_kernels.bands import BandSplit
from framer_kernels.distributed import CommonSettings, GlobalBatch
from framer_kernels.objective import TargetNorms, loss_and_coefficients
from framer_kernels.ops.tags import OPERATOR_TAGS
from framer_kernels.precision import compute_dtype, exact_arithmetic, rounding
from framer_kernels.products import GradientCoefficients

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

DIAGNOSTICS = 8
"""Number of fields of `FramerLoss` after the loss."""


def _resolved(group: str) -> ProcessGroup:
    resolve: Any = getattr(dist.distributed_c10d, "_resolve_process_group")  # noqa: B009 - not exported by its stubs
    found: ProcessGroup = resolve(group)
    return found


class _Settings(NamedTuple):
    """What forward and backward must agree on, in types that an operator's schema knows."""

    negatives: list[int]
    bands: str
    band_value: float
    representation: str
    shared_negatives: bool
    precision: str
    group: str

    @property
    def split(self) -> BandSplit:
        return BandSplit(self.bands, self.band_value)  # type: ignore[arg-type]

    @property
    def process_group(self) -> ProcessGroup | None:
        return _resolved(self.group) if self.group else None

    @property
    def common(self) -> dict[str, Any]:
        return {"bands": self.split, "representation": self.representation, "precision": self.precision}

    def remote_maps(self, maps: Sequence[Tensor], teacher: Tensor) -> list[tuple[tuple[Tensor, ...], list[int], bool]]:
        """What is exchanged between ranks, one exchange after another.

        Returns:
            For each exchange the maps, the teacher first and then the target, if it is another; the layers that are
            compared with the target; and whether it is their teacher.
        """
        layers = list(range(len(self.negatives)))
        exchanges: list[tuple[tuple[Tensor, ...], list[int], bool]] = [((teacher,), layers, True)]
        if self.shared_negatives:
            # Sorted: every rank exchanges the layers in the same order.
            for j in sorted(set(self.negatives)):
                # Radial bands are not taken from a teacher.
                sent = (maps[j],) if self.bands == "radial" else (teacher, maps[j])
                exchanges.append((sent, [i for i in layers if self.negatives[i] == j], False))
        return exchanges


@torch.library.custom_op("framer_kernels::contrastive_loss", mutates_args=(), tags=OPERATOR_TAGS)
def contrastive_loss(
    maps: Sequence[Tensor],
    teacher: Tensor,
    negatives: Sequence[int],
    bands: str,
    band_value: float,
    representation: str,
    temperature: float,
    shared_negatives: bool,
    faw: str,
    fam: bool,
    terms: str,
    backend: str,
    precision: str,
    group: str,
    group_mode: str,
    differentiated: bool,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, diagnostics, gradient coefficients and the ranks' batch sizes.

    They are ``[N, B]`` or as a mean over samples ``[N]``, ``[8, N, B]``, ``[N, B, 4 + G + (1 or G)]`` (of IntraCL alone
    ``[N, B, 5]``), and on the CPU ``[ranks]``, or without a group nothing.

    Args:
        maps: ``[B, C, H, W]``; the first N are students.
        teacher: ``[B, C, H, W]``.
        negatives: N indices into ``maps``.
        bands: Kind of the `BandSplit`.
        band_value: Its value.
        representation: As in `framer_loss`.
        temperature: As in `framer_loss`.
        shared_negatives: As in `framer_loss`.
        faw: As in `framer_loss`; empty for None.
        fam: As in `framer_loss`.
        terms: ``both``, ``intra`` or ``inter``.
        backend: ``auto``, ``triton`` or ``portable``.
        precision: As in `framer_loss`.
        group: Name of the process group; empty for this process alone.
        group_mode: As in `framer_loss`.
        differentiated: Whether a student needs a gradient, which cannot be seen from inside an operator.
        mean: Whether losses are averaged over samples.

    Raises:
        ValueError: Triton was asked for and cannot compute this, or the ranks of the group differ in what they compute.
    """
    settings = _Settings(list(negatives), bands, band_value, representation, shared_negatives, precision, group)
    common = CommonSettings(
        operation="framer_loss" if terms == "both" else "inter_contrastive_loss",
        negatives=tuple(settings.negatives),
        bands=settings.split,
        representation=representation,
        temperature=temperature,
        shared_negatives=shared_negatives,
        faw=faw or None,
        fam=fam,
        reference_backend=False,
        precision=precision,
        group_mode=group_mode,
    )
    # Before anything that may fail on one rank alone.
    batch = GlobalBatch.of(teacher, settings.process_group, common, differentiated=differentiated)
    name = choose_backend(backend, teacher)
    implementation = load_backend(name)
    with exact_arithmetic(teacher.device):
        products = implementation.measure(
            maps, teacher, negatives=settings.negatives, shared_negatives=shared_negatives, **settings.common
        )
        targets, first = None, 0
        if len(batch.sizes) > 1:
            first = batch.first
            norms = batch.gather(products.norm_squared[1].T)
            targets = TargetNorms(
                batch.gather(products.teacher_norm_squared[1][:, None])[:, 0], norms.T[settings.negatives]
            )
            own = slice(first, first + len(teacher))

            def widened(block: Tensor) -> Tensor:
                wide = block.new_zeros(*block.shape[:2], sum(batch.sizes))
                wide[:, :, own] = block
                return wide

            dots = [widened(products.teacher_dot_hf)]
            dots.append(widened(products.negative_dot_hf) if shared_negatives else products.negative_dot_hf)
            for sent, layers, is_teacher in settings.remote_maps(maps, teacher):
                for places, received in batch.remote(sent, group_mode):  # type: ignore[arg-type]
                    block = implementation.cross_products(
                        [maps[i] for i in layers], teacher, received[-1], received[0], **settings.common
                    )
                    columns = torch.arange(sum(batch.sizes), device=teacher.device)[places]
                    rows = torch.tensor(layers, device=teacher.device)[:, None]
                    dots[0 if is_teacher else 1][rows, :, columns] = block.permute(0, 2, 1).to(dots[0].dtype)
            products = products._replace(teacher_dot_hf=dots[0], negative_dot_hf=dots[1])
        # One launch instead of some forty, where the backend has a kernel for it.
        objective = getattr(implementation, "loss_and_coefficients", loss_and_coefficients)
        found = objective(
            products,
            negatives=settings.negatives,
            temperature=temperature,
            faw=faw or None,  # type: ignore[arg-type]
            fam=fam,
            shared_negatives=shared_negatives,
            rounding=rounding(teacher.dtype, name, precision),
            terms=terms,  # type: ignore[arg-type]
            targets=targets,
            first=first,
            share=1 / len(teacher) if mean else 1.0,
        )
    sizes = torch.empty(0, dtype=torch.int64, device=teacher.device)
    if group:
        # On the CPU, where the backward pass reads them without waiting for the device.
        sizes = torch.tensor(batch.sizes, device="cpu")
    losses = found.losses.mean(dim=1) if mean else found.losses
    return losses, found.diagnostics, found.coefficients, sizes


@contrastive_loss.register_fake
def _(
    maps: Sequence[Tensor],
    teacher: Tensor,
    negatives: Sequence[int],
    bands: str,
    band_value: float,
    representation: str,
    temperature: float,
    shared_negatives: bool,
    faw: str,
    fam: bool,
    terms: str,
    backend: str,
    precision: str,
    group: str,
    group_mode: str,
    differentiated: bool,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layers, size = len(negatives), teacher.shape[0]
    like = teacher.new_empty(0, dtype=compute_dtype(teacher.dtype))
    sizes = teacher.new_empty(0, dtype=torch.int64)
    samples = size
    if group:
        ranks = dist.get_world_size(_resolved(group))
        sizes = torch.empty(ranks, dtype=torch.int64, device="cpu")
        samples = ranks * size
    width: Any = 5 if terms == "intra" else 4 + samples + (samples if shared_negatives else 1)
    # How many samples other ranks have is known when they say so. A fake mode that has no symbols for such sizes takes
    # every rank's batch to be this one's; a plain meta tensor has no mode at all.
    if group and getattr(getattr(teacher, "fake_mode", None), "shape_env", None) is not None:
        width = torch.library.get_ctx().new_dynamic_size()
    return (
        like.new_empty(layers) if mean else like.new_empty(layers, size),
        like.new_empty(DIAGNOSTICS, layers, size),
        like.new_empty(layers, size, width),
        sizes,
    )


@torch.library.custom_op("framer_kernels::contrastive_loss_backward", mutates_args=(), tags=OPERATOR_TAGS)
def contrastive_loss_backward(
    upstream: Tensor,
    maps: Sequence[Tensor],
    teacher: Tensor,
    packed: Tensor,
    sizes: Tensor,
    needed: Sequence[int],
    negatives: Sequence[int],
    bands: str,
    band_value: float,
    representation: str,
    shared_negatives: bool,
    backend: str,
    precision: str,
    group: str,
    group_mode: str,
) -> list[Tensor]:
    """Gradients of the students whose indices are ``needed``.

    Args:
        upstream: Gradient of the losses, ``[N, B]`` or of their means ``[N]``, any strides.
        maps: As in `contrastive_loss`.
        teacher: As in `contrastive_loss`.
        packed: The gradient coefficients.
        sizes: The ranks' batch sizes.
        needed: Indices of students, ascending.
        negatives: As in `contrastive_loss`.
        bands: As in `contrastive_loss`.
        band_value: As in `contrastive_loss`.
        representation: As in `contrastive_loss`.
        shared_negatives: As in `contrastive_loss`.
        backend: As in `contrastive_loss`.
        precision: As in `contrastive_loss`.
        group: As in `contrastive_loss`.
        group_mode: As in `contrastive_loss`.
    """
    settings = _Settings(list(negatives), bands, band_value, representation, shared_negatives, precision, group)
    layers = len(settings.negatives)
    implementation = load_backend(choose_backend(backend, teacher))
    with exact_arithmetic(teacher.device):
        if upstream.dim() == 1:
            upstream = upstream[:, None].expand(-1, len(teacher))
        everyone = GradientCoefficients.of(packed, shared_negatives=shared_negatives)
        batch = GlobalBatch.known(teacher, settings.process_group, sizes)
        own = slice(batch.first, batch.first + len(teacher)) if len(batch.sizes) > 1 else slice(None)
        coefficients = everyone._replace(
            teacher_hf=everyone.teacher_hf[:, :, own],
            negative_hf=everyone.negative_hf[:, :, own] if shared_negatives else everyone.negative_hf,
        )
        found = implementation.gradients(
            maps,
            teacher,
            coefficients,
            upstream,
            negatives=settings.negatives,
            shared_negatives=shared_negatives,
            needed=[i in needed for i in range(layers)],
            **settings.common,
        )
        if len(batch.sizes) > 1:
            for sent, compared, is_teacher in settings.remote_maps(maps, teacher):
                for places, received in batch.remote(sent, group_mode):  # type: ignore[arg-type]
                    wanted = [i for i in compared if i in needed]
                    if not wanted:
                        continue
                    weights = (everyone.teacher_hf if is_teacher else everyone.negative_hf)[wanted][:, :, places]
                    weights = weights * upstream[wanted][..., None]
                    implementation.add_cross_gradients(
                        [gradient for i in wanted if (gradient := found[i]) is not None],
                        weights,
                        [maps[i] for i in wanted],
                        teacher,
                        received[-1],
                        received[0],
                        **settings.common,
                    )
    return [gradient for gradient in found if gradient is not None]


@contrastive_loss_backward.register_fake
def _(
    upstream: Tensor,
    maps: Sequence[Tensor],
    teacher: Tensor,
    packed: Tensor,
    sizes: Tensor,
    needed: Sequence[int],
    negatives: Sequence[int],
    bands: str,
    band_value: float,
    representation: str,
    shared_negatives: bool,
    backend: str,
    precision: str,
    group: str,
    group_mode: str,
) -> list[Tensor]:
    return [torch.empty_like(maps[i]) for i in needed]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    maps, teacher, negatives, bands, band_value, representation, _, shared, _, _, _, *rest, _, _ = inputs
    _, diagnostics, packed, sizes = output
    ctx.mark_non_differentiable(diagnostics, packed, sizes)
    # Zeros would be made for the gradients of these, a launch each.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*maps, teacher, packed, sizes)
    ctx.settings = (list(negatives), bands, band_value, representation, shared, *rest)
    ctx.maps = len(maps)


def _differentiate(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Any, ...]:
    *maps, teacher, packed, sizes = ctx.saved_tensors
    if upstream is None:
        return [None] * ctx.maps, *([None] * 16)
    layers = len(ctx.settings[0])
    needed = [i for i, need in enumerate(ctx.needs_input_grad[0][:layers]) if need]
    found = iter(contrastive_loss_backward(upstream, maps, teacher, packed, sizes, needed, *ctx.settings))
    gradients = [next(found) if i in needed else None for i in range(ctx.maps)]
    return gradients, *([None] * 16)


contrastive_loss.register_autograd(_differentiate, setup_context=_keep)
