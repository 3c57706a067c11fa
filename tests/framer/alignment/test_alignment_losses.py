"""Each method's loss against its formula written out, and where its gradient goes."""

from __future__ import annotations

import math

import pytest
import torch
from alignment_cases import LAYERS, MeanColours, tiny_images, tiny_inputs, tiny_transformer
from diffusers import UNet2DModel
from torch import Tensor, nn

from framer import Framer, FramerConfig
from framer.alignment import attach_projectors
from framer.alignment.dispersive import dispersive_loss
from framer.alignment.distances import smooth_l1_loss, squared_distance_loss, token_cosine_loss
from framer.alignment.sra import teacher_sigmas
from framer.distill import FramerOutput
from framer.features import attach_heads

METHODS = ("l2", "layersync", "sra", "repa", "dispersive")


def prepared(method: str, model: nn.Module, **settings: object) -> Framer:
    config = FramerConfig(method=method, **settings)
    encoder = MeanColours() if method == "repa" else None
    attach_projectors(model, config, seed=4, encoder=encoder)
    return Framer(model, config, encoder=encoder)


def run(framer: Framer, model: nn.Module, *, batch: int = 3) -> FramerOutput:
    if framer.config.teacher == "ema":
        with framer.capture_teacher():
            model(**tiny_inputs(batch))
    with framer.capture():
        model(**tiny_inputs(batch))
    return framer.loss(images=tiny_images(batch))


def tokens_of(model: nn.Module, batch: int = 3) -> list[Tensor]:
    """Every block's image tokens ``[B, 24, C]``."""
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, args, output: seen.append(output[1]))
        for block in model.transformer_blocks
    ]
    model(**tiny_inputs(batch))
    for handle in handles:
        handle.remove()
    return seen


def trained(model: nn.Module) -> set[str]:
    """Blocks and heads that have a gradient."""
    names = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    return {".".join(name.split(".")[:2]) for name in names if name.startswith(("transformer_blocks", "framer_heads"))}


def blocks(*numbers: int) -> set[str]:
    return {f"transformer_blocks.{number}" for number in numbers}


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """Of every token."""
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def test_l2_is_the_mean_squared_distance_of_every_student() -> None:
    model = tiny_transformer()
    out = run(prepared("l2", model), model)
    *students, teacher = tokens_of(model)
    expected = torch.stack([((x - teacher) ** 2).sum() / x.numel() for x in students])
    torch.testing.assert_close(out.layers.loss, expected)
    torch.testing.assert_close(out.total, expected.sum())
    out.total.backward()
    assert trained(model) == blocks(*range(LAYERS - 1))


def test_l2_takes_framers_students_teacher_space_and_reduction() -> None:
    model = tiny_transformer()
    settings = {"students": [0, 2], "teacher": 4, "reduce": "mean", "weight": 0.5}
    out = run(prepared("l2", model, **settings), model)
    tokens = tokens_of(model)
    expected = 0.5 * (nn.functional.mse_loss(tokens[0], tokens[4]) + nn.functional.mse_loss(tokens[2], tokens[4])) / 2
    torch.testing.assert_close(out.total, expected)
    assert out.layer_names == ("transformer_blocks.0", "transformer_blocks.2")

    one = tiny_transformer()
    framer = Framer(one, FramerConfig(method="l2", feature_space="velocity"))
    with framer.capture():
        prediction = one(**tiny_inputs()).sample
    torch.testing.assert_close(framer.features().teacher, prediction)
    framer.loss().total.backward()
    assert one.proj_out.weight.grad is not None


def test_layersync_turns_the_early_layers_tokens_towards_the_later_ones() -> None:
    model = tiny_transformer()
    out = run(prepared("layersync", model), model)
    tokens = tokens_of(model)
    # A third and two thirds of six blocks: the second and the fourth.
    torch.testing.assert_close(out.layers.loss, -cosines(tokens[1], tokens[3]).mean()[None])
    torch.testing.assert_close(out.total, 0.2 * out.layers.loss[0])
    assert (out.layer_names, out.teacher_name) == (("transformer_blocks.1",), "transformer_blocks.3")
    out.total.backward()
    assert trained(model) == blocks(0, 1)


def test_sra_compares_the_projected_student_with_the_other_passs_layer() -> None:
    model = tiny_transformer()
    framer = prepared("sra", model, students=[1], sra={"teacher_layer": 3})
    average = tiny_transformer()
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1.1)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({**own, **average.state_dict()})
    with framer.capture_teacher():
        model(**{**tiny_inputs(), "timestep": torch.tensor([100.0, 200.0, 300.0])})
    model.load_state_dict(own)
    with framer.capture():
        model(**tiny_inputs())
    out = framer.loss()

    seen: list[Tensor] = []
    handle = average.transformer_blocks[3].register_forward_hook(lambda _, args, output: seen.append(output[1]))
    average(**{**tiny_inputs(), "timestep": torch.tensor([100.0, 200.0, 300.0])})
    handle.remove()
    first, _, second, _, third = model.framer_heads["1"].layers
    hidden = nn.functional.silu(first(tokens_of(model)[1]))
    projected = third(nn.functional.silu(second(hidden)))
    distance = (projected - seen[0]).abs()
    expected = torch.where(distance < 1, distance.square() / 2, distance - 0.5).mean()
    torch.testing.assert_close(out.layers.loss, expected[None])
    out.total.backward()
    assert trained(model) == blocks(0, 1) | {"framer_heads.1"}


def test_sras_teacher_sees_less_noise_by_a_draw_of_each_sample() -> None:
    sigmas = torch.linspace(0.1, 0.9, 200)
    lower = teacher_sigmas(sigmas, range(200), seed=3, gap=0.2)
    gaps = sigmas - lower
    assert bool((lower >= 0).all())
    assert 0 <= float(gaps.min()) < 0.01 < 0.19 < float(gaps.max()) <= 0.2
    assert float(gaps[100:].mean()) == pytest.approx(0.1, abs=0.02)
    # Each draw is the sample's own, however samples are batched.
    assert torch.equal(teacher_sigmas(sigmas[50:], range(50, 200), seed=3, gap=0.2), lower[50:])
    assert not torch.equal(teacher_sigmas(sigmas, range(200), seed=4, gap=0.2), lower)
    assert torch.equal(teacher_sigmas(sigmas, range(200), seed=3, gap=0.0), sigmas)


@pytest.mark.parametrize("spatial_norm", [False, True])
def test_repa_compares_projected_tokens_with_the_encoders_of_the_clean_image(spatial_norm: bool) -> None:
    model = tiny_transformer()
    out = run(prepared("repa", model, repa={"spatial_norm": spatial_norm}), model)
    colours = nn.functional.adaptive_avg_pool2d((tiny_images() + 1) / 2, 2)
    target = nn.functional.interpolate(colours, size=(4, 6), mode="bilinear", antialias=True)
    if spatial_norm:
        target = (target - target.mean((2, 3), keepdim=True)) / (target.std((2, 3), keepdim=True) + 1e-6)
    projected = model.framer_heads["1"].layers(tokens_of(model)[1])
    torch.testing.assert_close(out.layers.loss, -cosines(projected, target.flatten(2).mT).mean()[None])
    assert out.teacher_name == "MeanColours"
    out.total.backward()
    assert trained(model) == blocks(0, 1) | {"framer_heads.1"}


def test_the_convolution_of_irepa_sees_a_tokens_neighbours() -> None:
    model = tiny_transformer()
    attach_projectors(model, FramerConfig(repa={"projector": "conv"}), encoder=MeanColours())
    feature = torch.randn(2, 16, 4, 6)
    changed = feature.clone()
    changed[:, :, 1, 1] += 1
    difference = (model.framer_heads["1"](changed) - model.framer_heads["1"](feature)).abs().sum(dim=(0, 1))
    moved = torch.zeros(4, 6, dtype=torch.bool)
    moved[:3, :3] = True
    assert torch.equal(difference > 1e-6, moved)


def test_dispersive_is_the_log_mean_over_all_pairs_of_samples() -> None:
    model = tiny_transformer()
    out = run(prepared("dispersive", model, dispersive={"temperature": 0.25}), model)
    x = tokens_of(model)[1].detach().flatten(1).double()
    pairs = [float(torch.exp(-(a - b).square().mean() / 0.25)) for a in x for b in x]
    assert out.layers.loss.tolist() == pytest.approx([math.log(sum(pairs) / 9)], rel=1e-5)
    assert out.teacher_name is None
    out.total.backward()
    assert trained(model) == blocks(0, 1)


def test_dispersive_drives_samples_apart() -> None:
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = dispersive_loss(x, 0.5)
    (gradient,) = torch.autograd.grad(loss, x)
    assert dispersive_loss(x.detach() - 0.1 * gradient, 0.5) < loss
    assert float(dispersive_loss(torch.ones(4, 2, 3, 3), 0.5)) == 0.0


def test_distances_of_nearly_alike_samples_keep_their_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 100 + 1e-2 * torch.randn(3, 8, 4, 4, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(
        dispersive_loss(x.float(), 1e-4).double(), dispersive_loss(x.float().double(), 1e-4), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("loss", [token_cosine_loss, squared_distance_loss, smooth_l1_loss])
def test_distances_gradients_are_right_and_reach_the_student_alone(loss: object) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda student: loss(student, y), x)
    loss(x, y).backward()
    assert x.grad is not None
    assert y.grad is None


def test_dispersives_gradient_is_right() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    # The mean that is taken off is held: it changes no distance.
    assert torch.autograd.gradcheck(lambda samples: dispersive_loss(samples, 0.5), x)


def alone(student: Tensor, _: Tensor) -> Tensor:
    return dispersive_loss(student, 0.5)


@pytest.mark.parametrize("loss", [token_cosine_loss, squared_distance_loss, smooth_l1_loss, alone])
def test_distances_keep_their_two_maps_and_nothing_else(loss: object) -> None:
    x, y = torch.randn(2, 8, 16, 16, dtype=torch.bfloat16, requires_grad=True), torch.randn(2, 8, 16, 16).bfloat16()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss(x, y)
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, y)}
    assert result.dtype == torch.float32
    assert sum(size for pointer, size in kept.items() if pointer not in own) == 0
    result.backward()
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("half", ["weights", "autocast"])
def test_half_precision(method: str, half: str) -> None:
    model = tiny_transformer()
    framer = prepared(method, model)
    expected = run(framer, model).layers.loss
    dtype = torch.bfloat16
    if half == "weights":
        model.to(dtype)
    with torch.autocast("cpu", dtype, enabled=half == "autocast"):
        batch = tiny_inputs()
        if half == "weights":
            batch = {name: x if name == "timestep" else x.to(dtype) for name, x in batch.items()}
        if framer.config.teacher == "ema":
            with framer.capture_teacher():
                model(**batch)
        with framer.capture():
            model(**batch)
    out = framer.loss(images=tiny_images())
    assert out.layers.loss.dtype == torch.float32
    torch.testing.assert_close(out.layers.loss, expected, rtol=0.05, atol=0.02)
    out.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_changes_nothing(method: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_transformer()
        framer = prepared(method, model)
        if checkpointing:
            model.enable_gradient_checkpointing()
        run(framer, model).total.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_kept_after_the_loss_and_captures_repeat(method: str) -> None:
    model = tiny_transformer()
    framer = prepared(method, model)
    first, second = run(framer, model), run(framer, model)
    assert torch.equal(first.total, second.total)
    assert framer._tap.capture is None
    assert framer.state_dict() == {"draws": 0}


def test_the_first_layer_that_is_not_finite_is_named() -> None:
    model = tiny_transformer()
    framer = prepared("l2", model)
    with torch.no_grad():
        model.transformer_blocks[2].ff.net[2].bias.fill_(math.inf)
    assert run(framer, model).first_non_finite_layer() == "transformer_blocks.0"


def tiny_unet() -> UNet2DModel:
    """Two down stages, a middle and two up stages, of 8 and 16 channels."""
    torch.manual_seed(0)
    stages = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **stages)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("sra", {"sra": {"teacher_layer": 4}}), ("repa", {}), ("dispersive", {}), ("layersync", {})],
)
def test_stages_of_a_unet(method: str, settings: dict[str, object]) -> None:
    model = tiny_unet()
    settings = {"students": [1], **settings}
    if method == "layersync":
        settings["teacher"] = 4
        attach_heads(model, [1], 4)
    framer = prepared(method, model, **settings)
    batch = (torch.randn(2, 3, 16, 16), torch.tensor([10.0, 500.0]))
    if method == "sra":
        with framer.capture_teacher():
            model(*batch)
    with framer.capture():
        model(*batch)
    out = framer.loss(images=tiny_images(2))
    out.total.backward()
    assert out.layer_names == ("down_blocks.1",)
    with_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert "down_blocks" in with_gradient
    assert ("framer_heads" in with_gradient) == (method != "dispersive")
    assert "up_blocks" not in with_gradient
