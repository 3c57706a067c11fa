"""What `framer_loss` is measured against: the same loss as others would write it.

Each takes the arguments of `framer_loss` that matter for cost and returns ``[N]``, the layers' losses. They compute
what the reference computes; `tests/benchmarks` checks that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from framer_kernels import BandSplit, Representation

Peer = Callable[..., Tensor]


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    x, y = (torch.nn.functional.normalize(v.flatten(1), dim=1) for v in (x, y))
    return (x * y).sum(dim=1)


def _pairwise_cosine(x: Tensor, y: Tensor) -> Tensor:
    x, y = (torch.nn.functional.normalize(v.flatten(1), dim=1) for v in (x, y))
    return x @ y.T


def _energy(magnitude: Tensor, mask: Tensor) -> Tensor:
    return ((magnitude * mask).sum(dim=(-2, -1)) / (mask.sum(dim=(-2, -1)) + 1e-9)).mean(dim=1)


def _radial(height: int, width: int, cutoff: float, device: torch.device) -> Tensor:
    f_y = 2 * torch.fft.fftfreq(height, dtype=torch.float64, device=device)
    f_x = 2 * torch.fft.fftfreq(width, dtype=torch.float64, device=device)
    return (f_y[:, None].square() + f_x.square()).sqrt() <= cutoff


def released_formula(
    students: Sequence[Tensor],
    teacher: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool = False,
) -> Tensor:
    """The released script's arithmetic: a complex ``fft2`` of student, teacher and negative in every layer.

    The teacher is transformed once, every student twice, once as itself and once as a negative.
    """
    size = teacher.shape[0]
    others = ~torch.eye(size, dtype=torch.bool, device=teacher.device)

    def view(spectrum: Tensor) -> Tensor:
        return spectrum.abs() if representation == "magnitude" else torch.view_as_real(spectrum)

    def masked(spectrum: Tensor, mask: Tensor) -> Tensor:
        return view(spectrum) * (mask if representation == "magnitude" else mask[..., None])

    teacher_spectrum = torch.fft.fft2(teacher.detach())
    if bands.kind == "radial":
        low = _radial(*teacher.shape[-2:], bands.value, teacher.device)
    else:
        magnitude = teacher_spectrum.abs()
        low = magnitude < torch.quantile(magnitude.flatten(1), bands.value, dim=1)[:, None, None, None]
    high = ~low
    teacher_energies = [_energy(teacher_spectrum.abs(), mask) for mask in (low, high)]
    losses = []
    for i, j in enumerate(negatives):
        student, negative = torch.fft.fft2(students[i]), torch.fft.fft2(students[j].detach())
        positives = [_cosine(masked(student, mask), masked(teacher_spectrum, mask)) for mask in (low, high)]
        repelled = [_cosine(masked(student, mask), masked(negative, mask)) for mask in (low, high)]
        in_batch = _pairwise_cosine(masked(student, high), masked(teacher_spectrum, high)).exp() * others
        if shared_negatives:
            in_batch = in_batch + _pairwise_cosine(masked(student, high), masked(negative, high)).exp() * others
        intra = -torch.log(positives[0].exp() / (positives[0].exp() + repelled[0].exp()))
        inter = -torch.log(positives[1].exp() / (positives[1].exp() + repelled[1].exp() + in_batch.sum(dim=1)))
        total = 0
        for mask, energy, positive, part in zip((low, high), teacher_energies, positives, (intra, inter), strict=True):
            own = _energy(student.abs(), mask)
            weight = 1 / (1 + (energy - own).abs() / (own + 1e-9))
            total = total + (weight * positive.clamp(min=0)).detach() * part
        losses.append(total.mean())
    return torch.stack(losses)


def eager_rfft2(
    students: Sequence[Tensor],
    teacher: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool = False,
) -> Tensor:
    """What a good engineer would write first: ``rfft2``, every map transformed once, all else by autograd.

    Half a spectrum stands for the whole one: columns that have a conjugate count twice.
    """
    if bands.kind != "radial":
        raise ValueError(f"eager_rfft2 knows radial bands, got {bands}")
    size, _, height, width = teacher.shape
    columns = width // 2 + 1
    low = _radial(height, width, bands.value, teacher.device)[:, :columns]
    counts = torch.full((columns,), 2.0, device=teacher.device)
    counts[0] = 1
    if width % 2 == 0:
        counts[-1] = 1
    weights = [mask * counts for mask in (low, ~low)]
    roots = [weight.sqrt() for weight in weights]

    def vectors(spectrum: Tensor) -> list[Tensor]:
        if representation == "magnitude":
            magnitude = spectrum.abs()
            return [(magnitude * root).flatten(1) for root in roots]
        real = torch.view_as_real(spectrum)
        return [(real * root[..., None]).flatten(1) for root in roots]

    def energies(spectrum: Tensor) -> list[Tensor]:
        magnitude = spectrum.detach().abs()
        return [((magnitude * w).sum(dim=(-2, -1)) / (w.sum() + 1e-9)).mean(dim=1) for w in weights]

    spectra = [torch.fft.rfft2(x) for x in students]
    teacher_spectrum = torch.fft.rfft2(teacher.detach())
    unit = [torch.nn.functional.normalize(u, dim=1) for u in vectors(teacher_spectrum)]
    teacher_energies = energies(teacher_spectrum)
    queries = [[torch.nn.functional.normalize(u, dim=1) for u in vectors(spectrum)] for spectrum in spectra]
    others = ~torch.eye(size, dtype=torch.bool, device=teacher.device)
    losses = []
    for i, j in enumerate(negatives):
        query, target = queries[i], [u.detach() for u in queries[j]]
        positives = [(q * u).sum(dim=1) for q, u in zip(query, unit, strict=True)]
        repelled = [(q * u).sum(dim=1) for q, u in zip(query, target, strict=True)]
        in_batch = (query[1] @ unit[1].T).exp() * others
        if shared_negatives:
            in_batch = in_batch + (query[1] @ target[1].T).exp() * others
        intra = (repelled[0] - positives[0]).exp().log1p()
        inter = ((repelled[1].exp() + in_batch.sum(dim=1)) / positives[1].exp()).log1p()
        total = 0
        for own, energy, positive, part in zip(
            energies(spectra[i]), teacher_energies, positives, (intra, inter), strict=True
        ):
            weight = 1 / (1 + (energy - own).abs() / (own + 1e-9))
            total = total + (weight * positive.clamp(min=0)).detach() * part
        losses.append(total.mean())
    return torch.stack(losses)


def compiled_rfft2() -> Peer:
    """`eager_rfft2` through ``torch.compile``."""
    return torch.compile(eager_rfft2, dynamic=False)
