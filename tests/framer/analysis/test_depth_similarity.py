from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from framer.analysis import DepthSimilarity, depth_similarity, plot_depth_similarity
from framer_kernels import BandSplit, band_similarity

BANDS = BandSplit.radial(0.25)


def noise(seed: int) -> Tensor:
    return torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_band(features: Tensor) -> Tensor:
    """The part of the features within a quarter of Nyquist."""
    frequency = 2 * torch.fft.fftfreq(16, dtype=torch.float64)
    mask = (frequency[:, None] ** 2 + frequency[None, :] ** 2).sqrt() <= 0.25
    return torch.fft.ifft2(torch.fft.fft2(features) * mask).real


def test_the_teacher_itself_scores_1_whatever_its_scale() -> None:
    teacher = noise(0)
    result = depth_similarity([teacher, 3 * teacher, -teacher], teacher, bands=BANDS, representation="complex")
    assert result.lf == pytest.approx([1.0, 1.0, -1.0], abs=1e-12)
    assert result.hf == pytest.approx([1.0, 1.0, -1.0], abs=1e-12)


def test_unrelated_noise_scores_0_with_phase_and_pi_4_without() -> None:
    students, teacher = [noise(1), noise(2)], noise(0)
    with_phase = depth_similarity(students, teacher, bands=BANDS, representation="complex")
    assert with_phase.hf == pytest.approx([0.0, 0.0], abs=0.05)
    assert with_phase.lf == pytest.approx([0.0, 0.0], abs=0.15)
    magnitudes = depth_similarity(students, teacher, bands=BANDS, representation="magnitude")
    assert magnitudes.hf == pytest.approx([torch.pi / 4, torch.pi / 4], abs=0.02)


def test_the_bands_are_not_swapped_and_layers_keep_their_order() -> None:
    teacher = noise(0)
    low, high = low_band(teacher), teacher - low_band(teacher)
    # Each layer shares one band with the teacher; in the other it holds noise.
    noise_low, noise_high = low_band(noise(1)), noise(1) - low_band(noise(1))
    result = depth_similarity([low + noise_high, high + noise_low], teacher, bands=BANDS, representation="complex")
    assert result.lf[0] == pytest.approx(1.0, abs=1e-12)
    assert result.hf[0] == pytest.approx(0.0, abs=0.05)
    assert result.lf[1] == pytest.approx(0.0, abs=0.2)
    assert result.hf[1] == pytest.approx(1.0, abs=1e-12)


def test_a_layer_with_the_low_band_alone_scores_0_in_the_high_band() -> None:
    teacher = noise(0).float()
    result = depth_similarity([low_band(teacher)], teacher, bands=BANDS, representation="complex")
    assert result.lf == pytest.approx([1.0], abs=1e-5)
    assert result.hf == pytest.approx([0.0], abs=0.05)


def test_quantile_bands_are_those_of_the_teacher() -> None:
    teacher, student = noise(0), noise(1)
    result = depth_similarity([student], teacher, bands=BandSplit.quantile(0.2), representation="magnitude")
    expected = band_similarity(
        student, teacher, teacher=teacher, bands=BandSplit.quantile(0.2), representation="magnitude"
    )
    assert result.lf == [expected.lf.mean().item()]
    assert result.hf == [expected.hf.mean().item()]


def test_the_mean_is_over_samples() -> None:
    teacher = noise(0)
    student = teacher.clone()
    student[0] *= -1
    result = depth_similarity([student], teacher, bands=BANDS, representation="complex")
    assert result.hf == pytest.approx([1 / 3], abs=1e-12)


def test_features_that_require_gradients_build_no_graph_and_give_numbers() -> None:
    student = noise(1).requires_grad_()
    result = depth_similarity([student], noise(0), bands=BANDS, representation="complex")
    assert isinstance(result.lf[0], float)


def test_wrong_features_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        depth_similarity([], noise(0), bands=BANDS, representation="complex")
    with pytest.raises(ValueError, match="y must have the shape of x"):
        depth_similarity([noise(1)[..., :8]], noise(0), bands=BANDS, representation="complex")


@pytest.fixture
def curves() -> dict[int, DepthSimilarity]:
    return {700: DepthSimilarity([0.5, 0.9], [-0.1, 0.4]), 300: DepthSimilarity([0.6, 0.9], [0.2, 0.5])}


def test_plot_says_what_it_shows(tmp_path: Path, curves: dict[int, DepthSimilarity]) -> None:
    caption = plot_depth_similarity(tmp_path / "plots" / "depth.png", curves, title="Similarity")
    assert "timestep 300 and 700" in caption
    with Image.open(tmp_path / "plots" / "depth.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 400


def test_plot_with_a_comparison_names_both(tmp_path: Path, curves: dict[int, DepthSimilarity]) -> None:
    caption = plot_depth_similarity(
        tmp_path / "depth.png", curves, title="Similarity", label="trained", compare=("base", curves)
    )
    assert "Solid: trained; dashed: base." in caption


def test_plot_refuses_what_cannot_be_compared(tmp_path: Path, curves: dict[int, DepthSimilarity]) -> None:
    with pytest.raises(ValueError, match="no timesteps"):
        plot_depth_similarity(tmp_path / "depth.png", {}, title="Similarity")
    with pytest.raises(ValueError, match=r"this model was measured at t = \[300, 700\], base at \[300\]"):
        plot_depth_similarity(tmp_path / "depth.png", curves, title="Similarity", compare=("base", {300: curves[300]}))
    assert list(tmp_path.iterdir()) == []
