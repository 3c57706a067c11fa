"""Heads under DeepSpeed: called after the engine's forward pass, they train as in one process without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import UNet2DConditionModel
from torch import Tensor
from unet_models import unet, unet_inputs

from framer import Framer
from framer.config.distillation import FramerConfig
from framer.features import attach_heads
from framer.training.engine import gathered_parameters, master_weights

STEPS, RATE = 2, 0.1
CONFIG = FramerConfig(fam=False, in_batch_negatives_across_ranks=False)
CASES = {
    "zero0": {"stage": 0},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3},
    "zero3-checkpointing": {"stage": 3, "checkpointing": True},
    "zero3-bf16": {"stage": 3, "bf16": True},
}


def _model() -> UNet2DConditionModel:
    model = unet(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    attach_heads(model)
    return model


def _loss(run: Any, framer: Framer, rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    inputs = {name: value.to(dtype) for name, value in unet_inputs(seed=rank).items()}
    with framer.capture():
        prediction = run(**inputs).sample
    loss: Tensor = prediction.float().square().mean() + framer.loss().total
    return loss


def _plain_weights() -> dict[str, Tensor]:
    model = _model()
    framers = [Framer(model, CONFIG) for _ in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        for rank, framer in enumerate(framers):
            (_loss(model, framer, rank) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach() for name, value in model.named_parameters()}


def _engine_weights(rank: int, stage: int, checkpointing: bool = False, bf16: bool = False) -> dict[str, Tensor]:
    model = _model()
    if checkpointing:
        model.enable_gradient_checkpointing()
    zero: dict[str, int] = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=RATE), config=config
    )
    framer = Framer(engine, CONFIG)
    for _ in range(STEPS):
        engine.backward(_loss(engine, framer, rank, torch.bfloat16 if bf16 else torch.float32))
        engine.step()
    weights = master_weights(engine) if bf16 else gathered_parameters(engine.module)
    return {name: value.detach().float().clone() for name, value in weights}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", str(rank))
        deepspeed.init_distributed(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, auto_mpi_discovery=False
        )
        try:
            for name, settings in CASES.items():
                weights = _engine_weights(rank, **settings)
                if rank == 0:
                    torch.save(weights, f"{folder}/{name}.pt")
        finally:
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp("weights")
    mp.spawn(_rank, (str(folder),), nprocs=2)
    return {name: torch.load(folder / f"{name}.pt") for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_heads_and_stages_train_as_without_an_engine(weights, case):
    before, expected = dict(_model().named_parameters()), _plain_weights()
    assert weights[case].keys() == expected.keys()
    for name, value in expected.items():
        moved, right = weights[case][name] - before[name].detach(), value - before[name].detach()
        if name.startswith("framer_heads"):
            assert right.abs().max() > 1e-4, name
        error = 1e-6
        if case.endswith("bf16"):  # also the first weights are rounded
            error = 0.1 * float(right.norm()) + torch.finfo(torch.bfloat16).eps * float(before[name].detach().norm())
        assert (moved - right).norm() <= error, name
