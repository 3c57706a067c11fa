"""A model of ZeRO 3 is never whole on a rank while it is built, and has the weights of one built at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from training_runs import run_on_ranks, tiny_config

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.models.build import build_model
from framer.training.engine import COMPUTE_DTYPES
from framer.training.export import write_diffusers_folder

_BUILD = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import framer.training.partitioning as partitioning
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.training.engine import gathered_parameters
from framer.training.ranks import start_distributed

start_distributed()
folder = Path(sys.argv[1])
for path in sys.argv[2:]:
    config = load_config(TrainConfig, path)
    build, whole = partitioning.build_model_by_module, [0]

    def watched(*args, place, **kwargs):
        def watch(module):
            place(module)
            made = [p.numel() for p in module.parameters(recurse=False)]
            whole[0] = max(whole[0], sum(made))
        return build(*args, place=watch, **kwargs)

    partitioning.build_model_by_module = watched
    model = partitioning.build_partitioned_model(config)
    partitioning.build_model_by_module = build
    held = sum(p.data.numel() + p.ds_tensor.numel() for p in model.parameters())
    total = sum(p.ds_numel for p in model.parameters())
    weights = {name: value.clone() for name, value in gathered_parameters(model)}
    state = {"held": held, "total": total, "left_whole": whole[0], "weights": weights}
    torch.save(state, folder / f"{Path(path).parent.name}-{dist.get_rank()}.pt")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("partitioned")
    initial = load_config(TrainConfig, tiny_config(folder / "initial"))
    model = build_model(initial.model, seed=5)
    write_diffusers_folder(model, model.state_dict(), initial, folder / "whole")
    model.save_pretrained(folder / "sharded", max_shard_size="20KB")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 2
    narrow = {"deepspeed": {"zero_stage": 3, "stage3_param_persistence_threshold": 0}}
    cases: dict[str, dict[str, Any]] = {
        "random": {},
        "bf16": {"training": {"precision": "bf16"}},
        "pretrained": {"model": {"pretrained": str(folder / "whole")}},
        "sharded-file": {"model": {"pretrained": str(folder / "sharded")}},
        "base": {"model": {"pretrained": "base", "latents_scale": 5.0}},
        "adapters": {
            "model": {"pretrained": str(folder / "whole"), "lora": {"target_modules": ["to_q", "pos_embed.proj"]}},
            "training": {"precision": "bf16"},
        },
    }
    configs = [tiny_config(folder / name, **{**narrow, **sections}) for name, sections in cases.items()]
    for status, errors in run_on_ranks(2, _BUILD, [folder, *configs], timeout=300):
        assert status == 0, errors[-4000:]
    return folder


@pytest.mark.parametrize("name", ["random", "bf16", "pretrained", "sharded-file", "base", "adapters"])
def test_partitioned_weights_equal_those_built_at_once(built: Path, name: str) -> None:
    config = load_config(TrainConfig, built / name / "config.yaml")
    dtype = COMPUTE_DTYPES[config.training.precision]
    expected = build_model(config.model, seed=config.seed)
    for rank in range(2):
        state = torch.load(built / f"{name}-{rank}.pt", weights_only=True)
        assert state["weights"].keys() == expected.state_dict().keys()
        for key, parameter in expected.named_parameters():
            assert torch.equal(state["weights"][key], parameter.detach().to(dtype)), key
        for key, buffer in expected.named_buffers():
            assert torch.equal(state["weights"][key], buffer), key


@pytest.mark.parametrize("name", ["random", "pretrained", "adapters"])
def test_no_rank_holds_more_than_its_part(built: Path, name: str) -> None:
    for rank in range(2):
        state = torch.load(built / f"{name}-{rank}.pt", weights_only=True)
        assert state["left_whole"] == 0
        assert state["held"] == pytest.approx(state["total"] / 2, rel=0.02)


def test_weights_of_another_shape_are_named(built: Path) -> None:
    config = load_config(TrainConfig, built / "pretrained" / "config.yaml")
    model = build_model(config.model, seed=0)
    folder = built / "broken"
    model.save_pretrained(folder)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    weights["proj_out.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    broken = tiny_config(built / "broken-run", model={"pretrained": str(folder)}, deepspeed={"zero_stage": 3})
    ((status, errors),) = run_on_ranks(1, _BUILD, [built, broken], timeout=120)
    assert status != 0
    assert "proj_out.weight has shape [3, 3], but config.json asks for" in errors
