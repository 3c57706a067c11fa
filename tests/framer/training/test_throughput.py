"""Figures of speed and memory in the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
import torch
from training_runs import TINY

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.training import trainer as trainer_module
from framer.training.hardware import data_sheet_flops, memory_use, peak_flops
from framer.training.metrics import StepTime
from framer.training.trainer import Trainer


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("AMD Instinct MI300X", 1307),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GB200", None),
        ("NVIDIA L40", None),
    ],
)
def test_peaks_by_name(name: str, tflops: float | None) -> None:
    assert data_sheet_flops(name) == (None if tflops is None else tflops * 1e12)


def _config(precision: str, peak: float | None) -> TrainConfig:
    sections = {
        "output_dir": "x",
        "training": {"precision": precision},
        "deepspeed": {"zero_stage": 2},
        "health": {"peak_tflops": peak},
    }
    return build_config(TrainConfig, sections, source="test")


def test_the_peak_is_the_configurations_or_that_of_a_known_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(_config("fp32", 5.0)) == 5e12
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert peak_flops(_config("bf16", None)) == 989e12
    assert peak_flops(_config("bf16", 700.0)) == 700e12
    assert peak_flops(_config("fp32", None)) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Other GPU")
    assert peak_flops(_config("bf16", None)) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak_flops(_config("bf16", None)) is None


def test_utilisation_is_of_one_rank() -> None:
    # Two ranks of 8 samples each, 1e12 operations a sample, in 2 s: 4e12 a second and rank, of 16e12.
    time = StepTime.of(seconds=2.0, waited=0.5, images=16, ranks=2, sample_flops=1e12, peak=16e12)
    assert time.images_per_second == 8.0
    assert time.data_wait_fraction == 0.25
    assert time.tflops_per_rank == 4.0
    assert time.mfu == 0.25
    unknown = StepTime.of(seconds=2.0, waited=0.5, images=16, ranks=2, sample_flops=1e12, peak=None)
    assert (unknown.tflops_per_rank, unknown.mfu) == (4.0, None)


def test_memory_is_the_processs_own() -> None:
    before = memory_use().resident_bytes
    held = torch.ones(2**25)
    after = memory_use()
    assert after.resident_bytes - before > 2**26
    assert after.resident_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert held.numel() == 2**25
    if not torch.cuda.is_available():
        assert after.device_peak_bytes is None


def test_the_metrics_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "model_flops_per_sample", lambda config: 3e9)
    training = {**TINY["training"], "max_steps": 1}
    sections = {**TINY, "output_dir": str(tmp_path), "training": training, "health": {"peak_tflops": 0.5}}
    Trainer(build_config(TrainConfig, sections, source="test")).train()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    expected = 3e9 * 4 / line["time"]["seconds"] / 1e12
    assert line["time"]["tflops_per_rank"] == pytest.approx(expected)
    assert line["time"]["mfu"] == pytest.approx(expected / 0.5)
    assert line["memory"]["resident_bytes"] > 2**26
