from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from framer.objectives.score_distillation import score_distillation_gradient, score_distillation_loss

SIGNAL = torch.tensor([0.9, 0.3])
TIMESTEPS = torch.tensor([20, 499])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Base:
    """A base model whose answers depend on everything that it is given; it records that."""

    def __init__(self, text: float = 0.3) -> None:
        self.text = text
        self.weight = torch.tensor(0.7, requires_grad=True)
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def __call__(self, noisy: Tensor, timesteps: Tensor, *, with_text: bool) -> Tensor:
        self.calls.append((noisy, timesteps, with_text))
        answer = self.weight * torch.sin(noisy) + timesteps.view(-1, 1, 1, 1) / 1000
        return answer + self.text * torch.cos(3 * noisy) if with_text else answer


def gradient(latents: Tensor, base: Base, guidance: float = 7.5) -> Tensor:
    noise = draw(*latents.shape, seed=1)
    return score_distillation_gradient(latents, noise, TIMESTEPS, base, signal=SIGNAL, guidance=guidance)


def explicit_gradient(latents: Tensor, guidance: float, text: float = 0.3) -> Tensor:
    """The gradient in float64, one sample at a time: the classifier's score, scaled and normalised."""
    noise = draw(*latents.shape, seed=1).double()
    found = []
    for b in range(len(latents)):
        a, z = SIGNAL[b].double(), latents[b].double()
        noisy = a.sqrt() * z + (1 - a).sqrt() * noise[b]
        without = 0.7 * torch.sin(noisy) + TIMESTEPS[b] / 1000
        score = text * torch.cos(3 * noisy)
        guided = (noisy - (1 - a).sqrt() * (without + guidance * score)) / a.sqrt()
        distance = (z - guided).abs().mean()
        found.append(((1 - a) / a).sqrt() * guidance * score / distance)
    return torch.stack(found)


def test_the_gradient_is_the_normalised_score_of_the_text() -> None:
    latents = draw(2, 4, 6, 5)
    for guidance in (1.0, 7.5):
        expected = explicit_gradient(latents, guidance)
        torch.testing.assert_close(gradient(latents, Base(), guidance).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_model_is_asked_at_the_same_noise_with_and_without_text() -> None:
    base, latents = Base(), draw(2, 4, 6, 5)
    gradient(latents, base)
    (noisy, timesteps, with_text), (other, same, other_text) = base.calls
    assert {with_text, other_text} == {True, False}
    assert torch.equal(noisy, other)
    assert timesteps.tolist() == same.tolist() == [20.0, 499.0]
    expected = SIGNAL[1].sqrt() * latents[1] + (1 - SIGNAL[1]).sqrt() * draw(2, 4, 6, 5, seed=1)[1]
    torch.testing.assert_close(noisy[1], expected)


def test_a_text_that_changes_nothing_pulls_nowhere() -> None:
    assert not gradient(draw(2, 4, 6, 5), Base(text=0.0)).any()


def test_latents_that_match_the_text_already_have_a_finite_gradient() -> None:
    latents = torch.zeros(2, 1, 1, 1)

    def base(noisy: Tensor, timesteps: Tensor, *, with_text: bool) -> Tensor:
        # With text and guidance 1 the clean latents are zeros exactly; without, they are not.
        exact = noisy / (1 - SIGNAL.view(-1, 1, 1, 1)).sqrt()
        return exact if with_text else exact + 1e-8

    found = score_distillation_gradient(latents, torch.ones_like(latents), TIMESTEPS, base, signal=SIGNAL, guidance=1.0)
    assert torch.isfinite(found).all()


def test_the_losss_gradient_is_twice_the_given_one_over_the_number_of_latents() -> None:
    latents = draw(2, 4, 6, 5).requires_grad_()
    wanted = gradient(latents, Base())
    loss = score_distillation_loss(latents, wanted)
    (found,) = torch.autograd.grad(loss, latents)
    torch.testing.assert_close(found, 2 * wanted / wanted.numel(), rtol=1e-5, atol=1e-7)
    # PiSA-SR's, whose weight of 1 is this one's.
    torch.testing.assert_close(loss, F.mse_loss(latents, latents.detach() - wanted), rtol=1e-5, atol=0)


def test_the_losss_gradient_by_finite_differences_with_its_target_held() -> None:
    latents = draw(2, 4, 6, 5).double()
    held = gradient(latents.float(), Base()).double()
    target = latents - held
    # What the loss is as a function of the latents once its target is fixed.
    step, place = 1e-6, (1, 2, 3, 4)
    moved = [latents.clone() for _ in range(2)]
    moved[0][place] += step
    moved[1][place] -= step
    up, down = ((z - target).square().mean() for z in moved)
    slope = float((up - down) / (2 * step))
    single = latents.float().requires_grad_()
    (found,) = torch.autograd.grad(score_distillation_loss(single, held.float()), single)
    torch.testing.assert_close(float(found[place]), slope, rtol=1e-3, atol=1e-7)


def test_no_gradient_reaches_the_base_model() -> None:
    base, latents = Base(), draw(2, 4, 6, 5).requires_grad_()
    score_distillation_loss(latents, gradient(latents, base)).backward()
    assert latents.grad is not None
    assert base.weight.grad is None
    assert not base.calls[0][0].requires_grad


def test_following_the_gradient_brings_the_latents_to_what_the_text_means() -> None:
    meant = draw(2, 4, 6, 5, seed=9)
    latents = draw(2, 4, 6, 5)

    def base(noisy: Tensor, timesteps: Tensor, *, with_text: bool) -> Tensor:
        share = SIGNAL.view(-1, 1, 1, 1)
        towards = meant if with_text else latents
        return (noisy - share.sqrt() * towards) / (1 - share).sqrt()

    before = (latents - meant).abs().mean()
    for _ in range(20):
        noise = draw(2, 4, 6, 5, seed=1)
        latents = latents - 0.05 * score_distillation_gradient(
            latents, noise, TIMESTEPS, base, signal=SIGNAL, guidance=1.0
        )
    assert (latents - meant).abs().mean() < 0.2 * before
