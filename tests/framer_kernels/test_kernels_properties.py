from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernel_cases import DEFINITIONS, NEGATIVES, closed_form, small_features
from torch import Tensor

from framer_kernels import (
    BandSplit,
    band_energy,
    band_similarity,
    framer_loss,
    inter_contrastive_loss,
    intra_contrastive_loss,
)

each_definition = pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)


def dft(x: Tensor) -> Tensor:
    """The 2-D DFT as its defining sum."""

    def matrix(n: int) -> Tensor:
        k = torch.arange(n, dtype=torch.float64)
        return torch.exp(-2j * math.pi * k[:, None] * k[None, :] / n)

    height, width = x.shape[-2:]
    return torch.einsum("kh,bchw,lw->bckl", matrix(height), x.to(torch.complex128), matrix(width))


def low_ring(height: int, width: int, cutoff: float) -> Tensor:
    def distance(n: int) -> list[float]:
        return [min(k, n - k) / (n / 2) for k in range(n)]

    rings = [[math.hypot(y, x) for x in distance(width)] for y in distance(height)]
    return torch.tensor(rings, dtype=torch.float64) <= cutoff


@pytest.mark.parametrize("size", [(8, 8), (13, 13), (7, 10), (24, 5), (1, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_energy_and_similarity_from_the_defining_sums(size: tuple[int, int], channels: int) -> None:
    x, y = small_features(layers=2, channels=channels, height=size[0], width=size[1])
    bands = BandSplit.radial(0.4)
    f_x, f_y = dft(x), dft(y)
    low = low_ring(*size, 0.4)

    energy = band_energy(x, bands=bands)
    complex_ = band_similarity(x, y, bands=bands, representation="complex")
    magnitude = band_similarity(x, y, bands=bands, representation="magnitude")

    for band, mask in enumerate((low, ~low)):
        u_x, u_y = f_x[..., mask], f_y[..., mask]
        expected_energy = u_x.abs().mean(dim=(1, 2))
        torch.testing.assert_close(energy[band], expected_energy, rtol=1e-8, atol=0)
        inner = (u_x * u_y.conj()).real.sum(dim=(1, 2))
        norms = u_x.abs().square().sum(dim=(1, 2)).sqrt() * u_y.abs().square().sum(dim=(1, 2)).sqrt()
        torch.testing.assert_close(complex_[band], inner / norms, rtol=0, atol=1e-13)
        inner = (u_x.abs() * u_y.abs()).sum(dim=(1, 2))
        torch.testing.assert_close(magnitude[band], inner / norms, rtol=0, atol=1e-13)


def test_complex_similarity_is_that_of_the_band_passed_maps() -> None:
    x, y = small_features(layers=2, height=9, width=12)
    low = low_ring(9, 12, 0.25)

    similarity = band_similarity(x, y, representation="complex")

    for band, mask in enumerate((low, ~low)):
        passed_x, passed_y = (torch.fft.ifft2(torch.fft.fft2(m) * mask).real.flatten(1) for m in (x, y))
        expected = torch.nn.functional.cosine_similarity(passed_x, passed_y, dim=1)
        torch.testing.assert_close(similarity[band], expected, rtol=0, atol=1e-13)


def test_unrelated_white_noise() -> None:
    x, y = torch.randn(2, 2, 64, 48, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    complex_ = band_similarity(x, y, representation="complex")
    magnitude = band_similarity(x, y, representation="magnitude")

    # The low band has 64 * 113 bins here, half of them conjugates: a standard deviation of 0.012.
    assert all(s.abs().max() < 0.05 for s in complex_)
    assert all((s - math.pi / 4).abs().max() < 0.01 for s in magnitude)


def test_similarity_ignores_scale_and_sees_sign() -> None:
    x, y = small_features(layers=2)

    plain = band_similarity(x, y)
    scaled = band_similarity(3 * x, 0.01 * y)
    flipped = band_similarity(x, -y)
    flipped_magnitude = band_similarity(x, -y, representation="magnitude")

    for band in range(2):
        torch.testing.assert_close(scaled[band], plain[band], rtol=1e-12, atol=0)
        torch.testing.assert_close(flipped[band], -plain[band], rtol=1e-12, atol=0)
        assert (flipped_magnitude[band] > 0).all()


@each_definition
def test_any_strides_equal_contiguous(definition: Any) -> None:
    maps = closed_form(batch=2, channels=3, height=6, width=9)
    tokens = maps.permute(0, 1, 3, 4, 2).reshape(5, 2, 54, 3).contiguous()
    channels_last = tokens.reshape(5, 2, 6, 9, 3).permute(0, 1, 4, 2, 3)
    spaced = torch.zeros(5, 2, 3, 12, 9, dtype=torch.float64)
    spaced[..., ::2, :] = maps
    transposed = maps.transpose(-1, -2).contiguous().transpose(-1, -2)
    expected_inputs = [x.clone().requires_grad_() for x in maps]
    *students, teacher = expected_inputs
    expected = framer_loss(students, teacher, negatives=NEGATIVES, **definition)
    expected_gradients = torch.autograd.grad(expected.loss.sum(), students)

    for strided in (channels_last, spaced[..., ::2, :], transposed):
        assert not strided[0].is_contiguous()
        *students, teacher = [x.detach().requires_grad_() for x in strided]
        out = framer_loss(students, teacher, negatives=NEGATIVES, **definition)
        gradients = torch.autograd.grad(out.loss.sum(), students)
        for a, b in zip((*out, *gradients), (*expected, *expected_gradients), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_gradient_of_tokens_seen_as_maps() -> None:
    *maps, teacher = closed_form(layers=3, batch=2, channels=3, height=4, width=6)
    tokens = [x.flatten(2).transpose(1, 2).contiguous().requires_grad_() for x in maps]
    leaves = [x.clone().requires_grad_() for x in maps]

    framer_loss(
        [x.transpose(1, 2).unflatten(2, (4, 6)) for x in tokens], teacher, negatives=[1, 0]
    ).loss.sum().backward()
    framer_loss(leaves, teacher, negatives=[1, 0]).loss.sum().backward()

    for token, leaf in zip(tokens, leaves, strict=True):
        expected = leaf.grad.flatten(2).transpose(1, 2)
        torch.testing.assert_close(token.grad, expected, rtol=1e-11, atol=1e-14)


@each_definition
def test_inputs_are_never_written(definition: Any) -> None:
    features = small_features()
    copies = [x.clone() for x in features]
    *students, teacher = [x.requires_grad_() for x in features]

    framer_loss(students, teacher, negatives=NEGATIVES, shared_negatives=True, **definition).loss.sum().backward()

    assert all(torch.equal(x, copy) for x, copy in zip(features, copies, strict=True))


@each_definition
@pytest.mark.parametrize(
    ("dtype", "resolution"), [(torch.float32, 2**-23), (torch.float16, 2**-10), (torch.bfloat16, 2**-7)]
)
def test_narrow_dtypes_compute_in_float32(definition: Any, dtype: torch.dtype, resolution: float) -> None:
    narrow = [x.to(dtype).requires_grad_() for x in closed_form(batch=2)]
    exact = [x.detach().double().requires_grad_() for x in narrow]

    out = framer_loss(narrow[:4], narrow[4], negatives=NEGATIVES, **definition)
    expected = framer_loss(exact[:4], exact[4], negatives=NEGATIVES, **definition)
    # Scaled, as for training in float16: the gradients themselves would be subnormal there.
    gradients = torch.autograd.grad(1024 * out.loss.sum(), narrow[:4])
    expected_gradients = torch.autograd.grad(1024 * expected.loss.sum(), exact[:4])

    for a, b in zip(out, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).abs().max() <= max(resolution, 1e-4) * b.abs().max()


def test_autocast_does_not_touch_the_loss() -> None:
    *students, teacher = closed_form().float()
    expected = framer_loss(students, teacher, negatives=NEGATIVES, temperature=0.0075)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = framer_loss(students, teacher, negatives=NEGATIVES, temperature=0.0075)
        inter = inter_contrastive_loss(students[0], teacher, students[1], temperature=0.0075)

    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    torch.testing.assert_close(inter, expected.inter[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shared", [False, True])
def test_low_temperature(dtype: torch.dtype, shared: bool) -> None:
    *students, teacher = [x.to(dtype) for x in small_features(batch=3)]
    # Logits of +133 and -133: e^133 overflows float32.
    students[0], students[1], students[3] = teacher.clone(), -teacher, -teacher
    students = [x.requires_grad_() for x in students]

    out = framer_loss(
        students,
        teacher,
        negatives=[1, 3, 0, 2],
        temperature=0.0075,
        faw=None,
        fam=False,
        shared_negatives=shared,
    )
    out.loss.sum().backward()

    assert all(field.isfinite().all() for field in out)
    assert all(x.grad.isfinite().all() for x in students)
    assert (out.intra[0] < 1e-30).all()
    torch.testing.assert_close(out.intra[1], torch.full((3,), 2 / 0.0075, dtype=dtype))
    assert (out.inter[1] >= 2 / 0.0075 * (1 - 1e-6)).all()


@pytest.mark.parametrize("temperature", [0.05, 0.09, 0.2, 1.0, 20.0])
def test_intra_is_exact_on_both_sides_of_zero(temperature: float) -> None:
    *_, x = small_features()

    lost = intra_contrastive_loss(x, -x, x, temperature=temperature)
    won = intra_contrastive_loss(x, x, -x, temperature=temperature)

    gap = 2 / temperature
    assert lost.tolist() == pytest.approx([gap + math.log1p(math.exp(-gap))] * 2, rel=1e-13)
    assert won.tolist() == pytest.approx([math.log1p(math.exp(-gap))] * 2, rel=1e-11, abs=0)


def test_inter_against_its_equation_at_low_temperature() -> None:
    x, negative, teacher = small_features(layers=3, batch=4)
    mask = ~low_ring(5, 6, 0.25)
    u_x, u_n, u_t = (torch.view_as_real(dft(m) * mask).flatten(1) for m in (x, negative, teacher))

    def logit(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm())) / 0.0075

    for shared in (False, True):
        got = inter_contrastive_loss(x, teacher, negative, temperature=0.0075, shared_negatives=shared)
        for b in range(4):
            others = [k for k in range(4) if k != b]
            logits = [logit(u_x[b], u_t[b]), logit(u_x[b], u_n[b]), *(logit(u_x[b], u_t[k]) for k in others)]
            if shared:
                logits += [logit(u_x[b], u_n[k]) for k in others]
            # float64 holds e^133, so the equation can be taken at its word.
            expected = -math.log(math.exp(logits[0]) / sum(math.exp(value) for value in logits))
            assert float(got[b]) == pytest.approx(expected, rel=1e-10)


def test_one_sample_has_its_own_negative_alone() -> None:
    x, negative, teacher = small_features(layers=3, batch=1)

    inter = inter_contrastive_loss(x, teacher, negative, shared_negatives=True)

    positive, other = band_similarity(x, teacher).hf, band_similarity(x, negative).hf
    torch.testing.assert_close(inter, torch.log(1 + torch.exp(other - positive)))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_layer_shows_in_its_own_loss(poison: float) -> None:
    *students, teacher = small_features()
    students[2][0, 0, 0, 0] = poison

    loss = framer_loss(students, teacher, negatives=[1, 0, 3, 1]).loss

    assert loss.isfinite().tolist() == [True, True, False, True]
