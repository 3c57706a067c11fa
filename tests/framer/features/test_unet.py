"""FRAMER on U-Nets: what is captured, the heads, and what is left when they are taken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from peft import LoraConfig
from torch import Tensor, nn
from unet_models import CONFIGS, STUDENTS, unet, unet_inputs

from framer import Framer
from framer.config.distillation import FramerConfig
from framer.config.engine import ActivationCheckpointingConfig
from framer.distill import FramerOutput
from framer.errors import ConfigError, UserError
from framer.features import (
    CaptureError,
    FeatureError,
    FeatureTap,
    MissingHeadsError,
    UnsupportedModelError,
    adapter_for,
    attach_heads,
    detach_heads,
    heads_set_aside,
    without_heads,
)
from framer.training.activation_checkpointing import enable_activation_checkpointing

KINDS = sorted(CONFIGS)
# Untrained heads leave some students' similarity to the teacher negative, where FAM lets no gradient through.
UNGATED = FramerConfig(fam=False)


def with_heads(kind: str = "sd15", **config: Any) -> UNet2DConditionModel:
    model = unet(kind, **config)
    attach_heads(model)
    return model


def step(framer: Framer, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, FramerOutput]:
    with framer.capture():
        prediction = model(**inputs).sample
    return prediction, framer.loss()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [(16, 24), (20, 12)])
@pytest.mark.parametrize("kind", KINDS)
def test_students_are_the_stages_and_the_teacher_what_goes_into_conv_out(kind, size):
    model, inputs = unet(kind), unet_inputs(kind, *size)
    seen: list[Tensor] = []
    for stage in (*model.down_blocks, model.mid_block, *model.up_blocks):
        stage.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    model.conv_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    adapter = adapter_for(model)
    tap = FeatureTap(adapter)
    with tap.record():
        model(**inputs)
    assert adapter.block_names == (*STUDENTS[kind], "conv_act")
    assert tap.capture is not None
    assert tap.capture.grid == (1, *size)
    captured = list(tap.capture.features.values())
    assert [feature.data_ptr() for feature in captured] == [feature.data_ptr() for feature in seen]
    assert [feature.shape[1] for feature in captured] == list(adapter.channels)
    assert captured[-1].shape == (2, 8, *size)


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_and_head_learns_and_the_teacher_does_not(kind):
    model = with_heads(kind)
    framer = Framer(model, UNGATED)
    _, out = step(framer, model, unet_inputs(kind, 20, 12))
    out.total.backward()
    assert out.layer_names == STUDENTS[kind]
    assert out.teacher_name == "conv_act"
    assert out.layers.loss.shape == (len(STUDENTS[kind]),)
    assert torch.isfinite(out.layers.loss).all()
    moved = {name for name, gradient in gradients(model).items() if gradient.any()}
    for student in STUDENTS[kind]:
        assert any(name.startswith(f"{student}.") for name in moved), student
        assert f"framer_heads.{student.replace('.', '_')}.project.weight" in moved
    assert not any(name.startswith(("conv_norm_out", "conv_out")) for name in moved)


@pytest.mark.parametrize("student", [0, 4, 8])
def test_a_students_loss_reaches_its_own_head_alone(student):
    model = with_heads()
    _, out = step(Framer(model, UNGATED), model, unet_inputs())
    out.layers.loss[student].backward()
    own = f"framer_heads.{STUDENTS['sd15'][student].replace('.', '_')}.project.weight"
    moved = {name for name, gradient in gradients(model).items() if gradient.any()}
    assert {name for name in moved if name.startswith("framer_heads")} == {own}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_do_not_depend_on_checkpointing(kind):
    results = []
    for checkpointing in (False, True):
        model = with_heads(kind)
        if checkpointing:
            model.enable_gradient_checkpointing()
        prediction, out = step(Framer(model, UNGATED), model, unet_inputs(kind))
        (prediction.square().mean() + out.total).backward()
        results.append((out.layers.loss.detach(), gradients(model)))
    (loss, expected), (loss_again, got) = results
    assert torch.equal(loss, loss_again)
    assert got.keys() == expected.keys() == {name for name, _ in model.named_parameters()}
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize(("pattern", "runs"), [("*", [2] * 9), ("up_blocks.*", [1] * 5 + [2] * 4)])
def test_the_trainers_checkpointing_recomputes_the_parts_of_the_selected_stages(pattern, runs):
    model = with_heads()
    settings = ActivationCheckpointingConfig(backend="torch", blocks=pattern)
    recomputed = enable_activation_checkpointing(model, settings)
    stages = [model.get_submodule(name) for name in STUDENTS["sd15"]]
    counted = [0] * 9

    def count(number: int) -> Any:
        def hook(*_: object) -> None:
            counted[number] += 1

        return hook

    for number, stage in enumerate(stages):
        # The middle's first resnet is never recomputed by diffusers.
        stage.resnets[-1].register_forward_pre_hook(count(number))
    _, out = step(Framer(model, UNGATED), model, unet_inputs())
    out.total.backward()
    assert counted == runs
    assert recomputed == tuple(name for name, run in zip(STUDENTS["sd15"], runs, strict=True) if run == 2)


def test_heads_are_a_convolution_without_bias_and_a_bilinear_resize():
    model, inputs = with_heads(), unet_inputs()
    framer = Framer(model)
    with framer.capture():
        model(**inputs)
    features = framer.features()
    tap = FeatureTap(adapter_for(model))
    with tap.record():
        model(**inputs)
    assert tap.capture is not None
    assert {name.rsplit(".", 1)[-1] for name, _ in model.framer_heads.named_parameters()} == {"weight"}
    for number, (name, got) in enumerate(zip(STUDENTS["sd15"], features.students, strict=True)):
        weight = model.get_parameter(f"framer_heads.{name.replace('.', '_')}.project.weight")[:, :, 0, 0]
        large = F.interpolate(tap.capture.features[number], (16, 24), mode="bilinear", align_corners=False)
        torch.testing.assert_close(got, torch.einsum("oc,bchw->bohw", weight, large), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_smaller_teacher_sees_no_aliases_of_what_it_cannot_hold(dtype):
    model = unet().to(dtype)
    attach_heads(model, teacher=2)
    head = model.framer_heads.head("down_blocks.0")
    rows = torch.arange(32)[None, None, :, None]
    stripes = (torch.cos(0.9 * torch.pi * rows) * torch.ones(1, 8, 32, 32)).to(dtype)
    shrunk = head(stripes, torch.zeros(1, 24, 8, 8, dtype=dtype))
    assert shrunk.dtype == dtype
    assert shrunk.square().mean() < 1e-2 * head.project(stripes).square().mean()


def test_heads_start_as_identity_or_orthogonal_and_depend_on_the_seed_alone():
    model, again, other, fewer = unet(), unet(), unet(), unet()
    for each, seed in ((model, 3), (again, 3), (other, 4)):
        torch.manual_seed(seed + 10)
        state = torch.get_rng_state()
        attach_heads(each, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
    attach_heads(fewer, [1, 5], seed=3)
    weights = {name: head.project.weight[:, :, 0, 0] for name, head in model.framer_heads.named_children()}
    assert torch.equal(weights["up_blocks_3"], torch.eye(8))
    for name, weight in weights.items():
        torch.testing.assert_close(weight @ weight.T, torch.eye(8), msg=name)
        assert torch.equal(weight, again.get_parameter(f"framer_heads.{name}.project.weight")[:, :, 0, 0])
    assert not torch.equal(weights["mid_block"], other.framer_heads.mid_block.project.weight[:, :, 0, 0])
    assert [name for name, _ in fewer.framer_heads.named_children()] == ["down_blocks_1", "up_blocks_0"]
    assert torch.equal(weights["up_blocks_0"], fewer.framer_heads.up_blocks_0.project.weight[:, :, 0, 0])


def test_attaching_again_keeps_trained_heads():
    model = unet()
    model.requires_grad_(False)
    names = attach_heads(model)
    parameters = dict(model.named_parameters())
    assert [name for name, parameter in parameters.items() if parameter.requires_grad] == list(names)
    assert attach_heads(model) == names
    assert attach_heads(nn.parallel.DataParallel(model)) == names
    assert all(model.get_parameter(name) is parameters[name] for name in names)


@pytest.mark.parametrize("arguments", [{"students": 2}, {"teacher": 4}])
def test_heads_of_another_choice_are_not_replaced_silently(arguments):
    model = with_heads()
    with pytest.raises(UserError, match=r"has heads down_blocks_0 \(8 -> 8\), .* need .*detach_heads"):
        attach_heads(model, **arguments)
    detach_heads(model)
    attach_heads(model, **arguments)
    Framer(model, FramerConfig(**arguments))


def test_attaching_to_a_wrapper_is_refused():
    with pytest.raises(UserError, match=r"DataParallel around UNet2DConditionModel.*to the model itself"):
        attach_heads(nn.parallel.DataParallel(unet()))


def test_unknown_students_are_refused():
    with pytest.raises(ConfigError, match=r"\[12\] are not layers"):
        attach_heads(unet(), [1, 12])


def test_framer_without_heads_says_what_to_do():
    with pytest.raises(MissingHeadsError, match=r"8 channels of the teacher conv_act: down_blocks\.0, .*attach_heads"):
        Framer(unet())


def test_framer_with_fewer_heads_than_students_names_those_that_lack_one():
    model = unet()
    attach_heads(model, [1, 5])
    Framer(model, FramerConfig(students=[1, 5]))
    with pytest.raises(MissingHeadsError, match=r"teacher conv_act: mid_block\. Call"):
        Framer(model, FramerConfig(students=[1, 4, 5]))


def test_framer_with_heads_for_another_teacher_is_refused():
    model = unet()
    attach_heads(model, teacher=4)
    with pytest.raises(MissingHeadsError, match=r"8 channels of the teacher conv_act: down_blocks\.0"):
        Framer(model, FramerConfig(students=[0, 1]))


def test_heads_taken_off_between_capture_and_loss_are_missed():
    model = with_heads()
    framer = Framer(model)
    with framer.capture():
        model(**unet_inputs())
    detach_heads(model)
    with pytest.raises(MissingHeadsError, match=r"down_blocks\.0 has been taken off"):
        framer.loss()


def test_heads_that_train_do_not_hide_that_the_model_does_not():
    model = unet()
    model.requires_grad_(False)
    attach_heads(model)
    with pytest.raises(CaptureError, match="FRAMER would have no effect"):
        step(Framer(model), model, unet_inputs())


@pytest.mark.parametrize("space", ["x0", "velocity"])
def test_only_hidden_features_are_compared(space):
    model = with_heads()
    with pytest.raises(FeatureError, match=f"feature space {space} .*UNet2DConditionModel.*hidden"):
        step(Framer(model, FramerConfig(feature_space=space)), model, unet_inputs())


def test_a_stage_in_the_middle_can_teach():
    model = unet()
    attach_heads(model, teacher=4)
    _, out = step(Framer(model, FramerConfig(teacher=4, fam=False)), model, unet_inputs(height=32, width=48))
    out.total.backward()
    assert (out.layer_names, out.teacher_name) == (STUDENTS["sd15"][:4], "mid_block")
    assert torch.isfinite(out.total)
    assert model.framer_heads.down_blocks_0.project.weight.grad.shape == (24, 8, 1, 1)


def test_averaged_weights_teach_without_heads_of_their_own():
    model, inputs = with_heads(), unet_inputs()
    framer = Framer(model, FramerConfig(teacher="ema"))
    with framer.capture_teacher():
        model(**inputs)
    with framer.capture():
        model(**inputs)
    same = Framer(model, FramerConfig())
    assert torch.equal(framer.loss().total, step(same, model, inputs)[1].total)


def test_bfloat16():
    model = unet().bfloat16()
    attach_heads(model)
    assert {parameter.dtype for parameter in model.framer_heads.parameters()} == {torch.bfloat16}
    inputs = {name: value if name == "timestep" else value.bfloat16() for name, value in unet_inputs().items()}
    _, out = step(Framer(model, UNGATED), model, inputs)
    out.total.backward()
    assert torch.isfinite(out.layers.loss).all()
    assert all(parameter.grad is not None for parameter in model.framer_heads.parameters())


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (16, 24)])
def test_heads_give_the_teachers_dtype_under_autocast(size):
    head = with_heads().framer_heads.head("down_blocks.0")
    with torch.autocast("cpu", torch.bfloat16):
        mapped = head(torch.ones(1, 8, 8, 8), torch.zeros(1, 8, *size))
    assert mapped.dtype == torch.float32
    assert mapped.shape == (1, 8, *size)


def test_autocast_that_ended_with_the_forward_pass():
    model, inputs = with_heads(), unet_inputs()
    framer = Framer(model, UNGATED)
    with framer.capture(), torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    features = framer.features()
    assert {student.dtype for student in features.students} == {features.teacher.dtype}
    out = framer.loss()
    out.total.backward()
    _, exact = step(Framer(model, UNGATED), model, inputs)
    torch.testing.assert_close(out.total, exact.total, rtol=0.05, atol=0.0)
    assert {parameter.grad.dtype for parameter in model.framer_heads.parameters()} == {torch.float32}


def test_a_model_saved_without_heads_is_the_plain_one(tmp_path: Path):
    model, inputs = with_heads("sdxl"), unet_inputs("sdxl")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        step(Framer(model, UNGATED), model, inputs)[1].total.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = list(model.named_parameters())
    with heads_set_aside(model):
        model.save_pretrained(tmp_path)
    assert [(name, id(value)) for name, value in model.named_parameters()] == [(n, id(p)) for n, p in trained]

    loaded, report = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).sample, model(**inputs).sample)
    assert "framer" not in "".join(loaded.state_dict()) + (tmp_path / "config.json").read_text()


def test_heads_come_back_after_an_exception_and_none_stays_none():
    model, bare = with_heads(), unet()
    heads = model.framer_heads
    with pytest.raises(KeyError, match="mine"), heads_set_aside(model):
        raise KeyError("mine")
    assert model.framer_heads is heads
    with heads_set_aside(bare):
        detach_heads(bare)
    assert not hasattr(bare, "framer_heads")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_state_without_heads_is_that_of_the_plain_model(prefix):
    state = {f"{prefix}{name}": value for name, value in with_heads().state_dict().items()}
    plain = unet()
    kept = without_heads(state)
    assert kept.keys() == {f"{prefix}{name}" for name in plain.state_dict()}
    plain.load_state_dict({name.removeprefix(prefix): value for name, value in kept.items()})


def test_low_rank_adapters_on_every_convolution_leave_heads_alone():
    model = with_heads()
    model.requires_grad_(False)
    detach_heads(model)
    model.add_adapter(LoraConfig(r=2, target_modules=["conv1", "conv2", "conv", "conv_in", "conv_out", "to_q"]))
    names = attach_heads(model)
    _, out = step(Framer(model, UNGATED), model, unet_inputs())
    out.total.backward()
    got = gradients(model)
    assert all(name in names or "lora" in name for name in got)
    assert set(names) <= got.keys()
    assert any(gradient.any() for name, gradient in got.items() if name.startswith("down_blocks.0."))


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")),
        (("SkipDownBlock2D", "AttnSkipDownBlock2D"), ("AttnSkipUpBlock2D", "SkipUpBlock2D")),
        (("ResnetDownsampleBlock2D", "DownBlock2D"), ("UpBlock2D", "ResnetUpsampleBlock2D")),
    ],
)
def test_unconditional_models_with_other_stages(down, up):
    torch.manual_seed(0)
    model = UNet2DModel(
        in_channels=3,
        out_channels=3,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=(32, 64),
        norm_num_groups=8,
    )
    attach_heads(model)
    _, out = step(Framer(model, UNGATED), model, {"sample": torch.randn(2, 3, 16, 24), "timestep": 300})
    out.total.backward()
    assert out.layer_names == ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
    assert all(parameter.grad.any() for parameter in model.framer_heads.parameters())


def test_a_model_without_a_middle_stage_has_one_student_fewer():
    model = with_heads(mid_block_type=None)
    assert Framer(model).layer_names == tuple(name for name in STUDENTS["sd15"] if name != "mid_block")


def test_subclasses_are_known():
    class Mine(UNet2DConditionModel):
        pass

    model = unet()
    model.__class__ = Mine
    assert adapter_for(model).block_names == (*STUDENTS["sd15"], "conv_act")


def test_a_model_without_an_output_norm_is_refused():
    model = unet()
    model.conv_norm_out = model.conv_act = None
    with pytest.raises(UnsupportedModelError, match="norm_num_groups=None"):
        Framer(model)


def test_a_sample_of_no_size_is_refused():
    with pytest.raises(FeatureError, match=r"no sample \[B, C, H, W\]; its arguments: timestep"):
        adapter_for(unet()).token_grid({"timestep": 1})


def test_transformers_need_no_heads(make_model):
    model = make_model()
    assert isinstance(model, SD3Transformer2DModel)
    assert attach_heads(model) == ()
    with heads_set_aside(model):
        detach_heads(model)
    assert not hasattr(model, "framer_heads")
