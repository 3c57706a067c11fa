from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from framer.config.objective import ObjectiveConfig
from framer.errors import MissingExtraError, UserError
from framer.models.latents import ImageLatents, LatentSpace
from framer.objectives import NoisyBatch, OneStep, Supervision, build_objective
from framer.objectives.perceptual import VGG_WEIGHTS

LATENTS = ImageLatents("pixel", 1.0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


HR, LR = draw(2, 3, 16, 16, seed=1), draw(2, 3, 16, 16, seed=2)
IMAGES = Supervision(HR, LR)


class Brightness(ImageLatents):
    """Latents whose image is half as bright, so that distances of latents and of images differ."""

    def decode(self, latents: Tensor, upsampled: Tensor) -> Tensor:
        return latents / 2


def objective(latents: LatentSpace = LATENTS, **settings: object) -> OneStep:
    return OneStep(ObjectiveConfig(type="one_step", **settings), latents)  # type: ignore[arg-type]


def noisy(one_step: OneStep, indices: tuple[int, int] = (3, 4), seed: int = 0) -> NoisyBatch:
    return one_step.add_noise(HR, LR, indices, seed)


def base_epsilon(noisy: Tensor, timesteps: Tensor, *, with_text: bool) -> Tensor:
    return torch.sin(noisy) + (timesteps.view(-1, 1, 1, 1) / 1000 if with_text else 0)


@pytest.fixture
def lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """A stand-in for the library, whose distance is that of the images' means, with weights in torch's cache."""
    made: list[nn.Module] = []

    class LPIPS(nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "vgg"
            assert not verbose
            self.weight = nn.Parameter(torch.randn(()) * 0 + 3)
            made.append(self)

        def forward(self, image: Tensor, target: Tensor) -> Tensor:
            return self.weight * (image - target).mean(dim=(1, 2, 3), keepdim=True).square()

    module = ModuleType("lpips")
    module.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / VGG_WEIGHTS).touch()
    return made


def test_the_model_sees_the_low_resolution_image_at_one_timestep() -> None:
    batch = noisy(objective(timestep=7))
    assert torch.equal(batch.sample, LR)
    assert torch.equal(batch.latents, HR)
    assert batch.timesteps.tolist() == [7.0, 7.0]
    assert batch.timesteps.dtype == torch.float32
    assert not batch.sigmas.any()
    assert batch.score_timesteps is None


@pytest.mark.parametrize("space", ["image", "latent"])
def test_a_perfect_model_gives_the_high_resolution_image_and_has_no_loss(space: str) -> None:
    one_step = objective(space=space)
    batch = noisy(one_step)
    answer = LR - HR
    assert float(one_step.loss(answer, batch, IMAGES)) < 1e-12
    restored = one_step.sample(lambda sample, timestep: answer, LR, channels=3, steps=9, seed=0)
    torch.testing.assert_close(restored, HR, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("space", "distance"), [("image", 0.5), ("latent", 1.0)])
def test_the_squared_error_is_measured_where_the_configuration_says(space: str, distance: float) -> None:
    one_step = objective(Brightness("pixel", 1.0), space=space, l2_weight=3.0)
    images = Supervision(HR / 2, LR)
    loss = one_step.loss((LR - HR - 0.4).bfloat16(), noisy(one_step), images)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(3 * (distance * 0.4) ** 2, rel=2e-2)


def test_the_error_of_latents_needs_no_images() -> None:
    one_step = objective(space="latent")
    assert float(one_step.loss(LR - HR, noisy(one_step))) < 1e-12


def test_the_error_of_images_without_images() -> None:
    one_step = objective()
    with pytest.raises(ValueError, match="need the high-resolution images"):
        one_step.loss(LR, noisy(one_step))


def test_the_gradient_goes_through_the_decoder_to_the_output() -> None:
    one_step = objective(Brightness("pixel", 1.0))
    output = draw(2, 3, 16, 16, seed=5).requires_grad_()
    one_step.loss(output, noisy(one_step), IMAGES).backward()
    assert output.grad is not None
    expected = -((LR - output.detach()) / 2 - HR) / HR.numel()
    torch.testing.assert_close(output.grad, expected, rtol=1e-4, atol=1e-9)


def test_lpips_is_added_with_its_weight(lpips: list[nn.Module]) -> None:
    one_step = objective(l2_weight=0.5, lpips_weight=2.0)
    loss = one_step.loss(LR - 0.5 * HR, noisy(one_step), IMAGES)
    difference = 0.5 * HR - HR
    distance = 3 * difference.mean(dim=(1, 2, 3)).square().mean()
    assert float(loss) == pytest.approx(float(0.5 * difference.square().mean() + 2 * distance), rel=1e-5)


def test_lpips_alone(lpips: list[nn.Module]) -> None:
    one_step = objective(l2_weight=0.0, lpips_weight=1.0)
    output = (LR - HR + 0.1).requires_grad_()
    loss = one_step.loss(output, noisy(one_step), Supervision(HR.clamp(-0.8, 0.8), LR))
    loss.backward()
    assert float(loss.detach()) > 0
    assert output.grad is not None
    assert output.grad.any()


def test_the_network_of_lpips_is_loaded_once_frozen_and_draws_nothing_of_the_runs(lpips: list[nn.Module]) -> None:
    one_step = objective(lpips_weight=1.0)
    assert not lpips  # only where a loss asks for it: evaluation builds an objective too
    state = torch.get_rng_state()
    for _ in range(2):
        one_step.loss(LR, noisy(one_step), IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    (network,) = lpips
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weight_zero_needs_no_library() -> None:
    assert isinstance(build_objective(ObjectiveConfig(type="one_step"), LATENTS), OneStep)


def test_lpips_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MissingExtraError, match=r"-e '\.\[lpips\]"):
        objective(lpips_weight=1.0)


def test_the_weights_of_lpips_are_not_downloaded(lpips: list[nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / VGG_WEIGHTS
    path.unlink()
    with pytest.raises(UserError, match=f"are not at {path}.* put https://.*{VGG_WEIGHTS} there"):
        objective(lpips_weight=1.0)
    assert not lpips


def test_score_distillation_is_drawn_by_the_samples_own_index_within_its_range() -> None:
    one_step = objective(csd_weight=1.0, csd_range=[0.1, 0.3])
    first = noisy(one_step, (3, 4), seed=5)
    swapped = noisy(one_step, (4, 3), seed=5)
    assert first.score_timesteps is not None
    assert swapped.score_timesteps is not None
    assert torch.equal(swapped.score_timesteps, first.score_timesteps.flip(0))
    assert torch.equal(swapped.noise, first.noise.flip(0))
    many = one_step.add_noise(torch.zeros(2000, 3, 1, 1), torch.zeros(2000, 3, 1, 1), range(2000), 0).score_timesteps
    assert many is not None
    assert many.dtype == torch.int64
    assert 100 <= int(many.min()) <= 102
    assert 297 <= int(many.max()) <= 299


def test_score_distillation_is_added_with_its_weight_and_pulls_the_output() -> None:
    one_step = objective(l2_weight=0.0, csd_weight=2.0, csd_guidance=3.0)
    batch = noisy(one_step)
    assert batch.score_timesteps is not None
    output = (LR - 0.5 * HR).requires_grad_()
    one_step.loss(output, batch, Supervision(HR, LR, base_epsilon)).backward()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    expected = []
    for b, timestep in enumerate(batch.score_timesteps.tolist()):
        a, z = (1 - betas).cumprod(0)[timestep], 0.5 * HR[b].double()
        noisy_z = a.sqrt() * z + (1 - a).sqrt() * batch.noise[b]
        score = 3.0 * timestep / 1000
        guided = (noisy_z - (1 - a).sqrt() * (torch.sin(noisy_z) + score)) / a.sqrt()
        gradient = ((1 - a) / a).sqrt() * score / (z - guided).abs().mean()
        expected.append(torch.full_like(z, float(-2.0 * 2 * gradient / HR.numel())))
    assert output.grad is not None
    torch.testing.assert_close(output.grad.double(), torch.stack(expected), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("images", [None, IMAGES])
def test_score_distillation_without_a_base_model(images: Supervision | None) -> None:
    one_step = objective(l2_weight=0.0, csd_weight=2.0)
    with pytest.raises(UserError, match=r"objective\.csd_weight 2\.0: .* set objective\.csd_weight to 0"):
        one_step.loss(LR, noisy(one_step), images)


def test_as_many_indices_as_samples() -> None:
    with pytest.raises(ValueError, match="1 indices for 2 samples"):
        objective().add_noise(HR, LR, [3], 0)
