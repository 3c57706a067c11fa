"""The base model that ships with the package."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.data.photographs import BUNDLED
from framer.evaluation.table import evaluate, mean_row
from framer.models.build import build_model
from framer.models.folders import BASE_FOLDER
from framer.models.restoration import check_restoration
from framer.models.restoration_model import RestorationModel
from framer.models.weights import WEIGHTS_FILE
from framer.training.evaluation import load_heldout, restore_heldout

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def test_it_is_small_and_only_tensors() -> None:
    weights = BASE_FOLDER / WEIGHTS_FILE
    assert weights.stat().st_size <= 10_000_000
    with safe_open(weights, framework="pt") as file:
        assert all(torch.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118


def test_its_config_is_the_one_that_trains_it_again() -> None:
    beside = load_config(TrainConfig, BASE_FOLDER / "training_config.yaml")
    assert beside == load_config(TrainConfig, CONFIGS / "base.yaml")
    assert beside.data.train == "bundled"
    assert beside.data.evaluation == "validation"
    assert not beside.framer.enabled


def test_its_log_reaches_the_last_step() -> None:
    lines = (BASE_FOLDER / "metrics.jsonl").read_text().splitlines()
    config = load_config(TrainConfig, CONFIGS / "base.yaml")
    assert [json.loads(line)["step"] for line in lines] == list(range(1, config.training.max_steps + 1))


def test_its_licence_notes_name_every_training_photograph() -> None:
    notes = (BASE_FOLDER / "README.md").read_text()
    for photograph in BUNDLED:
        if photograph.split == "train":
            row = next(line for line in notes.splitlines() if line.startswith(f"| {photograph.name} |"))
            assert all(said in row for said in (photograph.licence, photograph.credit, photograph.source))


def test_the_quickstart_fits_it() -> None:
    check_restoration(BASE_FOLDER, load_config(TrainConfig, CONFIGS / "quickstart.yaml"))


def test_it_beats_bicubic_on_the_validation_photograph() -> None:
    config = load_config(TrainConfig, CONFIGS / "base.yaml", ["model.pretrained=base"])
    model = build_model(config.model, seed=0)
    done = restore_heldout(RestorationModel(model, config.model, torch.device("cpu")), load_heldout(config), config)
    mean = mean_row(evaluate(done.names, done.sr, done.bicubic, done.hr))
    assert mean.psnr_gain > 0
    assert mean.ssim_gain > 0
