from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from framer.config.objective import ObjectiveConfig
from framer.objectives import FlowMatching, NoisyBatch
from framer.objectives.flow_matching import MIN_SIGMA


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def objective(**settings: object) -> FlowMatching:
    return FlowMatching(ObjectiveConfig(**settings))  # type: ignore[arg-type]


def add_noise(flow: FlowMatching, latents: Tensor, indices: Sequence[int], seed: int = 0) -> NoisyBatch:
    return flow.add_noise(latents, torch.zeros_like(latents), indices, seed)


def noisy(*sigmas: float) -> NoisyBatch:
    shape = (len(sigmas), 3, 4, 6)
    return FlowMatching.at(draw(*shape, seed=1), draw(*shape, seed=2), torch.tensor(sigmas))


def test_the_sample_is_the_mixture_of_latents_and_noise() -> None:
    batch = add_noise(objective(), draw(5, 3, 4, 6), [10, 11, 12, 13, 14])
    for b in range(5):
        sigma = float(batch.sigmas[b])
        assert 0 < sigma < 1
        torch.testing.assert_close(batch.sample[b], (1 - sigma) * batch.latents[b] + sigma * batch.noise[b])
    torch.testing.assert_close(batch.timesteps, 1000 * batch.sigmas)
    assert torch.equal(batch.latents, draw(5, 3, 4, 6))


def test_the_ends_of_the_path_are_the_latents_and_the_noise() -> None:
    batch = noisy(0.0, 1.0)
    assert torch.equal(batch.sample[0], batch.latents[0])
    assert torch.equal(batch.sample[1], batch.noise[1])


def test_draws_depend_on_the_seed_and_the_samples_own_index_alone() -> None:
    flow, latents = objective(), draw(4, 3, 4, 4)
    whole = add_noise(flow, latents, [7, 8, 9, 10], seed=5)
    parts = [add_noise(flow, latents[:1], [7], seed=5), add_noise(flow, latents[1:], [8, 9, 10], seed=5)]
    for name in ("latents", "noise", "sample", "sigmas", "timesteps"):
        value = getattr(whole, name)
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value), name
    moved = add_noise(flow, latents, [10, 9, 8, 7], seed=5)
    assert torch.equal(moved.noise, whole.noise.flip(0))
    assert torch.equal(moved.sigmas, whole.sigmas.flip(0))
    other = add_noise(flow, latents, [7, 8, 9, 10], seed=6)
    assert not torch.isclose(other.noise, whole.noise).all(dim=(1, 2, 3)).any()
    assert not torch.isclose(other.sigmas, whole.sigmas).any()


def test_draws_leave_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    add_noise(objective(), draw(2, 3, 4, 4), [0, 1])
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_and_time_are_drawn_independently() -> None:
    batch = add_noise(objective(timestep_shift=1.0), torch.zeros(1000, 1, 2, 2), range(1000))
    logits = torch.logit(batch.sigmas)
    for numbers in batch.noise.flatten(1).T:
        assert abs(float(torch.corrcoef(torch.stack([numbers, logits]))[0, 1])) < 0.1


@pytest.mark.parametrize(
    ("mean", "std", "shift"), [(0.0, 1.0, 1.0), (0.0, 1.0, 3.0), (1.0, 0.5, 3.0), (-0.5, 2.0, 0.5)]
)
def test_sigma_is_logit_normal_and_shifted(mean: float, std: float, shift: float) -> None:
    count = 4000
    flow = objective(logit_mean=mean, logit_std=std, timestep_shift=shift)
    sigmas = add_noise(flow, torch.zeros(count, 1, 1, 1), range(count)).sigmas.double()
    for probability in (0.05, 0.25, 0.5, 0.75, 0.95):
        # Shifting by s adds log(s) to the logit; the tolerance is four standard errors of the sample quantile.
        expected = mean + std * NormalDist().inv_cdf(probability) + math.log(shift)
        density = NormalDist(mean + math.log(shift), std).pdf(expected)
        tolerance = 4 * math.sqrt(probability * (1 - probability) / count) / density
        measured = float(torch.logit(torch.quantile(sigmas, probability)))
        assert measured == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_shift_is_that_of_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    even = torch.arange(1000, 0, -1) / 1000
    torch.testing.assert_close(objective(timestep_shift=shift).shift(even), scheduler.sigmas[:1000])


def test_the_shift_keeps_both_ends() -> None:
    assert objective(timestep_shift=3.0).shift(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_half_precision_latents_are_mixed_in_float32() -> None:
    batch = add_noise(objective(), draw(2, 3, 4, 4).bfloat16(), [0, 1])
    assert {value.dtype for value in batch if value is not None} == {torch.float32}


@pytest.mark.parametrize("indices", [[], [1], [1, 2, 3]])
def test_as_many_indices_as_samples(indices: list[int]) -> None:
    with pytest.raises(ValueError, match=f"{len(indices)} indices for 2 samples"):
        add_noise(objective(), draw(2, 3, 4, 4), indices)


def expected_loss(prediction: str, target: str, output: Tensor, batch: NoisyBatch) -> float:
    """Each loss from its own definition, in float64, one sample at a time."""
    errors = []
    for out, latents, noise, sample, sigma in zip(
        *(value.double() for value in (output, batch.latents, batch.noise, batch.sample, batch.sigmas)), strict=True
    ):
        if target == "velocity":
            velocity = out if prediction == "velocity" else (sample - out) / sigma
            errors.append((velocity - (noise - latents)).square())
        else:
            clean = out if prediction == "sample" else sample - sigma * out
            errors.append((clean - latents).square())
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize("target", ["velocity", "x0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_by_their_definitions(prediction: str, target: str, dtype: torch.dtype) -> None:
    batch = noisy(0.06, 0.3, 0.7, 0.999)
    output = draw(4, 3, 4, 6, seed=3).to(dtype)
    loss = objective(prediction_type=prediction, target=target).loss(output, batch)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected_loss(prediction, target, output, batch), rel=2e-5)


@pytest.mark.parametrize("target", ["velocity", "x0"])
def test_the_right_answer_has_no_loss(target: str) -> None:
    batch = noisy(0.01, 0.5, 1.0)
    assert float(objective(target=target).loss(batch.noise - batch.latents, batch)) == 0
    assert float(objective(prediction_type="sample", target=target).loss(batch.latents, batch)) == 0


def test_the_velocity_error_of_a_sample_prediction_is_bounded_at_the_clean_end() -> None:
    batch = noisy(1e-6)
    output = batch.latents + 0.1
    loss = float(objective(prediction_type="sample", target="velocity").loss(output, batch))
    assert loss == pytest.approx((0.1 / MIN_SIGMA) ** 2, rel=1e-4)


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_both_predictions_mean_the_same_velocity(prediction: str) -> None:
    batch = noisy(0.1, 0.5, 1.0)
    velocity = draw(3, 3, 4, 6, seed=3)
    clean = batch.sample - batch.sigmas.view(-1, 1, 1, 1) * velocity
    output = velocity if prediction == "velocity" else clean
    meant = objective(prediction_type=prediction).velocity(output, batch.sample, batch.sigmas)
    torch.testing.assert_close(meant, velocity, rtol=0, atol=1e-5)
    assert (
        objective(prediction_type=prediction).velocity(output.half(), batch.sample, batch.sigmas).dtype == torch.float32
    )


@pytest.mark.parametrize("target", ["velocity", "x0"])
def test_the_loss_does_not_depend_on_how_the_answer_is_parametrised(target: str) -> None:
    batch = noisy(0.1, 0.5, 1.0)
    output = draw(3, 3, 4, 6, seed=3)
    as_sample = objective(prediction_type="sample", target=target)
    velocity = as_sample.velocity(output, batch.sample, batch.sigmas)
    loss = objective(prediction_type="velocity", target=target).loss(velocity, batch)
    torch.testing.assert_close(loss, as_sample.loss(output, batch), rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize("target", ["velocity", "x0"])
def test_the_gradient_reaches_the_output(prediction: str, target: str) -> None:
    batch = noisy(0.2, 0.9)
    output = draw(2, 3, 4, 6, seed=3).requires_grad_()
    objective(prediction_type=prediction, target=target).loss(output, batch).backward()
    assert output.grad is not None
    assert bool((output.grad != 0).all())


def test_at_a_timestep_the_noise_is_given() -> None:
    latents, noise = draw(2, 3, 4, 6, seed=1), draw(2, 3, 4, 6, seed=2)
    batch = objective().at_timestep(latents, latents, noise, 300)
    assert torch.equal(batch.sample, FlowMatching.at(latents, noise, torch.full((2,), 0.3)).sample)
    assert batch.timesteps.tolist() == [300, 300]
