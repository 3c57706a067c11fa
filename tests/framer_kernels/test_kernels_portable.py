"""The portable backend equals the definition, in every dtype within twice the definition's own rounding error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEFINITIONS, NEGATIVES, small_features
from torch import Tensor

from framer_kernels import (
    BandSplit,
    band_energy,
    band_similarity,
    framer_loss,
    inter_contrastive_loss,
    intra_contrastive_loss,
)
from framer_kernels.backends.portable import layout

SHAPES = [(1, 1, 4, 4), (3, 4, 8, 8), (2, 17, 13, 24), (3, 5, 9, 7), (2, 3, 28, 48), (1, 2, 64, 64), (2, 3, 80, 66)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.1, "faw": "relative_teacher", "shared_negatives": True},
    {"temperature": 0.0075, "faw": None, "fam": False},
]
EPS = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6}
"""Least error budget relative to the largest value, for cases in which the definition is lucky."""


def maps(shape: tuple[int, ...], dtype: torch.dtype, *, channels_last: bool, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(shape, generator=generator, dtype=torch.float64)
    students = [0.5 * teacher + torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5 for _ in range(4)]
    made = [x.to(dtype) for x in (*students, teacher)]
    if channels_last:
        made = [x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for x in made]
    return made


def run(features: list[Tensor], **settings: Any) -> tuple[list[Tensor], list[Tensor]]:
    *students, teacher = [x.detach().requires_grad_(x.is_floating_point()) for x in features]
    out = framer_loss(students, teacher, negatives=NEGATIVES, **settings)
    upstream = torch.linspace(0.5, 1.5, 4, dtype=out.loss.dtype, device="cpu")
    return [field.detach() for field in out], list(torch.autograd.grad((out.loss * upstream).sum(), students))


def everything(features: list[Tensor], **settings: Any) -> list[Tensor]:
    values, gradients = run(features, **settings)
    return values + gradients


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("definition", ["radial-complex", "radial-magnitude", "quantile-magnitude"])
@pytest.mark.parametrize(
    ("shape", "options", "channels_last"),
    [(shape, OPTIONS[i % 3], i % 2 == 1) for i, shape in enumerate(SHAPES)],
    ids=["x".join(map(str, shape)) for shape in SHAPES],
)
def test_parity(
    shape: tuple[int, ...], options: dict[str, Any], channels_last: bool, definition: str, dtype: torch.dtype
) -> None:
    features = maps(shape, dtype, channels_last=channels_last)
    settings = {**DEFINITIONS[definition], **options}
    floor = EPS[dtype] / options.get("temperature", 1.0)  # an error of a cosine is divided by the temperature
    exact, exact_gradients = run([x.double() for x in features], backend="reference", **settings)
    torch_values, torch_gradients = run(features, backend="reference", **settings)
    values, gradients = run(features, backend="portable", **settings)

    for value, own, truth in zip(
        values + gradients, torch_values + torch_gradients, exact + exact_gradients, strict=True
    ):
        error, budget = ((x.double() - truth).abs().max() for x in (value, own))
        assert error <= 2 * budget + floor * truth.abs().max()
    for x, gradient in zip(features, gradients, strict=False):
        assert gradient.dtype == dtype
        assert gradient.stride() == x.stride()


@pytest.mark.parametrize("chunk", [1, 700, 1 << 21])
@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)
def test_the_size_of_a_chunk_changes_nothing(definition: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = small_features(channels=5)
    expected, expected_gradients = run(features, backend="reference", **definition)
    monkeypatch.setattr(layout, "CPU_CHUNK_BYTES", chunk)

    values, gradients = run(features, backend="portable", **definition)

    for value, truth in zip(values + gradients, expected + expected_gradients, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-13)


def test_maps_of_any_strides() -> None:
    features = [x.repeat(1, 2, 1, 2)[:, ::2, :, 1::2] for x in small_features(channels=3)]
    odd = [x.flip(3).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for x in features]
    for case in (features, odd, [x[:1].expand(2, -1, -1, -1) for x in features]):
        expected = everything([x.contiguous() for x in case], backend="reference")
        for value, truth in zip(everything(case), expected, strict=True):
            torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)
def test_operations(definition: Any, backend: str) -> None:
    x, negative, teacher = small_features(layers=3)
    x.requires_grad_()
    calls = {
        "intra": lambda b: intra_contrastive_loss(x, teacher, negative, temperature=0.3, backend=b, **definition),
        "inter": lambda b: inter_contrastive_loss(x, teacher, negative, temperature=0.3, backend=b, **definition),
        "shared": lambda b: inter_contrastive_loss(
            x, teacher, negative, shared_negatives=True, backend=b, **definition
        ),
        "similarity": lambda b: torch.stack(band_similarity(x, negative, teacher=teacher, backend=b, **definition)),
        "energy": lambda b: torch.stack(band_energy(x, teacher=teacher, bands=definition["bands"], backend=b)),
    }
    for name, call in calls.items():
        value, truth = call(backend), call("reference")
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-13, msg=name)
        if name == "energy":
            assert not value.requires_grad
            continue
        weights = torch.linspace(0.3, 2, value.numel(), dtype=value.dtype).view_as(value)
        gradients = [torch.autograd.grad((v * weights).sum(), x)[0] for v in (value, truth)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13, msg=name)


def test_some_students_frozen() -> None:
    *students, teacher = small_features()
    expected = run([*students, teacher])[1]
    for i in (0, 2):
        students[i].requires_grad_()

    out = framer_loss(students, teacher, negatives=NEGATIVES)
    upstream = torch.linspace(0.5, 1.5, 4, dtype=out.loss.dtype, device="cpu")
    found = torch.autograd.grad((out.loss * upstream).sum(), [students[0], students[2]])

    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[2])


@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)
def test_deterministic_to_the_bit(definition: Any) -> None:
    features = maps((3, 7, 12, 10), torch.float32, channels_last=False)

    first, second = (everything(features, **definition) for _ in range(2))

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_upstream_gradients_of_any_strides() -> None:
    x, _, teacher = small_features(layers=3)
    x.requires_grad_()
    loss = intra_contrastive_loss(x, teacher, teacher)
    (expected,) = torch.autograd.grad(loss, x, torch.full((2,), 0.7, dtype=torch.float64), retain_graph=True)

    for upstream in (torch.tensor(0.7, dtype=torch.float64).expand(2), torch.full((4,), 0.7, dtype=torch.float64)[::2]):
        (found,) = torch.autograd.grad(loss, x, upstream, retain_graph=True)
        assert torch.equal(found, expected)
    cosines = torch.stack(band_similarity(x, teacher))
    transposed = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64).T
    (found,) = torch.autograd.grad(cosines, x, transposed, retain_graph=True)
    (expected,) = torch.autograd.grad(cosines, x, transposed.contiguous())
    assert torch.equal(found, expected)


def test_inputs_are_never_written() -> None:
    features = maps((2, 3, 8, 8), torch.float32, channels_last=False)
    before = [x.clone() for x in features]

    for definition in DEFINITIONS.values():
        run(features, **definition)

    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_layer_and_sample(bad: float) -> None:
    features = maps((3, 4, 8, 8), torch.float32, channels_last=False)
    features[1][2, 0, 3, 3] = bad

    values, gradients = run(features)

    finite_energy = values[7].isfinite() & values[8].isfinite()
    assert not finite_energy[1, 2]
    assert finite_energy.sum() == 11
    assert gradients[2].isfinite().all()
    assert gradients[3].isfinite().all()


def test_autocast_changes_nothing() -> None:
    features = maps((2, 4, 8, 8), torch.float32, channels_last=False)
    expected = everything(features)

    with torch.autocast("cpu", torch.bfloat16):
        found = everything(features)

    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_callers_matmul_precision_changes_nothing_and_stays(precision: str) -> None:
    features = maps((2, 16, 32, 32), torch.float32, channels_last=False)
    expected = everything(features, temperature=0.1)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = everything(features, temperature=0.1)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)

    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_triton_on_a_cpu_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pytest.importorskip("triton")
    *students, teacher = maps((2, 3, 8, 8), torch.float32, channels_last=False)

    with pytest.raises(ValueError, match="CUDA and ROCm devices, not on cpu"):
        framer_loss(students, teacher, negatives=NEGATIVES, backend="triton")


def test_a_band_of_rounding_errors_counts_as_empty() -> None:
    *students, teacher = [x.float() for x in small_features(height=7, width=9)]
    students[0] = torch.full_like(teacher, 3.1).requires_grad_()

    out = framer_loss(students, teacher, negatives=NEGATIVES, faw=None, fam=False)
    out.loss[0].backward()

    assert out.align_hf[0].count_nonzero() == 0
    assert students[0].grad is not None
    assert students[0].grad.abs().max() < 10


def test_cutoffs_from_the_mean_alone_to_almost_everything() -> None:
    features = small_features()
    for cutoff in (0.0, 0.5, 1.0, 1.2):
        bands = BandSplit.radial(cutoff)
        expected = everything(features, bands=bands, backend="reference")
        for value, truth in zip(everything(features, bands=bands), expected, strict=True):
            torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-12)


def test_a_dead_channel_has_zero_gradient_also_where_that_of_its_neighbours_is_large() -> None:
    features = [1e-3 * x for x in maps((2, 4, 8, 8), torch.float32, channels_last=False)]
    features[0][:, 1] = 0
    settings = {**DEFINITIONS["radial-magnitude"], "temperature": 0.0075, "faw": None, "fam": False}

    _, gradients = run(features, backend="portable", **settings)

    assert all(x.isfinite().all() for x in gradients)
    assert gradients[0][:, 1].count_nonzero() == 0
    assert gradients[0][:, 0].count_nonzero() > 0


@pytest.mark.parametrize("definition", ["radial-complex", "radial-magnitude", "quantile-magnitude"])
def test_the_default_device_does_not_matter(definition: str) -> None:
    features = maps((2, 3, 10, 6), torch.float32, channels_last=False)
    expected = everything(features, backend="portable", **DEFINITIONS[definition])
    layout._made_once.cache_clear()

    with torch.device("meta"):
        found = everything(features, backend="portable", **DEFINITIONS[definition])

    assert all(torch.equal(a, b.to(a.device)) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("definition", ["radial-complex", "radial-magnitude", "quantile-magnitude"])
def test_nan_in_one_sample_stays_there_where_samples_are_not_compared(definition: str) -> None:
    x, negative, teacher = (maps((2, 3, 8, 8), torch.float32, channels_last=False)[i] for i in (0, 1, 4))
    teacher[1] = float("nan")
    settings = {key: DEFINITIONS[definition][key] for key in ("bands", "representation")}
    x.requires_grad_()
    similarity = band_similarity(x, negative, teacher=teacher, **settings)
    values = [intra_contrastive_loss(x, teacher, negative, **settings), *similarity]

    for value in values:
        (gradient,) = torch.autograd.grad(value[0], x, retain_graph=True)
        assert value[0].isfinite()
        assert gradient[0].isfinite().all()


def test_a_precision_set_for_one_library_is_kept() -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has one setting for all")
    features = maps((2, 3, 8, 8), torch.float32, channels_last=False)
    expected = everything(features, backend="portable")
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        found = everything(features, backend="portable")

        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
