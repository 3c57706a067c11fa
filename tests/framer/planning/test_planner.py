from __future__ import annotations

from pathlib import Path

import pytest

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.flops import model_flops_per_sample
from framer.planning.activations import trace_micro_step
from framer.planning.communication import step_communication
from framer.planning.planner import Planner, recommend
from framer.planning.settings import RECOMPUTED, Setting, settings_by_cost, shown_settings
from tests.framer.planning.planning_cases import SMALL, small_config, write_small


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(small_config(), world_size=4)


def peak(planner: Planner, setting: Setting, batch_size: int | None = None) -> int:
    return planner.plan(setting, batch_size=batch_size).memory.peak.bytes


def test_stages_partition_more_and_more(planner: Planner) -> None:
    plans = [planner.plan(Setting(stage)) for stage in range(4)]
    states = [plan.memory.device["forward"].parts["optimizer states"] for plan in plans]
    assert all(0.25 <= states[stage] / states[0] < 0.26 for stage in (1, 2, 3))
    # At the end of the backward pass stage 1 holds the whole gradient, and stage 2 this rank's part.
    gradients = [plan.memory.device["backward"].parts["gradients"] for plan in plans]
    assert max(plans[1].memory.peak.bytes, plans[2].memory.peak.bytes) < plans[0].memory.peak.bytes
    assert gradients[3] < 0.3 * states[0] / 2
    # Stage 3 gathers all of a model that is this small, but keeps a share.
    kept = [plan.memory.device["optimizer step"].parts["parameters"] for plan in plans]
    assert kept[0] <= kept[1] == kept[2]
    assert kept[3] < 0.4 * kept[2]


def test_recomputation_takes_fewer_activations_and_more_operations(planner: Planner) -> None:
    kept, every_other, all_blocks = (planner.plan(Setting(2, every)) for every in (0, 2, 1))
    activations = [plan.memory.device["forward"].parts["activations"] for plan in (kept, every_other, all_blocks)]
    assert activations == sorted(activations, reverse=True)
    assert kept.flops.recomputation == 0
    # A block's forward pass again, but for what nothing needs: its last projections.
    assert 0.8 < all_blocks.flops.recomputation / all_blocks.flops.forward < 1
    assert all_blocks.flops.forward == kept.flops.forward
    assert all_blocks.flops.backward == kept.flops.backward


def test_offload_moves_states_to_the_host(planner: Planner) -> None:
    whole, offloaded = planner.plan(Setting(2, 1)), planner.plan(Setting(2, 1, offload_optimizer=True))
    parts = offloaded.memory.peak.parts
    assert parts["optimizer states"] == parts["master weights"] == 0
    states = sum(whole.memory.peak.parts[part] for part in ("optimizer states", "master weights"))
    assert whole.memory.host_peak.bytes == 0
    assert offloaded.memory.host_peak.bytes > states


def test_inputs_of_recomputed_blocks_can_wait_on_the_host() -> None:
    steps = {}
    for offload in (False, True):
        checkpointing = {"backend": "torch", "cpu_offload": offload}
        config = small_config(training={"activation_checkpointing": checkpointing}, framer={"enabled": False})
        steps[offload] = trace_micro_step(config)
        assert Planner(config, world_size=1).as_configured().memory.host_peak.bytes == steps[offload].host_bytes
    assert steps[False].host_bytes == 0
    # The image's and the text's tokens that enter each of 4 blocks, and the conditioning, of 4 samples of width 128.
    tokens = 4 * 4 * 128 * 4 * (64 + 1 + 1)
    assert tokens <= steps[True].host_bytes < 1.1 * tokens
    peaks = {offload: max(moment.bytes for moment in step.moments) for offload, step in steps.items()}
    assert peaks[True] < peaks[False]


def test_every_setting_can_be_given_as_overrides(planner: Planner, tmp_path: Path) -> None:
    path = write_small(tmp_path)
    settings = list(settings_by_cost(planner.config))
    assert len(settings) == len(set(settings)) > 4 * len(RECOMPUTED)
    for setting in settings:
        assert load_config(TrainConfig, path, setting.overrides(planner.config)) == setting.apply(planner.config)


def test_only_settings_that_the_configuration_takes_are_considered() -> None:
    half = small_config(training={"precision": "bf16"}, deepspeed={"zero_stage": 2})
    assert {setting.stage for setting in settings_by_cost(half)} == {2, 3}
    assert [setting.stage for setting in shown_settings(half)] == [2, 3, 2, 3]
    compiled = small_config(model={"compile_blocks": True, "architecture": SMALL["model"]["architecture"]})
    assert {setting.stage for setting in settings_by_cost(compiled)} == {0, 1, 2}


def test_the_largest_crop_is_planned() -> None:
    squares = small_config()
    buckets = small_config(data={"crop_size": 32, "buckets": [[16, 32], [64, 32]]})
    flops = [trace_micro_step(config).flops.forward for config in (squares, buckets)]
    assert 1.9 < flops[1] / flops[0] < 2.2
    # A sample's mean is that over the buckets: of 32 and of 128 tokens, where the square has 64.
    assert 1.25 < model_flops_per_sample(buckets) / model_flops_per_sample(squares) < 1.35


def test_a_setting_undoes_the_offload_of_the_configuration(tmp_path: Path) -> None:
    config = small_config(deepspeed={"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"})
    overrides = Setting(1).overrides(config)
    assert {"deepspeed.offload_optimizer=null", "deepspeed.offload_param=null"} < set(overrides)
    assert Setting(1).apply(config).deepspeed.offload_param is None


def test_the_first_setting_that_fits_is_recommended_with_the_largest_batch(planner: Planner) -> None:
    # Just enough for stage 1 without recomputation.
    budget = peak(planner, Setting(1))
    assert peak(planner, Setting(0)) > budget
    chosen = recommend(planner, budget)
    assert chosen.fitting == planner.plan(Setting(1))
    assert chosen.largest == chosen.fitting


def test_the_largest_batch_fits_and_the_next_does_not(planner: Planner) -> None:
    budget = 4 * peak(planner, Setting(0))
    largest = recommend(planner, budget).largest
    assert largest is not None
    assert largest.memory.peak.bytes <= budget < peak(planner, Setting(0), largest.batch_size + 1)
    assert f"training.batch_size={largest.batch_size}" in largest.overrides


def test_where_nothing_fits_the_smallest_is_named(planner: Planner) -> None:
    chosen = recommend(planner, budget=1000)
    assert chosen.fitting is None
    assert chosen.smallest is not None
    assert chosen.single is not None
    assert chosen.smallest.memory.peak.bytes == min(
        peak(planner, setting) for setting in settings_by_cost(planner.config)
    )
    assert chosen.single.batch_size == 1


def test_flops_of_the_micro_step_are_those_of_the_model(planner: Planner) -> None:
    flops = planner.flops(planner.config)
    assert 3 * flops.forward / planner.config.training.batch_size == model_flops_per_sample(planner.config)
    # Operations of FRAMER: 3 students and the teacher, 8 x 8 tokens of width 128, 4 samples.
    elements = 4 * 128 * 8 * 8
    assert flops.framer == elements * (4 * 2 * 16 + 3 * 2 * 4) + elements * ((4 + 3) * 2 * 16 + 3 * 2 * 4)


def test_communication_follows_the_stage() -> None:
    sent = {}
    for stage in range(4):
        config = small_config(
            deepspeed={"zero_stage": stage},
            training={"gradient_accumulation_steps": 2},
            framer={"in_batch_negatives_across_ranks": stage == 2},
        )
        step = trace_micro_step(config, partitioned=stage == 3)
        sent[stage] = step_communication(step, config, world_size=4, gathered_elements=1000)
    total = sum(parameter.numel for parameter in step.parameters)
    # A ring of 4 sends 3/4 of what it gathers, 4 bytes an element.
    assert [sent[stage].gradients for stage in range(4)] == [6 * total, 6 * total, 12 * total, 6 * total]
    assert [sent[stage].parameters for stage in range(4)] == [0, 3 * total, 3 * total, 2 * 3000]
    # Forward and backward of two micro-steps, to 3 ranks: the teacher of 4 samples.
    assert [sent[stage].framer for stage in range(4)] == [0, 0, 2 * 2 * 3 * (4 * 128 * 64 * 4), 0]


def test_parameters_are_gathered_for_forward_backward_and_recomputation() -> None:
    gathered = []
    for recompute in (False, True):
        config = small_config(
            deepspeed={"zero_stage": 3, "stage3_prefetch_bucket_size": 0},
            training={"activation_checkpointing": recompute},
        )
        planner = Planner(config, world_size=4)
        gathered.append(planner.as_configured().memory.gathered_elements)
    total = sum(parameter.numel for parameter in planner.trace(config).parameters)
    # What is used again within a billion elements, all of this model, stays: each parameter comes once, with padding.
    assert all(total <= elements < 1.02 * total for elements in gathered)


def test_adapters_alone_have_gradients_and_optimizer_states() -> None:
    model = {**SMALL["model"], "lora": {"rank": 2, "train_also": ["control"]}}
    whole, adapted = (trace_micro_step(config) for config in (small_config(), small_config(model=model)))
    trained = {parameter.name for parameter in adapted.parameters if parameter.trained}
    assert trained == {p.name for p in adapted.parameters if ".lora_" in p.name or p.name.startswith("pos_embed.proj.")}
    frozen = sum(parameter.numel for parameter in adapted.parameters if ".lora_" not in parameter.name)
    assert frozen == sum(parameter.numel for parameter in whole.parameters)
    plan = Planner(small_config(model=model), world_size=1).plan(Setting(0))
    states = plan.memory.device["optimizer step"].parts["optimizer states"]
    assert states == 2 * 4 * sum(parameter.numel for parameter in adapted.parameters if parameter.trained)
