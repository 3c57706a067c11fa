from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import SD3Transformer2DModel
from pydantic import ValidationError
from tiny_models import sd3_inputs, tiny_sd3
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framer.config.distillation import FramerConfig
from framer.distill import Framer, FramerOutput
from framer.errors import ConfigError, UserError
from framer.features import CaptureError, FeatureError, UnsupportedModelError
from framer_kernels import BandSplit, framer_loss

SPACES = ["hidden", "velocity", "x0"]
SIGMAS = torch.tensor([0.3, 0.7])


def build(num_layers: int = 4, **config: object) -> SD3Transformer2DModel:
    return tiny_sd3(num_layers, **{"in_channels": 3, "out_channels": 3, **config})


def inputs(batch: int = 2, height: int = 8, width: int = 12) -> dict[str, Tensor]:
    return sd3_inputs(height, width, 3, batch)


def step(
    framer: Framer, model: nn.Module, batch: dict[str, Tensor], sigmas: Tensor = SIGMAS
) -> tuple[Tensor, FramerOutput]:
    with framer.capture():
        prediction = model(**batch).sample
    return prediction, framer.loss(sample=batch["hidden_states"], sigmas=sigmas)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4) -> None:
    assert got.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=rtol, atol=0.1 * rtol * scale, msg=name)


def maps_by_hooks(model: nn.Module, batch: dict[str, Tensor], space: str) -> list[Tensor]:
    """Every block's map, written out from SD3's own forward."""
    tokens, seen = [], {}
    handles = [
        block.register_forward_hook(lambda _, args, output: tokens.append(output[1]))
        for block in model.transformer_blocks
    ]
    handles.append(model.norm_out.register_forward_pre_hook(lambda _, args: seen.update(temb=args[1])))
    model(**batch)
    for handle in handles:
        handle.remove()
    if space == "hidden":
        return [x.permute(0, 2, 1).reshape(2, 16, 4, 6) for x in tokens]
    velocities = []
    for x in tokens:
        patches = model.proj_out(model.norm_out(x, seen["temb"])).reshape(2, 4, 6, 2, 2, 3)
        velocities.append(torch.einsum("nhwpqc->nchpwq", patches).reshape(2, 3, 8, 12))
    if space == "velocity":
        return velocities
    return [batch["hidden_states"] - SIGMAS.view(2, 1, 1, 1) * velocity for velocity in velocities]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_equals_the_loss_of_the_blocks_outputs(space, preset):
    config = FramerConfig(preset=preset, feature_space=space, seed=3)
    model, expected_model = build(), build()
    _, out = step(Framer(model, config), model, inputs())
    out.total.backward()

    *students, teacher = maps_by_hooks(expected_model, inputs(), space)
    bands = BandSplit.radial(0.25) if preset == "paper" else BandSplit.quantile(0.2)
    layers = framer_loss(
        students,
        teacher.detach(),
        negatives=out.negatives,
        bands=bands,
        representation="complex" if preset == "paper" else "magnitude",
        shared_negatives=preset == "released",
    )
    total = layers.loss.sum() if preset == "paper" else 0.1 * layers.loss.mean()
    total.backward()

    torch.testing.assert_close(out.total, total)
    for got, expected in zip(out.layers, layers, strict=True):
        torch.testing.assert_close(got, expected)
    assert_same(gradients(model), gradients(expected_model))
    assert out.layers.loss.shape == (3,)
    assert out.layers.energy_hf.shape == (3, 2)
    assert out.layer_names == tuple(f"transformer_blocks.{i}" for i in range(3))
    assert out.teacher_name == "transformer_blocks.3"


@pytest.mark.parametrize("assignment", ["intra_high", "intra_both", "inter_both"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_other_assignments_are_passed_on(assignment, checkpointing):
    model, expected_model = build(), build()
    if checkpointing:
        model.enable_gradient_checkpointing()
    _, out = step(Framer(model, FramerConfig(assignment=assignment)), model, inputs())
    out.total.backward()

    *students, teacher = maps_by_hooks(expected_model, inputs(), "hidden")
    layers = framer_loss(students, teacher.detach(), negatives=out.negatives, assignment=assignment)
    layers.loss.sum().backward()

    assert out.assignment == assignment
    for got, expected in zip(out.layers, layers, strict=True):
        torch.testing.assert_close(got, expected)
    assert_same(gradients(model), gradients(expected_model))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_neither_loss_nor_gradient(space, reentrant):
    config = FramerConfig(feature_space=space)
    expected_model, model = build(), build()
    model.enable_gradient_checkpointing(
        (lambda block, *args: checkpoint(block, *args, use_reentrant=True)) if reentrant else None
    )
    totals = []
    for each in (expected_model, model):
        prediction, out = step(Framer(each, config), each, inputs())
        (prediction.square().mean() + out.total).backward()
        totals.append(out.total.detach())
    torch.testing.assert_close(totals[0], totals[1])
    assert_same(gradients(model), gradients(expected_model))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dual_attention_model(checkpointing):
    model = build(dual_attention_layers=(0, 1), qk_norm="rms_norm")
    if checkpointing:
        model.enable_gradient_checkpointing()
    _, out = step(Framer(model), model, inputs())
    out.total.backward()
    assert model.transformer_blocks[1].attn2.to_q.weight.grad.abs().max() > 0


@pytest.mark.parametrize("space", SPACES)
def test_every_student_block_learns_and_the_teacher_does_not(space):
    model = build()
    _, out = step(Framer(model, FramerConfig(feature_space=space)), model, inputs())
    out.total.backward()
    for block in model.transformer_blocks[:-1]:
        assert block.ff.net[2].weight.grad.abs().max() > 0
        assert block.attn.to_q.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model.transformer_blocks[-1].parameters())
    head_learns = model.proj_out.weight.grad is not None
    assert head_learns is (space != "hidden")


def test_gradient_accumulation_captures_each_micro_step():
    model, expected_model = build(), build()
    framer = Framer(model, FramerConfig(feature_space="velocity"))
    batches = [inputs(), inputs(height=12, width=8)]
    negatives = []
    for batch in batches:
        _, out = step(framer, model, batch)
        negatives.append(out.negatives)
        out.total.backward()
    accumulated = gradients(model)

    other = Framer(expected_model, FramerConfig(feature_space="velocity"))
    outs = [step(other, expected_model, batch)[1] for batch in batches]
    assert [out.negatives for out in outs] == negatives
    sum(out.total for out in outs).backward()
    assert_same(accumulated, gradients(expected_model))


def test_model_in_bfloat16():
    model = build().bfloat16()
    model.enable_gradient_checkpointing()
    batch = {k: v.bfloat16() if k != "timestep" else v for k, v in inputs().items()}
    for space in SPACES:
        _, out = step(Framer(model, FramerConfig(feature_space=space)), model, batch)
        out.total.backward()
        assert out.total.dtype == torch.float32
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_may_be_taken_outside_of_the_forwards_autocast(space, checkpointing):
    totals, models = [], []
    for inside in (True, False):
        model = build()
        if checkpointing:
            model.enable_gradient_checkpointing()
        framer = Framer(model, FramerConfig(feature_space=space))
        sample = inputs()["hidden_states"]
        with torch.autocast("cpu", torch.bfloat16):
            with framer.capture():
                model(**inputs())
            if inside:
                out = framer.loss(sample=sample, sigmas=SIGMAS)
        if not inside:
            out = framer.loss(sample=sample, sigmas=SIGMAS)
        out.total.backward()
        totals.append(out.total)
        models.append(model)
    assert torch.equal(*totals)
    # Inside, the head's weights are cast once and their gradients summed in bfloat16, of precision 2**-8.
    assert_same(gradients(models[0]), gradients(models[1]), rtol=0.05)


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **kwargs: Tensor) -> object:
        return self.module(**kwargs)


def test_wrapped_model():
    model, bare = build(), build()
    engine = Wrapper(Wrapper(model))
    _, out = step(Framer(engine), engine, inputs())
    _, expected = step(Framer(bare), bare, inputs())
    assert torch.equal(out.total, expected.total)
    # wrapped after the Framer was made, as by deepspeed.initialize
    _, later = step(Framer(model), engine, inputs())
    assert torch.equal(later.total, expected.total)


def watch_tokens(model: nn.Module) -> list[weakref.ref[Tensor]]:
    alive: list[weakref.ref[Tensor]] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, args, output: alive.append(weakref.ref(output[1])))
    return alive


def test_no_feature_is_kept_alive_after_the_loss():
    model = build()
    framer = Framer(model)
    alive = watch_tokens(model)
    with framer.capture():
        model(**inputs())
    gc.collect()
    assert len(alive) == 4
    assert all(tokens() is not None for tokens in alive)
    out = framer.loss()
    diagnostics = [value for name, value in out.layers._asdict().items() if name != "loss"]
    assert not any(value.requires_grad for value in diagnostics)
    del out
    gc.collect()
    assert [tokens() for tokens in alive] == [None] * 4


def test_detach_drops_the_features_and_refuses_more():
    model = build()
    alive = watch_tokens(model)
    before = dict(model.__dict__)
    framer = Framer(model)
    with framer.capture():
        model(**inputs())
    framer.detach()
    gc.collect()
    assert [tokens() for tokens in alive] == [None] * 4
    assert model.__dict__ == before
    with pytest.raises(CaptureError, match="detached"):
        framer.capture()
    with pytest.raises(CaptureError, match="no features are captured"):
        framer.loss()


def test_features_stay_captured():
    model, batch = build(), inputs()
    framer = Framer(model, FramerConfig(feature_space="x0"))
    with framer.capture():
        prediction = model(**batch).sample
    for _ in range(2):
        features = framer.features(sample=batch["hidden_states"], sigmas=SIGMAS)
    expected = batch["hidden_states"] - SIGMAS.view(2, 1, 1, 1) * prediction
    torch.testing.assert_close(features.teacher, expected)
    assert len(features.students) == len(features.layer_names) == 3
    assert features.teacher_name == "transformer_blocks.3"
    framer.loss(sample=batch["hidden_states"], sigmas=SIGMAS)


def test_loss_needs_a_capture_of_its_own():
    model = build()
    framer = Framer(model)
    with pytest.raises(CaptureError, match="no features are captured"):
        framer.loss()
    step(framer, model, inputs())
    with pytest.raises(CaptureError, match="no features are captured"):
        framer.loss()
    with framer.capture():
        model(**inputs())
        with pytest.raises(CaptureError, match="and leave it before"):
            framer.loss()


def test_a_refused_loss_neither_draws_nor_drops():
    model, batch = build(), inputs()
    framer = Framer(model, FramerConfig(feature_space="x0"))
    with framer.capture():
        model(**batch)
    with pytest.raises(FeatureError, match="missing: sample, sigmas"):
        framer.loss()
    assert framer.state_dict() == {"draws": 0}
    framer.loss(sample=batch["hidden_states"], sigmas=SIGMAS)
    assert framer.state_dict() == {"draws": 1}


def test_two_forwards_in_one_capture_are_refused():
    model = build()
    framer = Framer(model)
    with pytest.raises(CaptureError, match="captured 8 features"), framer.capture():
        [model(**inputs()) for _ in range(2)]
    with pytest.raises(CaptureError, match="no features are captured"):
        framer.loss()


def test_a_new_capture_replaces_one_that_was_not_spent():
    model = build()
    framer = Framer(model)
    with framer.capture():
        model(**inputs(height=4))
    _, out = step(framer, model, inputs())
    assert torch.equal(out.total, step(Framer(model), model, inputs())[1].total)


def test_loss_without_effect_is_refused():
    model = build()
    model.requires_grad_(False)
    model.transformer_blocks[-1].requires_grad_(True)
    with pytest.raises(CaptureError, match="no effect"):
        step(Framer(model), model, inputs())
    # a model that does not train at all may be looked at
    model.requires_grad_(False)
    assert not step(Framer(model), model, inputs())[1].total.requires_grad


def test_models_that_cannot_be_distilled():
    with pytest.raises(UnsupportedModelError, match="does not know where Linear keeps"):
        Framer(nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match="2 blocks; FRAMER needs 3"):
        Framer(build(num_layers=2))


def test_disabled_config_is_refused():
    with pytest.raises(ConfigError, match=r"framer\.enabled"):
        Framer(build(), FramerConfig(enabled=False))


def test_map_too_small_for_its_bands_is_a_users_mistake():
    model = build()
    with pytest.raises(FeatureError, match=r"1 x 1 map has no frequency above"):
        step(Framer(model), model, inputs(height=2, width=2))


@pytest.mark.parametrize("index", [0, 1, 2, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "options", [{}, {"preset": "released"}, {"faw": None, "fam": False}, {"assignment": "inter_both"}]
)
def test_names_the_first_layer_that_is_not_finite(index, value, options):
    model = build()
    with torch.no_grad():
        model.transformer_blocks[index].ff.net[2].bias[0] = value
    _, out = step(Framer(model, FramerConfig(**options)), model, inputs())
    assert not torch.isfinite(out.total)
    assert out.first_non_finite_layer() == f"transformer_blocks.{index}"


def test_names_no_layer_where_all_are_finite():
    model = build()
    _, out = step(Framer(model), model, inputs())
    assert out.first_non_finite_layer() is None


@pytest.mark.parametrize(
    ("assignment", "teachers"),
    [("intra_low", True), ("intra_both", True), ("intra_high", False), ("inter_both", False)],
)
def test_another_ranks_samples_in_the_low_band_do_not_make_the_teacher_suspect(assignment, teachers):
    model = build()
    _, out = step(Framer(model, FramerConfig(assignment=assignment)), model, inputs())
    low_band = torch.full_like(out.layers.intra, float("nan"))

    name = out._replace(layers=out.layers._replace(intra=low_band)).first_non_finite_layer()

    assert name == ("transformer_blocks.3" if teachers else None)


def test_draws_go_on_from_a_saved_state(tmp_path: Path):
    model, batch = build(), inputs()
    framer = Framer(model, FramerConfig(seed=11, negatives="independent"))
    for _ in range(3):
        step(framer, model, batch)
    (tmp_path / "state.json").write_text(json.dumps(framer.state_dict()))
    expected = [step(framer, model, batch)[1].negatives for _ in range(4)]
    assert len(set(expected)) > 1

    resumed = Framer(model, FramerConfig(seed=11, negatives="independent"))
    resumed.load_state_dict(json.loads((tmp_path / "state.json").read_text()))
    assert [step(resumed, model, batch)[1].negatives for _ in range(4)] == expected


@pytest.mark.parametrize("state", [{}, {"draws": -1}, {"draws": 1.0}, {"draws": True}, {"draws": 1, "x": 2}])
def test_foreign_state_is_refused(state):
    with pytest.raises(ValueError, match="state of a Framer"):
        Framer(build()).load_state_dict(state)


def _rank_step(rank: int, folder: str, across: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        model = build(num_layers=3)
        framer = Framer(model, FramerConfig(in_batch_negatives_across_ranks=across))
        mine = slice(2 * rank, 2 * rank + 2)
        _, out = step(framer, model, {name: value[mine] for name, value in inputs(batch=4).items()})
        out.total.backward()
        torch.save((out.total.detach(), gradients(model), out.negatives), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("across", [True, False])
def test_two_ranks_equal_one_with_the_joined_batch(tmp_path: Path, across: bool):
    mp.spawn(_rank_step, (str(tmp_path), across), nprocs=2)
    totals, grads, negatives = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    assert negatives[0] == negatives[1]

    model = build(num_layers=3)
    _, out = step(Framer(model, FramerConfig()), model, inputs(batch=4))
    out.total.backward()
    mean = {name: (grads[0][name] + grads[1][name]) / 2 for name in grads[0]}
    if across:
        torch.testing.assert_close(torch.stack(totals).mean(), out.total)
        assert_same(mean, gradients(model))
    else:
        assert torch.stack(totals).mean() < out.total


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("paper", ("radial", 0.25, "complex", 1.0, "sum", 1.0, False)),
        ("released", ("quantile", 0.2, "magnitude", 1.0, "mean", 0.1, True)),
    ],
)
def test_presets(preset, expected):
    config = FramerConfig(preset=preset)
    split = config.cutoff if config.bands == "radial" else config.quantile
    assert (
        config.bands,
        split,
        config.representation,
        config.temperature,
        config.reduce,
        config.weight,
        config.shared_negatives,
    ) == expected
    assert (config.faw, config.fam) == ("relative_student", True)


def test_given_fields_win_over_the_preset():
    config = FramerConfig(preset="released", weight=0.5, bands="radial", shared_negatives=False)
    assert (config.weight, config.bands, config.shared_negatives) == (0.5, "radial", False)
    assert (config.representation, config.reduce) == ("magnitude", "mean")
    assert FramerConfig(preset="paper", feature_space="hidden", weight=0.1).weight == 0.1


@pytest.mark.parametrize(
    "config",
    [
        FramerConfig(),
        FramerConfig(preset="released"),
        FramerConfig(preset="released", reduce="sum", faw=None),
        FramerConfig(assignment="inter_both"),
    ],
)
def test_dump_reconstructs_the_config(config):
    assert FramerConfig(**config.model_dump()) == config
    assert FramerConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert set(config.model_dump()) == set(FramerConfig.model_fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("wieght", 0.1),
        ("preset", "papers"),
        ("preset", None),
        ("preset", ["paper"]),
        ("feature_space", "latent"),
        ("weight", -1.0),
        ("weight", float("nan")),
        ("weight", "1"),
        ("weight", None),
        ("cutoff", -0.1),
        ("cutoff", 1.5),
        ("quantile", 0.0),
        ("quantile", 1.0),
        ("temperature", 0.0),
        ("temperature", float("inf")),
        ("fam", 1),
        ("faw", "relative"),
        ("seed", -1),
        ("seed", 1.0),
        ("negatives", "random"),
        ("backend", "cuda"),
        ("assignment", "swapped"),
    ],
)
def test_wrong_settings_are_refused_by_name(field, value):
    with pytest.raises(ValidationError) as caught:
        FramerConfig.model_validate({field: value})
    assert {error["loc"] for error in caught.value.errors()} == {(field,)}


def test_config_is_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        FramerConfig().weight = 2.0  # type: ignore[misc]


def test_errors_are_for_the_user():
    assert issubclass(CaptureError, UserError)
    assert issubclass(FeatureError, UserError)
    assert issubclass(UnsupportedModelError, UserError)
