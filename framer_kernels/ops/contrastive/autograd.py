"""The contrastive losses of many layers as one operator with a gradient, known to `torch.library`.

Between forward and backward it keeps its inputs and the coefficients of the gradient, ``[N, B, 5 + G]`` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from framer_kernels.backends import ProductsBackend, load_backend
from framer_kernels.bands import BandSplit
from framer_kernels.distributed import GlobalBatch
from framer_kernels.objective import TargetNorms, loss_and_coefficients
from framer_kernels.precision import compute_dtype, exact_arithmetic
from framer_kernels.products import GradientCoefficients

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

DIAGNOSTICS = 8
"""Number of fields of `FramerLoss` after the loss."""


class _Settings(NamedTuple):
    """What forward and backward must agree on, in types that an operator's schema knows."""

    negatives: list[int]
    bands: str
    band_value: float
    representation: str
    shared_negatives: bool
    backend: str
    precision: str
    group: str
    group_mode: str

    @property
    def split(self) -> BandSplit:
        return BandSplit(self.bands, self.band_value)  # type: ignore[arg-type]

    @property
    def process_group(self) -> ProcessGroup | None:
        if not self.group:
            return None
        resolve: Any = getattr(dist.distributed_c10d, "_resolve_process_group")  # noqa: B009 - not exported by its stubs
        group: ProcessGroup = resolve(self.group)
        return group

    @property
    def implementation(self) -> ProductsBackend:
        return load_backend(self.backend)

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


@torch.library.custom_op("framer_kernels::contrastive_loss", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses ``[N, B]``, diagnostics ``[8, N, B]`` and gradient coefficients ``[N, B, 4 + G + (1 or G)]``.

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
        backend: ``triton`` or ``portable``.
        precision: As in `framer_loss`.
        group: Name of the process group; empty for this process alone.
        group_mode: As in `framer_loss`.
    """
    settings = _Settings(
        list(negatives), bands, band_value, representation, shared_negatives, backend, precision, group, group_mode
    )
    with exact_arithmetic(teacher.device):
        implementation = settings.implementation
        products = implementation.measure(
            maps, teacher, negatives=settings.negatives, shared_negatives=shared_negatives, **settings.common
        )
        targets, first = None, 0
        batch = GlobalBatch.of(teacher, settings.process_group)
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
        parts, coefficients = objective(
            products,
            negatives=settings.negatives,
            temperature=temperature,
            faw=faw or None,  # type: ignore[arg-type]
            fam=fam,
            shared_negatives=shared_negatives,
            terms=terms,  # type: ignore[arg-type]
            targets=targets,
            first=first,
        )
    scalars = torch.stack(coefficients[:4], dim=2)
    return parts.loss, torch.stack(parts[1:]), torch.cat([scalars, *coefficients[4:]], dim=2)


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
) -> tuple[Tensor, Tensor, Tensor]:
    layers, size = len(negatives), teacher.shape[0]
    # How many samples other ranks have is known when they say so.
    width: Any = torch.library.get_ctx().new_dynamic_size() if group else 4 + size + (size if shared_negatives else 1)
    like = teacher.new_empty(0, dtype=compute_dtype(teacher.dtype))
    return (
        like.new_empty(layers, size),
        like.new_empty(DIAGNOSTICS, layers, size),
        like.new_empty(layers, size, width),
    )


@torch.library.custom_op("framer_kernels::contrastive_loss_backward", mutates_args=())
def contrastive_loss_backward(
    upstream: Tensor,
    maps: Sequence[Tensor],
    teacher: Tensor,
    packed: Tensor,
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
        upstream: Gradient of the losses, ``[N, B]``, any strides.
        maps: As in `contrastive_loss`.
        teacher: As in `contrastive_loss`.
        packed: The gradient coefficients.
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
    settings = _Settings(
        list(negatives), bands, band_value, representation, shared_negatives, backend, precision, group, group_mode
    )
    layers = len(settings.negatives)
    with exact_arithmetic(teacher.device):
        implementation = settings.implementation
        scaled = packed * upstream[..., None]
        samples = (scaled.shape[2] - 4) // 2 if shared_negatives else scaled.shape[2] - 5
        teacher_hf, negative_hf = scaled[:, :, 4:].split_with_sizes([samples, scaled.shape[2] - 4 - samples], dim=2)
        batch = GlobalBatch.of(teacher, settings.process_group)
        own = slice(batch.first, batch.first + len(teacher)) if len(batch.sizes) > 1 else slice(None)
        teacher_lf, negative_lf, self_lf, self_hf = scaled[:, :, :4].unbind(dim=2)
        coefficients = GradientCoefficients(
            teacher_lf,
            negative_lf,
            self_lf,
            self_hf,
            teacher_hf[:, :, own],
            negative_hf[:, :, own] if shared_negatives else negative_hf,
        )
        found = implementation.gradients(
            maps,
            teacher,
            coefficients,
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
                    weights = (teacher_hf if is_teacher else negative_hf)[wanted][:, :, places]
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


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    maps, teacher, negatives, bands, band_value, representation, _, shared, _, _, _, backend, *rest = inputs
    _, diagnostics, packed = output
    ctx.mark_non_differentiable(diagnostics, packed)
    ctx.save_for_backward(*maps, teacher, packed)
    ctx.settings = (list(negatives), bands, band_value, representation, shared, backend, *rest)
    ctx.maps = len(maps)


def _differentiate(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    *maps, teacher, packed = ctx.saved_tensors
    layers = len(ctx.settings[0])
    needed = [i for i, need in enumerate(ctx.needs_input_grad[0][:layers]) if need]
    found = iter(contrastive_loss_backward(upstream, maps, teacher, packed, needed, *ctx.settings))
    gradients = [next(found) if i in needed else None for i in range(ctx.maps)]
    return gradients, *([None] * 14)


contrastive_loss.register_autograd(_differentiate, setup_context=_keep)
