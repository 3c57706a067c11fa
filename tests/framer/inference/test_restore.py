from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional as F

from framer.config.objective import ObjectiveConfig
from framer.errors import UserError
from framer.inference.restore import Prompt, Restorer
from framer.inference.tiling import blend_tiles
from framer.models.latents import ImageLatents, LatentShape, LatentSpace
from framer.models.text import TextEmbeddings
from framer.objectives import Diffusion, FlowMatching, OneStep, build_objective
from framer.seeding import normal_per_sample

SPACES = [ImageLatents("residual", 6.0), ImageLatents("pixel", 1.0)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def truth(upsampled: Tensor) -> Tensor:
    """A high-resolution image that can be told from the low-resolution one, pixel by pixel."""
    return 0.7 * upsampled + 0.2 * upsampled**3


def knowing_velocity(latents: LatentSpace) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The velocity of the straight path from the noise to the truth: ``(x_t - x_0) / sigma``."""

    def velocity(sample: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        clean = latents.encode(truth(condition), condition)
        return (sample - clean) / (timesteps / 1000).view(-1, 1, 1, 1)

    return velocity


def mixing_velocity(sample: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
    """An arbitrary model whose every output pixel depends on its neighbourhood and on the time."""
    blurred = F.avg_pool2d(F.pad(sample + condition, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.tanh(blurred) * (timesteps / 1000).view(-1, 1, 1, 1)


def restorer(velocity: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None, **changes: object) -> Restorer:
    latents = changes.pop("latents", SPACES[0])
    assert isinstance(latents, LatentSpace)
    settings: dict[str, object] = {
        "tile": 16,
        "tile_overlap": 0.25,
        "multiple": 2,
        "num_inference_steps": 4,
    }
    shift = changes.pop("timestep_shift", 3.0)
    objective = changes.pop("objective", FlowMatching(ObjectiveConfig(timestep_shift=shift)))  # type: ignore[arg-type]
    model = velocity or knowing_velocity(latents)
    return Restorer(model, latents, objective, **(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_flow_matching_is_the_schedulers_euler_steps_over_blended_velocities_bit_for_bit(prediction: str) -> None:
    latents, upsampled = SPACES[0], draw(2, 3, 24, 20)
    objective = FlowMatching(ObjectiveConfig(prediction_type=prediction, timestep_shift=3.0))  # type: ignore[arg-type]
    restored = restorer(mixing_velocity, objective=objective)(upsampled, seed=5)

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4))
    sample = normal_per_sample((3, 24, 20), [0, 1], 5, "initial noise")
    for timestep in scheduler.timesteps:

        def velocity(tiles: Tensor, timestep: Tensor = timestep) -> Tensor:
            noisy, known = tiles[:, :3], tiles[:, 3:]
            timesteps = timestep.float().expand(len(tiles))
            output = mixing_velocity(noisy, known, timesteps)
            return output if prediction == "velocity" else (noisy - output) / (timesteps / 1000).view(-1, 1, 1, 1)

        blended = blend_tiles(velocity, torch.cat([sample, upsampled], dim=1), tile=16, overlap=4, multiple=2)
        sample = scheduler.step(blended, timestep, sample, return_dict=False)[0]
    assert torch.equal(restored, latents.decode(sample, upsampled))


@dataclass(frozen=True)
class HalfSize(ImageLatents):
    """Latents of half the image's height and width, and what is known of the image at that size."""

    shape = LatentShape(3, 3, 3, 2)

    def reference(self, upsampled: Tensor) -> Tensor:
        return F.avg_pool2d(upsampled, 2)

    def decode(self, latents: Tensor, upsampled: Tensor) -> Tensor:
        return latents.repeat_interleave(2, -1).repeat_interleave(2, -2).clamp(-1, 1)


def test_tiles_of_smaller_latents_cover_the_same_pixels() -> None:
    seen: set[tuple[int, ...]] = set()

    def velocity(sample: Tensor, reference: Tensor, timesteps: Tensor) -> Tensor:
        seen.add(tuple(sample.shape[1:]))
        assert reference.shape == sample.shape
        return (sample - truth(reference)) / (timesteps / 1000).view(-1, 1, 1, 1)

    upsampled = draw(2, 3, 40, 28)
    restored = restorer(velocity, latents=HalfSize("pixel", 1.0), tile=8)(upsampled, seed=0)
    assert seen == {(3, 8, 8)}
    expected = truth(F.avg_pool2d(upsampled, 2)).repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(restored, expected, rtol=0, atol=2e-5)


def test_a_size_that_is_not_a_multiple_of_the_patch_of_smaller_latents() -> None:
    with pytest.raises(ValueError, match="image size 16x18 is not a multiple of 4 pixels"):
        restorer(latents=HalfSize("pixel", 1.0))(draw(1, 3, 16, 18), seed=0)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_diffusion_restores_with_a_model_that_knows_the_truth(steps: int, zero_snr: bool) -> None:
    upsampled = draw(2, 3, 40, 26)
    objective = Diffusion(ObjectiveConfig(type="diffusion", prediction_type="sample", zero_terminal_snr=zero_snr))
    restored = restorer(
        lambda sample, reference, timesteps: truth(reference),
        latents=ImageLatents("pixel", 1.0),
        objective=objective,
        num_inference_steps=steps,
    )(upsampled, seed=0)
    torch.testing.assert_close(restored, truth(upsampled), rtol=0, atol=1e-6)


def test_one_step_asks_the_model_once_a_tile_and_subtracts_what_it_says() -> None:
    upsampled, latents = draw(2, 3, 40, 26), ImageLatents("pixel", 1.0)
    times: list[Tensor] = []

    def residual(sample: Tensor, reference: Tensor, timesteps: Tensor) -> Tensor:
        assert torch.equal(sample, reference)
        times.append(timesteps)
        return sample - truth(reference)

    objective = OneStep(ObjectiveConfig(type="one_step", timestep=7), latents)
    restore = restorer(residual, latents=latents, objective=objective, num_inference_steps=4)
    restored = restore(upsampled, seed=0)
    torch.testing.assert_close(restored, truth(upsampled), rtol=0, atol=1e-6)
    assert len(times) == 1
    assert set(times[0].tolist()) == {7.0}
    assert torch.equal(restore(upsampled, seed=1), restored)


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("latents", SPACES)
@pytest.mark.parametrize("size", [(16, 16), (8, 12), (40, 26)])
def test_a_model_that_knows_the_truth_restores_it(
    steps: int, shift: float, latents: LatentSpace, size: tuple[int, int]
) -> None:
    upsampled = draw(2, 3, *size)
    restored = restorer(latents=latents, num_inference_steps=steps, timestep_shift=shift)(upsampled, seed=0)
    torch.testing.assert_close(restored, truth(upsampled), rtol=0, atol=2e-5)
    assert restored.dtype == torch.float32


def test_a_model_that_predicts_no_change_leaves_the_noise() -> None:
    latents = ImageLatents("pixel", 1.0)
    still = restorer(lambda sample, condition, timesteps: torch.zeros_like(sample), latents=latents)
    restored = still(torch.zeros(4, 3, 16, 16), seed=0)
    inside = restored.abs() < 1
    assert 0.63 < inside.float().mean() < 0.73  # a standard normal is within one deviation 68 % of the time
    assert abs(float(restored.mean())) < 0.05


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_times_that_the_model_sees_are_shifted_even_steps_from_one(steps: int, shift: float) -> None:
    seen: list[Tensor] = []

    def velocity(sample: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(timesteps)
        return torch.zeros_like(sample)

    restorer(velocity, num_inference_steps=steps, timestep_shift=shift)(draw(2, 3, 8, 8), seed=0)
    even = [1 - i / steps for i in range(steps)]
    expected = [1000 * shift * sigma / (1 + (shift - 1) * sigma) for sigma in even]
    assert [float(timesteps[0]) for timesteps in seen] == pytest.approx(expected, rel=1e-5)
    assert all(timesteps.shape == (2,) and timesteps.dtype == torch.float32 for timesteps in seen)
    assert all(bool((timesteps == timesteps[0]).all()) for timesteps in seen)


def test_the_model_sees_each_tile_with_its_part_of_the_low_resolution_image() -> None:
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(40), indexing="ij")
    upsampled = torch.stack([rows, columns, rows * 0])[None] / 40
    seen: list[tuple[int, int]] = []

    def velocity(sample: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        for tile in condition:
            y, x = (round(float(corner) * 40) for corner in tile[:2, 0, 0])
            assert torch.equal(tile, upsampled[0, :, y : y + 16, x : x + 16])
            seen.append((y, x))
        return torch.zeros_like(sample)

    restorer(velocity, num_inference_steps=1)(upsampled, seed=0)
    assert seen == [(y, x) for y in (0, 8) for x in (0, 12, 24)]


def test_tiles_begin_where_a_patch_begins() -> None:
    seen: set[int] = set()

    def velocity(sample: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        seen.update(round(float(tile[0, 0, 0]) * 44) for tile in condition)
        return torch.zeros_like(sample)

    columns = (torch.arange(44) / 44).expand(1, 3, 24, 44)
    restorer(velocity, multiple=4)(columns, seed=0)
    assert {0, 28} < seen
    assert all(column % 4 == 0 for column in seen)


def test_the_same_seed_gives_the_same_image_and_another_seed_another() -> None:
    upsampled = draw(1, 3, 24, 20)
    restore = restorer(mixing_velocity)
    torch.manual_seed(1)
    first = restore(upsampled, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(restore(upsampled, seed=3), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(restore(upsampled, seed=4), first, atol=0.01)


def test_an_image_does_not_depend_on_the_others_in_its_batch() -> None:
    first, second, other = (draw(1, 3, 24, 20, seed=seed) for seed in range(3))
    restore = restorer(mixing_velocity)
    together = restore(torch.cat([first, second]), seed=3)
    torch.testing.assert_close(restore(first, seed=3), together[:1], rtol=0, atol=1e-6)
    torch.testing.assert_close(restore(torch.cat([other, second]), seed=3)[1:], together[1:], rtol=0, atol=1e-6)
    assert not torch.allclose(restore(torch.cat([first, first]), seed=3)[1], together[0], atol=0.01)


def test_tiling_hardly_changes_what_a_local_model_makes() -> None:
    upsampled = draw(1, 3, 32, 48)
    whole = restorer(mixing_velocity, tile=64)(upsampled, seed=0)
    tiled = restorer(mixing_velocity, tile=16)(upsampled, seed=0)
    assert (whole - tiled).abs().max() < 0.1
    assert (whole - tiled).abs().mean() < 0.002


def test_no_graph_is_built_and_the_input_stays() -> None:
    upsampled = draw(1, 3, 16, 16).requires_grad_()
    copy = upsampled.detach().clone()
    assert not restorer()(upsampled, seed=0).requires_grad
    assert torch.equal(upsampled, copy)


def test_the_restored_image_is_within_range() -> None:
    loud = restorer(lambda sample, condition, timesteps: torch.full_like(sample, -50.0))
    assert torch.equal(loud(draw(1, 3, 16, 16), seed=0), torch.ones(1, 3, 16, 16))


@pytest.mark.parametrize("size", [(15, 16), (16, 15), (3, 3)])
def test_a_size_that_is_not_a_multiple_of_the_patch(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"image size {size[0]}x{size[1]} is not a multiple of 2 pixels"):
        restorer()(draw(1, 3, *size), seed=0)


def text_of(value: float) -> TextEmbeddings:
    return TextEmbeddings(torch.full((1, 1), value), None)


def told_velocity(
    sample: Tensor, condition: Tensor, timesteps: Tensor, *, text: TextEmbeddings | None = None
) -> Tensor:
    """An arbitrary model that heeds a text."""
    return mixing_velocity(sample, condition, timesteps) + (0.0 if text is None else float(text.prompt[0, 0]))


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize("scale", [0.0, 2.0, 7.5])
def test_guidance_goes_from_the_negative_text_through_the_text(scale: float, prediction: str) -> None:
    upsampled = draw(1, 3, 24, 20)
    objective = FlowMatching(ObjectiveConfig(prediction_type=prediction, timestep_shift=3.0))  # type: ignore[arg-type]
    restore = restorer(told_velocity, objective=objective, num_inference_steps=3)
    guided = restore(upsampled, seed=0, prompt=Prompt(text_of(0.03), text_of(-0.01), scale))
    # The text is added, and what an output means is linear in it: guidance of the sum is a text by itself.
    equal = restore(upsampled, seed=0, prompt=Prompt(text_of(-0.01 + scale * 0.04)))
    torch.testing.assert_close(guided, equal, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("scale", "texts"), [(1.0, [0.5]), (1.5, [0.5, -0.5])])
def test_without_guidance_the_model_is_asked_once(scale: float, texts: list[float]) -> None:
    seen: list[float] = []

    def record(sample: Tensor, condition: Tensor, timesteps: Tensor, *, text: TextEmbeddings) -> Tensor:
        seen.append(float(text.prompt))
        return torch.zeros_like(sample)

    prompt = Prompt(text_of(0.5), text_of(-0.5), scale)
    restorer(record, num_inference_steps=1)(draw(1, 3, 16, 16), seed=0, prompt=prompt)
    assert seen == texts


def test_guidance_needs_a_negative_text() -> None:
    with pytest.raises(UserError, match="guidance scale 2 needs the embeddings of a negative or empty text"):
        restorer(told_velocity)(draw(1, 3, 16, 16), seed=0, prompt=Prompt(text_of(0.5), guidance_scale=2))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("latents", SPACES)
def test_flow_matching_starts_from_the_image_under_noise(shift: float, latents: LatentSpace) -> None:
    upsampled, seen = draw(1, 3, 16, 16), []

    def record(sample: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        seen.append((sample.clone(), float(timesteps[0])))
        return torch.zeros_like(sample)

    restore = restorer(record, latents=latents, timestep_shift=shift, start_from_image=True, strength=0.6)
    restore(upsampled, seed=4)
    noise = normal_per_sample((3, 16, 16), [0], 4, "initial noise")
    image = latents.encode(upsampled, upsampled, indices=[0], seed=0)
    torch.testing.assert_close(seen[0][0], 0.4 * image + 0.6 * noise)
    times = [time for _, time in seen]
    assert times[0] == pytest.approx(600, rel=1e-5)
    assert len(times) == 4
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(("strength", "calls"), [(1.0, 4), (0.5, 2), (0.26, 1)])
def test_diffusion_starts_from_the_image_with_the_noise_of_its_first_timestep(strength: float, calls: int) -> None:
    upsampled, seen = draw(1, 3, 16, 16), []
    objective = Diffusion(ObjectiveConfig(type="diffusion", prediction_type="sample"))

    def record(sample: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        seen.append((sample.clone(), int(timesteps[0])))
        return truth(condition)

    restore = restorer(record, latents=SPACES[1], objective=objective, start_from_image=True, strength=strength)
    torch.testing.assert_close(restore(upsampled, seed=4), truth(upsampled), rtol=0, atol=1e-6)
    noise = normal_per_sample((3, 16, 16), [0], 4, "initial noise")
    expected = objective.at_timestep(upsampled, upsampled, noise, seen[0][1]).sample
    torch.testing.assert_close(seen[0][0], expected)
    assert len(seen) == calls
    assert seen[0][1] < 1000 * strength


def test_a_start_from_the_image_restores_with_a_model_that_knows_the_truth() -> None:
    upsampled = draw(1, 3, 24, 20)
    restored = restorer(start_from_image=True, strength=0.5)(upsampled, seed=0)
    torch.testing.assert_close(restored, truth(upsampled), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("objective", "changes", "says"),
    [
        ("diffusion", {"start_from_image": True, "strength": 0.1}, "strength 0.1 leaves none of 4 steps"),
        ("diffusion", {"num_inference_steps": 1001}, "1001 sampling steps: the schedule of diffusion has 1000"),
        ("diffusion", {"strength": 0.5}, "has no effect where sampling starts from noise alone"),
        ("one_step", {"strength": 0.5}, "has no effect on a model that restores in one step"),
        ("flow_matching", {"start_from_image": True}, "strength 1 has no trace of the image"),
        ("flow_matching", {"start_from_image": True, "strength": 1.5}, "strength 1.5: expected above 0, up to 1"),
    ],
)
def test_starts_that_cannot_be(objective: str, changes: dict[str, object], says: str) -> None:
    config = ObjectiveConfig(type=objective)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=says):
        restorer(mixing_velocity, objective=build_objective(config, SPACES[0]), **changes)(draw(1, 3, 16, 16), seed=0)
