"""A micro-step with images' own texts and with latents from stored moments, by the trainer's own code."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import family_folders
import pytest
import torch
from torch import Tensor, nn
from training_runs import tiny_config

from framer.alignment import attach_heads_of
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.data.samples import Sample
from framer.distill import Framer
from framer.errors import UserError
from framer.features.adapters import adapter_for
from framer.models.backbones import backbone_for
from framer.models.build import build_model
from framer.models.latents import VaeLatents
from framer.models.restoration_model import RestorationModel
from framer.models.text import TextEmbeddings, TextSizes
from framer.training.checks import check_texts
from framer.training.forward import ForwardPass, Losses
from framer.training.text_dropping import drops_text

CPU = torch.device("cpu")
SD3_TEXT, UNET_TEXT = TextSizes(8, 8), TextSizes(16, None)

CASES: dict[str, dict[str, Any]] = {
    "sd3": {"model": "sd35", "objective": {"type": "flow_matching"}},
    "sd3 stream": {
        "model": "sd35",
        "options": {"conditioning": "control_stream"},
        "objective": {"type": "flow_matching", "target": "x0"},
    },
    "sd3 controlnet": {
        "model": "sd35",
        "options": {"conditioning": "controlnet", "trainable": ["control"]},
        "objective": {"type": "flow_matching"},
    },
    "unet": {"model": "sd21", "objective": {"type": "diffusion"}},
    "unet controlnet": {
        "model": "sd21",
        "options": {"conditioning": "controlnet", "trainable": ["control"]},
        "objective": {"type": "diffusion"},
    },
    "one step": {"model": "sd21", "options": {"conditioning": "none"}, "objective": {"type": "one_step"}},
    "score": {
        "model": "sd21",
        "options": {"conditioning": "none"},
        "objective": {"type": "one_step", "space": "latent", "csd_weight": 1.0},
    },
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_of(sizes: TextSizes, *batch: int, seed: int, tokens: int = 5) -> TextEmbeddings:
    pooled = None if sizes.pooled is None else draw(*batch, sizes.pooled, seed=seed + 1000)
    return TextEmbeddings(draw(*batch, tokens, sizes.prompt, seed=seed), pooled)


class MicroStep:
    """A tiny model, and a batch of two images."""

    def __init__(
        self, folder: Path, case: str, *, framer: dict[str, Any] | None = None, null_text: TextEmbeddings | None = None
    ) -> None:
        settings = CASES[case]
        pretrained = str(getattr(family_folders, settings["model"])(folder / "model"))
        vae = str(family_folders.autoencoder(folder / "vae"))
        model = {"latents": "vae", "vae": vae, "pretrained": pretrained, **settings.get("options", {})}
        objective = dict(settings["objective"])
        if objective.get("csd_weight"):
            objective["csd_base"] = pretrained
        sections: dict[str, Any] = {"model": model, "objective": objective, "framer": {"weight": 0.1, **(framer or {})}}
        self.config = load_config(TrainConfig, tiny_config(folder, **sections))
        self.sizes = SD3_TEXT if settings["model"] == "sd35" else UNET_TEXT
        self.model = build_model(self.config.model, seed=0)
        with torch.no_grad():  # paths that start at zero would hide what they are given
            for number, parameter in enumerate(self.model.parameters()):
                parameter += 0.05 * draw(*parameter.shape, seed=number) * (parameter == 0)
        self.null_text = null_text
        self.restoration = RestorationModel(self.model, self.config.model, CPU, null_text=null_text)
        attach_heads_of(adapter_for(self.model).model, self.config.framer, seed=0, encoder=None)
        self.framer = Framer(self.model, self.config.framer)
        self.forward = ForwardPass(self.restoration, self.config, self.framer, null_text=null_text)
        self.batch: Sample = {
            "hr": draw(2, 3, 32, 32, seed=1).clamp(-1, 1),
            "lr": torch.zeros(2, 3, 8, 8),
            "lr_upsampled": draw(2, 3, 32, 32, seed=2).clamp(-1, 1),
            "index": torch.tensor([3, 8]),
        }  # type: ignore[typeddict-item]

    def with_text(self, *, seed: int = 0, swapped: bool = False) -> Sample:
        text = text_of(self.sizes, 2, seed=seed)
        order = [1, 0] if swapped else [0, 1]
        batch: Sample = {**self.batch, "prompt_embeds": text.prompt[order]}
        if text.pooled is not None:
            batch["pooled_prompt_embeds"] = text.pooled[order]
        return batch

    def with_moments(self) -> Sample:
        vae = VaeLatents(self.restoration.latents.vae)
        hr, lr = vae.moments(self.batch["hr"]), vae.moments(self.batch["lr_upsampled"])
        return {
            **self.batch,
            "hr_latents_mean": hr.mean,
            "hr_latents_logvar": hr.logvar,
            "lr_latents_mean": lr.mean,
        }

    def drop_texts(self, probability: float) -> None:
        data = self.config.data.model_copy(update={"null_text_probability": probability})
        config = self.config.model_copy(update={"data": data})
        self.forward = ForwardPass(self.restoration, config, self.framer, null_text=self.null_text)

    def run(self, batch: Sample) -> tuple[Losses, list[Tensor]]:
        self.model.zero_grad()
        self.framer.load_state_dict({"draws": 0})
        losses = self.forward.losses(self.model, batch)
        (losses.noise + losses.framer).backward()
        return losses, [p.grad.clone() for p in self.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("case", list(CASES))
def test_stored_moments_train_what_encoding_trains(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = MicroStep(tmp_path, case)
    encoded, expected = step.run(step.batch)
    batch = step.with_moments()

    def refuse(self: Any, *_: Any) -> None:
        raise AssertionError("the autoencoder encodes")

    monkeypatch.setattr(type(step.restoration.latents.vae), "encode", refuse)
    stored, gradients = step.run(batch)
    assert torch.equal(stored.noise, encoded.noise)
    assert torch.equal(stored.framer, encoded.framer)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize(
    ("case", "ignored"),
    [
        ("sd3", ()),
        ("sd3 stream", ()),
        ("unet", ()),
        ("unet controlnet", ("lr_latents_mean",)),  # it sees pixels
        ("one step", ("hr_latents_mean", "hr_latents_logvar")),  # its error is that of the decoded image
        ("score", ()),
    ],
)
def test_every_stored_moment_counts(case: str, ignored: tuple[str, ...], tmp_path: Path) -> None:
    step = MicroStep(tmp_path, case)
    before, _ = step.run(step.with_moments())
    for key in ("hr_latents_mean", "hr_latents_logvar", "lr_latents_mean"):
        batch = step.with_moments()
        batch[key] = batch[key] + 0.5  # type: ignore[literal-required]
        assert torch.equal(step.run(batch)[0].noise, before.noise) == (key in ignored), key


@pytest.mark.parametrize("case", list(CASES))
def test_each_image_sees_its_own_text(case: str, tmp_path: Path) -> None:
    step = MicroStep(tmp_path, case)
    losses, gradients = step.run(step.with_text())
    expected = text_of(step.sizes, 2, seed=0)
    assert torch.equal(losses.inputs["encoder_hidden_states"], expected.prompt)
    if expected.pooled is not None:
        assert torch.equal(losses.inputs["pooled_projections"], expected.pooled)
    for other in (step.with_text(seed=1), step.with_text(swapped=True), step.batch):
        changed, changed_gradients = step.run(other)
        assert not torch.equal(changed.noise, losses.noise)
        assert any(not torch.equal(a, b) for a, b in zip(gradients, changed_gradients, strict=True))


def test_texts_and_moments_go_together(tmp_path: Path) -> None:
    step = MicroStep(tmp_path, "sd3")
    encoded, _ = step.run(step.with_text())
    both: Sample = {**step.with_text(), **step.with_moments()}
    assert torch.equal(step.run(both)[0].noise, encoded.noise)


def test_without_a_text_of_its_own_an_image_sees_the_empty_one(tmp_path: Path) -> None:
    null = text_of(SD3_TEXT, seed=5)
    step = MicroStep(tmp_path, "sd3", null_text=null)
    assert step.restoration.text is null
    losses, _ = step.run(step.batch)
    assert torch.equal(losses.inputs["encoder_hidden_states"], null.prompt.expand(2, -1, -1))
    noisy, inputs = step.forward.prepare(step.with_text())
    assert torch.equal(inputs["encoder_hidden_states"], text_of(SD3_TEXT, 2, seed=0).prompt)
    assert torch.equal(noisy.timesteps, losses.inputs["timestep"])


@pytest.mark.parametrize("method", [{"method": "sra"}, {"method": "framer", "teacher": "ema"}], ids=str)
def test_the_average_that_teaches_sees_the_texts_too(method: dict[str, Any], tmp_path: Path) -> None:
    step = MicroStep(tmp_path, "sd3", framer=method)
    seen: list[Tensor] = []

    def watch(model: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
        seen.append(kwargs["encoder_hidden_states"])

    step.model.register_forward_pre_hook(watch, with_kwargs=True)
    step.forward.losses(step.model, step.with_text())
    assert len(seen) == 2
    assert all(torch.equal(text, text_of(SD3_TEXT, 2, seed=0).prompt) for text in seen)


@pytest.mark.parametrize("named", [False, True])
def test_score_distillation_asks_with_the_images_text_and_with_the_negative_one(named: bool, tmp_path: Path) -> None:
    null = text_of(UNET_TEXT, seed=5)
    step = MicroStep(tmp_path, "score", null_text=null)
    negative = null.prompt
    if named:
        path = family_folders.texts(tmp_path / "negative.safetensors", prompt=16, seed=9)
        model = step.config.model.model_copy(update={"negative_text_embeddings": str(path)})
        config = step.config.model_copy(update={"model": model})
        step.forward = ForwardPass(step.restoration, config, step.framer, null_text=null)
        negative = draw(5, 16, seed=9)
    base = step.forward.base_model
    assert base is not None
    seen: list[Tensor] = []

    def watch(model: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
        seen.append(kwargs["encoder_hidden_states"])

    base.model.register_forward_pre_hook(watch, with_kwargs=True)
    step.forward.losses(step.model, step.with_text())
    without, with_text = seen
    assert torch.equal(without, negative.expand(2, -1, -1))
    assert torch.equal(with_text, text_of(UNET_TEXT, 2, seed=0).prompt)


def test_texts_are_dropped_at_the_rate_asked_for() -> None:
    for probability in (0.2, 0.5):
        dropped = [drops_text(7, index, probability) for index in range(2000)]
        # Four standard deviations of a binomial.
        assert sum(dropped) == pytest.approx(
            2000 * probability, abs=4 * (2000 * probability * (1 - probability)) ** 0.5
        )
        # Not by turns: neighbours are dropped together as often as chance has it.
        both = sum(a and b for a, b in pairwise(dropped))
        assert both == pytest.approx(2000 * probability**2, abs=4 * (2000 * probability**2) ** 0.5)
    assert not any(drops_text(7, index, 0.0) for index in range(2000))
    assert all(drops_text(7, index, 1.0) for index in range(2000))


def test_a_dropped_text_is_the_empty_one_in_its_samples_place_alone(tmp_path: Path) -> None:
    null = text_of(SD3_TEXT, seed=5)
    step = MicroStep(tmp_path, "sd3", null_text=null)
    step.drop_texts(0.5)
    seed, own = step.config.seed, text_of(SD3_TEXT, 2, seed=0)
    kept = next(index for index in range(50) if not drops_text(seed, index, 0.5))
    dropped = next(index for index in range(50) if drops_text(seed, index, 0.5))
    for indices in ([kept, dropped], [dropped, kept]):
        _, inputs = step.forward.prepare({**step.with_text(), "index": torch.tensor(indices)})
        for row, index in enumerate(indices):
            text = null if index == dropped else TextEmbeddings(own.prompt[row], own.pooled[row])
            assert torch.equal(inputs["encoder_hidden_states"][row], text.prompt)
            assert torch.equal(inputs["pooled_projections"][row], text.pooled)


def test_score_distillation_asks_with_a_text_that_was_dropped(tmp_path: Path) -> None:
    """With the negative text, which is the same empty one, its gradient would be zero."""
    step = MicroStep(tmp_path, "score", null_text=text_of(UNET_TEXT, seed=5))
    step.drop_texts(1.0)
    losses = [step.run(step.with_text(seed=seed))[0] for seed in (0, 1)]
    for each in losses:
        assert step.null_text is not None
        assert torch.equal(each.inputs["encoder_hidden_states"], step.null_text.prompt.expand(2, -1, -1))
    assert not torch.equal(losses[0].noise, losses[1].noise)


@pytest.mark.parametrize(
    ("case", "sizes", "message"),
    [
        (
            "sd3",
            TextSizes(16, 8),
            "have embeddings of 16 channels and a pooled one of 8, but the SD3Transformer2DModel",
        ),
        ("sd3", TextSizes(8, 4), "takes embeddings of 8 channels and a pooled one of 8; prepare them with the model's"),
        ("sd3", TextSizes(8, None), "have embeddings of 8 channels and no pooled one, but"),
        ("unet", TextSizes(8, None), "but the UNet2DConditionModel takes embeddings of 16 channels and no pooled one"),
    ],
    ids=str,
)
def test_texts_of_other_sizes_are_named(case: str, sizes: TextSizes, message: str, tmp_path: Path) -> None:
    step, null = MicroStep(tmp_path, case), text_of(sizes, seed=0)
    with pytest.raises(UserError, match=message):
        check_texts(step.model, step.config, null)
    with pytest.raises(UserError, match=message):
        RestorationModel(step.model, step.config.model, CPU, null_text=null)


def test_a_text_for_all_is_as_long_as_the_images_own(tmp_path: Path) -> None:
    step = MicroStep(tmp_path, "sd3")
    path = family_folders.texts(tmp_path / "named.safetensors", prompt=8, pooled=8)
    model = step.config.model.model_copy(update={"text_embeddings": str(path)})
    config = step.config.model_copy(update={"model": model})
    check_texts(step.model, config, text_of(SD3_TEXT, seed=0))
    with pytest.raises(UserError, match=r"named.safetensors has 5 text tokens, but the images' own texts have 7"):
        check_texts(step.model, config, text_of(SD3_TEXT, seed=0, tokens=7))


def test_the_base_models_texts_must_fit_too(tmp_path: Path) -> None:
    step = MicroStep(tmp_path, "score")
    null = text_of(TextSizes(8, None), seed=0)
    with pytest.raises(UserError, match=r"but the UNet2DConditionModel of objective.csd_base takes embeddings of 16"):
        ForwardPass(step.restoration, step.config, step.framer, null_text=null)


def test_a_pooled_text_that_the_model_does_not_take_is_left_out(tmp_path: Path) -> None:
    null = text_of(TextSizes(16, 4), seed=0)
    step = MicroStep(tmp_path, "unet", null_text=null)
    check_texts(step.model, step.config, null)
    assert backbone_for(step.config.model).text_sizes(step.model).pooled is None
    batch: Sample = {**step.with_text(), "pooled_prompt_embeds": draw(2, 4, seed=3)}
    assert torch.equal(step.run(batch)[0].noise, step.run(step.with_text())[0].noise)
