from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from framer.features import Adapter, Capture, FeatureError, FeatureTap, adapter_for, feature_space
from framer.features.adapters.base import HeadArguments


def captured(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Capture]:
    tap = FeatureTap(adapter_for(model))
    with tap.record():
        prediction = model(**inputs).sample
    assert tap.capture is not None
    return prediction, tap.capture


def feature_maps(capture: Capture, adapter: Adapter, space: str, **given: object) -> tuple[list[Tensor], Tensor]:
    """All layers' maps in a space: the students', and the teacher's without gradient."""
    convert = feature_space(capture, adapter, space, **given)
    *students, teacher = capture.features.values()
    with torch.no_grad():
        taught = convert(teacher).detach()
    return [convert(student) for student in students], taught


def test_hidden_maps_are_views_of_the_tokens(make_model, make_inputs):
    model = make_model()
    tokens: list[Tensor] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, args, output: tokens.append(output[1]))
    _, capture = captured(model, make_inputs())
    students, teacher = feature_maps(capture, adapter_for(model), "hidden")
    assert len(tokens) == 3
    for sequence, view in zip(tokens, [*students, teacher], strict=True):
        assert view.shape == (2, 16, 4, 6)
        assert view.data_ptr() == sequence.data_ptr()
        # row-major tokens: the token at row 2, column 5 of 6
        assert torch.equal(view[:, :, 2, 5], sequence[:, 2 * 6 + 5])
    assert all(student.requires_grad for student in students)
    assert not teacher.requires_grad


def test_velocity_of_the_teacher_is_the_models_prediction(make_model, make_inputs):
    model = make_model()
    prediction, capture = captured(model, make_inputs())
    students, teacher = feature_maps(capture, adapter_for(model), "velocity")
    assert torch.equal(teacher, prediction)
    assert not teacher.requires_grad
    assert [student.shape for student in students] == [(2, 4, 8, 12)] * 2
    assert not torch.equal(students[0], students[1])


def test_clean_latent_follows_from_the_velocity(make_model, make_inputs):
    model, inputs = make_model(), make_inputs()
    _, capture = captured(model, inputs)
    adapter = adapter_for(model)
    velocities, _ = feature_maps(capture, adapter, "velocity")
    sample, sigmas = inputs["hidden_states"], torch.tensor([0.25, 0.75])
    students, _ = feature_maps(capture, adapter, "x0", sample=sample, sigmas=sigmas)
    for student, velocity in zip(students, velocities, strict=True):
        torch.testing.assert_close(student[0], sample[0] - 0.25 * velocity[0])
        torch.testing.assert_close(student[1], sample[1] - 0.75 * velocity[1])


def test_exact_velocity_gives_the_clean_latent(make_model, make_inputs):
    """x_t = (1 - sigma) x_0 + sigma noise, and v = noise - x_0: x_t - sigma v = x_0."""
    model, inputs = make_model(), make_inputs()
    clean, noise, sigmas = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12), torch.tensor([0.3, 0.9])
    noisy = torch.lerp(clean, noise, sigmas.view(2, 1, 1, 1))
    _, capture = captured(model, inputs)
    adapter = adapter_for(model)
    adapter.predict = lambda feature, arguments, grid: noise - clean  # type: ignore[method-assign]
    _, teacher = feature_maps(capture, adapter, "x0", sample=noisy, sigmas=sigmas)
    torch.testing.assert_close(teacher, clean)


@pytest.mark.parametrize("shape", [(), (2,), (2, 1, 1, 1), (1, 1, 1, 1), (2, 1, 8, 12)])
def test_sigmas_broadcast(make_model, make_inputs, shape):
    model, inputs = make_model(), make_inputs()
    _, capture = captured(model, inputs)
    sample = inputs["hidden_states"]
    students, _ = feature_maps(
        capture, adapter_for(model), "x0", sample=sample, sigmas=torch.full(shape, 0.5, dtype=torch.float64)
    )
    expected, _ = feature_maps(capture, adapter_for(model), "x0", sample=sample, sigmas=torch.tensor([0.5, 0.5]))
    assert students[0].dtype == torch.float32
    torch.testing.assert_close(students[0], expected[0])


def test_clean_latent_of_a_bfloat16_model_is_float32(make_model, make_inputs):
    model = make_model().bfloat16()
    inputs = {k: v.bfloat16() if k != "timestep" else v for k, v in make_inputs().items()}
    _, capture = captured(model, inputs)
    students, teacher = feature_maps(
        capture, adapter_for(model), "x0", sample=inputs["hidden_states"], sigmas=torch.tensor([0.1, 0.9])
    )
    assert {x.dtype for x in (*students, teacher)} == {torch.float32}


@pytest.mark.parametrize("space", ["velocity", "x0"])
def test_head_runs_under_the_autocast_that_the_blocks_saw(make_model, make_inputs, space):
    model, inputs = make_model(), make_inputs()
    tap = FeatureTap(adapter_for(model))
    with tap.record(), torch.autocast("cpu", torch.bfloat16):
        prediction = model(**inputs).sample
    assert tap.capture is not None
    sample, sigmas = inputs["hidden_states"], torch.tensor([0.5, 1.0])
    _, teacher = feature_maps(tap.capture, adapter_for(model), space, sample=sample, sigmas=sigmas)
    expected = prediction if space == "velocity" else sample - sigmas.view(2, 1, 1, 1) * prediction.float()
    torch.testing.assert_close(teacher, expected)


def test_conditioning_may_be_replaced(make_model, make_inputs):
    model = make_model()
    _, capture = captured(model, make_inputs())
    adapter = adapter_for(model)
    other = torch.randn(2, 16)
    students, _ = feature_maps(capture, adapter, "velocity", conditioning=other)
    torch.testing.assert_close(
        students[0], adapter.predict(capture.features[0], HeadArguments((other,), {}), capture.grid)
    )
    with pytest.raises(FeatureError, match=r"conditioning has shape \[2, 8\].*\[2, 16\]"):
        feature_maps(capture, adapter, "velocity", conditioning=torch.randn(2, 8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "missing: sample, sigmas"),
        ({"sample": torch.zeros(2, 4, 8, 12)}, "missing: sigmas"),
        ({"sigmas": torch.ones(2)}, "missing: sample"),
        ({"sample": torch.zeros(2, 8, 8, 12), "sigmas": torch.ones(2)}, r"\[2, 8, 8, 12\].*\[2, 4, 8, 12\]"),
        ({"sample": torch.zeros(1, 4, 8, 12), "sigmas": torch.ones(1)}, r"\[1, 4, 8, 12\]"),
        ({"sample": torch.zeros(2, 4, 12, 8), "sigmas": torch.ones(2)}, r"\[2, 4, 12, 8\].*\[2, 4, 8, 12\]"),
        ({"sample": torch.zeros(2, 4, 8, 12), "sigmas": torch.ones(3)}, r"sigmas have shape \[3\]"),
        ({"sample": torch.zeros(2, 4, 8, 12), "sigmas": torch.ones(2, 4)}, r"sigmas have shape \[2, 4\]"),
        ({"sample": torch.zeros(2, 4, 8, 12), "sigmas": torch.ones(3, 1, 1, 1)}, r"\[3, 1, 1, 1\]"),
    ],
)
def test_wrong_noise_is_refused(make_model, make_inputs, given, message):
    model = make_model()
    _, capture = captured(model, make_inputs())
    with pytest.raises(FeatureError, match=message):
        feature_maps(capture, adapter_for(model), "x0", **given)


def test_concatenated_condition_is_not_part_of_the_sample(make_model, make_inputs):
    model, inputs = make_model(in_channels=8), make_inputs(channels=8)
    _, capture = captured(model, inputs)
    noisy, sigmas = inputs["hidden_states"][:, :4], torch.ones(2)
    students, _ = feature_maps(capture, adapter_for(model), "x0", sample=noisy, sigmas=sigmas)
    assert students[0].shape == (2, 4, 8, 12)
    with pytest.raises(FeatureError, match="without a condition's channels"):
        feature_maps(capture, adapter_for(model), "x0", sample=inputs["hidden_states"], sigmas=sigmas)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_head_keeps_no_hidden_tensor_where_blocks_are_recomputed(make_model, make_inputs, checkpointing):
    model = make_model()
    if checkpointing:
        model.enable_gradient_checkpointing()
    _, capture = captured(model, make_inputs())
    owned = {feature.data_ptr() for feature in capture.features.values()}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in owned and tensor.shape == (2, 24, 16):
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        feature_maps(capture, adapter_for(model), "velocity")
    assert bool(saved) is not checkpointing


def test_spaces_of_a_model_that_predicts_the_clean_sample(make_model, make_inputs):
    model, inputs = make_model(), make_inputs()
    prediction, capture = captured(model, inputs)
    adapter = adapter_for(model)
    sample, sigmas = inputs["hidden_states"], torch.tensor([0.25, 0.75])
    _, clean = feature_maps(capture, adapter, "x0", prediction_type="sample")
    assert torch.equal(clean, prediction)
    _, velocity = feature_maps(capture, adapter, "velocity", sample=sample, sigmas=sigmas, prediction_type="sample")
    torch.testing.assert_close(velocity, (sample - prediction) / sigmas.view(2, 1, 1, 1))
    with pytest.raises(FeatureError, match="velocity of a model that predicts the sample needs sample and sigmas"):
        feature_maps(capture, adapter, "velocity", prediction_type="sample")
