from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from framer.config.objective import ObjectiveConfig
from framer.objectives import Diffusion, NoisyBatch

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def objective(prediction_type: str = "epsilon", **settings: object) -> Diffusion:
    return Diffusion(ObjectiveConfig(type="diffusion", prediction_type=prediction_type, **settings))  # type: ignore[arg-type]


def add_noise(diffusion: Diffusion, latents: Tensor, indices: list[int], seed: int = 0) -> NoisyBatch:
    return diffusion.add_noise(latents, torch.zeros_like(latents), indices, seed)


def noisy(diffusion: Diffusion, *timesteps: int) -> NoisyBatch:
    shape = (len(timesteps), 4, 4, 6)
    return diffusion.at(draw(*shape, seed=1), draw(*shape, seed=2), torch.tensor(timesteps))


def stable_diffusion_signal() -> Tensor:
    """Alpha bar of Stable Diffusion's schedule from its definition, in float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return (1 - betas).cumprod(0)


def diffusers_schedule(zero_snr: bool) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero_snr
    )


def right_answer(prediction: str, batch: NoisyBatch, signal: Tensor) -> Tensor:
    """What a perfect model says, from the definitions."""
    share = signal[batch.timesteps.long()].view(-1, 1, 1, 1)
    if prediction == "epsilon":
        return batch.noise
    return batch.latents if prediction == "sample" else share.sqrt() * batch.noise - (1 - share).sqrt() * batch.latents


def test_latents_and_noise_are_mixed_by_stable_diffusions_schedule() -> None:
    batch, signal = noisy(objective(), 0, 1, 500, 999), stable_diffusion_signal()
    for b, timestep in enumerate([0, 1, 500, 999]):
        expected = signal[timestep].sqrt() * batch.latents[b] + (1 - signal[timestep]).sqrt() * batch.noise[b]
        torch.testing.assert_close(batch.sample[b], expected, rtol=0, atol=1e-5)
        assert float(batch.sigmas[b]) == pytest.approx(float((1 - signal[timestep]).sqrt()), rel=1e-4)
    assert batch.timesteps.tolist() == [0, 1, 500, 999]
    assert batch.timesteps.dtype == torch.float32


def test_the_mixture_is_that_of_diffusers() -> None:
    scheduler = diffusers_schedule(zero_snr=False)
    batch = noisy(objective(), 3, 700)
    assert torch.equal(batch.sample, scheduler.add_noise(batch.latents, batch.noise, torch.tensor([3, 700])))


def test_with_zero_terminal_snr_the_last_timestep_is_noise_alone() -> None:
    batch = noisy(objective("v_prediction", zero_terminal_snr=True), 0, 999)
    torch.testing.assert_close(batch.sample[1], batch.noise[1], rtol=0, atol=1e-6)
    plain = noisy(objective("v_prediction"), 0, 999)
    torch.testing.assert_close(batch.sample[0], plain.sample[0], rtol=0, atol=1e-5)
    assert not torch.allclose(plain.sample[1], plain.noise[1], atol=0.01)


def test_draws_depend_on_the_seed_and_the_samples_own_index_alone() -> None:
    diffusion, latents = objective(), draw(4, 3, 4, 4)
    whole = add_noise(diffusion, latents, [7, 8, 9, 10], seed=5)
    parts = [add_noise(diffusion, latents[:1], [7], seed=5), add_noise(diffusion, latents[1:], [8, 9, 10], seed=5)]
    for name in ("noise", "sample", "sigmas", "timesteps"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    other = add_noise(diffusion, latents, [7, 8, 9, 10], seed=6)
    assert not torch.equal(other.timesteps, whole.timesteps)
    assert not torch.isclose(other.noise, whole.noise).all(dim=(1, 2, 3)).any()


def test_timesteps_are_whole_and_uniform_from_the_first_to_the_last() -> None:
    timesteps = add_noise(objective(), torch.zeros(4000, 1, 1, 1), list(range(4000))).timesteps
    assert torch.equal(timesteps, timesteps.round())
    assert timesteps.min() <= 2
    assert timesteps.max() >= 997
    counts = torch.histc(timesteps, bins=10, min=0, max=1000)
    assert ((counts - 400).abs() < 4 * (4000 * 0.1 * 0.9) ** 0.5).all()


def test_as_many_indices_as_samples() -> None:
    with pytest.raises(ValueError, match="3 indices for 2 samples"):
        add_noise(objective(), draw(2, 3, 4, 4), [1, 2, 3])


def test_half_precision_latents_are_mixed_in_float32() -> None:
    batch = add_noise(objective(), draw(2, 3, 4, 4).bfloat16(), [0, 1])
    assert {value.dtype for value in batch if value is not None} == {torch.float32}


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_right_answer_has_no_loss_and_another_its_squared_distance(prediction: str) -> None:
    diffusion = objective(prediction)
    batch = noisy(diffusion, 0, 20, 700, 999)
    answer = right_answer(prediction, batch, stable_diffusion_signal()).float()
    assert float(diffusion.loss(answer, batch)) < 1e-9
    loss = diffusion.loss((answer + 0.5).bfloat16(), batch)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(0.25, rel=1e-2)


def test_v_is_that_of_diffusers() -> None:
    diffusion = objective("v_prediction", zero_terminal_snr=True)
    batch = noisy(diffusion, 3, 999)
    velocity = diffusers_schedule(zero_snr=True).get_velocity(batch.latents, batch.noise, torch.tensor([3, 999]))
    assert float(diffusion.loss(velocity, batch)) == 0
    # At the end of the schedule v is minus the clean sample: the model has something to say of noise alone.
    torch.testing.assert_close(velocity[1], -batch.latents[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_cuts_the_weight_of_the_clean_samples_error(prediction: str, gamma: float) -> None:
    timesteps, signal = [0, 20, 300, 700, 999], stable_diffusion_signal()
    diffusion = objective(prediction, min_snr_gamma=gamma)
    batch = noisy(diffusion, *timesteps)
    output = draw(5, 4, 4, 6, seed=3)
    expected = []
    for b, timestep in enumerate(timesteps):
        share = signal[timestep]
        sample, out = batch.sample[b].double(), output[b].double()
        if prediction == "epsilon":
            clean = (sample - (1 - share).sqrt() * out) / share.sqrt()
        elif prediction == "v_prediction":
            clean = share.sqrt() * sample - (1 - share).sqrt() * out
        else:
            clean = out
        weight = min(float(share / (1 - share)), gamma)
        expected.append(weight * float((clean - batch.latents[b]).square().mean()))
    assert float(diffusion.loss(output, batch)) == pytest.approx(sum(expected) / 5, rel=1e-3)


def test_without_min_snr_all_timesteps_weigh_alike() -> None:
    diffusion = objective()
    batch = noisy(diffusion, 0, 999)
    parts = []
    for b in range(2):
        output = batch.noise.clone()
        output[b] += 1
        parts.append(float(diffusion.loss(output, batch)))
    assert parts == pytest.approx([0.5, 0.5], rel=1e-5)


def sampled(diffusion: Diffusion, answer: Callable[[Tensor, int], Tensor], *, steps: int) -> Tensor:
    """Samples with a model that answers in the objective's own prediction type."""

    def predict(sample: Tensor, timestep: Tensor) -> Tensor:
        timesteps = timestep.float().expand(len(sample))
        return diffusion.prediction(answer(sample, int(timestep)), sample, timesteps)

    return diffusion.sample(predict, torch.zeros(2, 3, 4, 6), channels=4, steps=steps, seed=3)


@pytest.mark.parametrize("steps", [1, 3, 4, 7, 50])
@pytest.mark.parametrize(
    ("prediction", "zero_snr"),
    [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False), ("sample", True)],
)
def test_a_model_that_is_right_about_the_noise_recovers_the_latents(
    prediction: str, zero_snr: bool, steps: int
) -> None:
    diffusion = objective(prediction, zero_terminal_snr=zero_snr)
    signal = diffusers_schedule(zero_snr).alphas_cumprod
    clean = draw(2, 4, 4, 6, seed=8)

    def answer(sample: Tensor, timestep: int) -> Tensor:
        share = signal[timestep]
        noise = (sample - share.sqrt() * clean) / (1 - share).sqrt()
        if prediction == "epsilon":
            return noise
        return clean if prediction == "sample" else share.sqrt() * noise - (1 - share).sqrt() * clean

    torch.testing.assert_close(sampled(diffusion, answer, steps=steps), clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("steps", "timesteps"), [(1, [999]), (4, [999, 749, 499, 249])])
def test_sampling_begins_at_the_last_timestep_with_seeded_noise(steps: int, timesteps: list[int]) -> None:
    seen: list[tuple[int, Tensor]] = []

    def answer(sample: Tensor, timestep: int) -> Tensor:
        seen.append((timestep, sample))
        return torch.zeros_like(sample)

    first = sampled(objective("sample"), answer, steps=steps)
    assert [timestep for timestep, _ in seen] == timesteps
    start = seen[0][1]
    assert start.shape == (2, 4, 4, 6)
    assert 0.8 < float(start.std()) < 1.2
    assert torch.equal(sampled(objective("sample"), answer, steps=steps), first)
    assert torch.equal(seen[steps][1], start)


def test_at_a_timestep_the_noise_is_given() -> None:
    latents, noise = draw(2, 4, 4, 6, seed=1), draw(2, 4, 4, 6, seed=2)
    batch = objective().at_timestep(latents, latents, noise, 300)
    assert torch.equal(batch.sample, noisy(objective(), 300, 300).sample)
