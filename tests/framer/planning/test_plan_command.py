from __future__ import annotations

import json
from pathlib import Path

import pytest

from framer.cli import main
from tests.framer.planning.planning_cases import write_small


def test_plan_prints_a_table_and_writes_json_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, written, picture = write_small(tmp_path), tmp_path / "plan.json", tmp_path / "plan.png"
    arguments = ["plan", "--config", str(path), "--gpus", "2", "--memory", "80MB", "--json", str(written)]
    assert main([*arguments, "--plot", str(picture), "training.batch_size=2"]) == 0
    out = capsys.readouterr().out
    content = json.loads(written.read_text())
    assert [plan["label"] for plan in content["plans"]][:2] == ["as configured", "stage 0, no recomputation"]
    for plan in content["plans"]:
        assert plan["label"] in out
        assert plan["peak_bytes"] == max(sum(phase["parts"].values()) for phase in plan["phases"].values())
    fitting = content["recommendation"]["fitting"]
    assert fitting["peak_bytes"] <= content["budget_bytes"] == 72_000_000
    assert " ".join(f"'{each}'" if " " in each else each for each in fitting["overrides"]) in out
    assert content["recommendation"]["largest"]["batch_size"] >= fitting["batch_size"] == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_plan_says_what_lacks_where_nothing_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpus", "1", "--memory", "1MB", "model.architecture.num_layers=3"]
    assert main(["plan", "--config", str(write_small(tmp_path)), *arguments]) == 0
    out = capsys.readouterr().out
    assert "Nothing fits." in out
    assert "With batch 1 it takes" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0", "--memory", "80GB"], "--gpus 0: expected 1 or more"),
        (["--gpus", "8", "--memory", "80 bananas"], "--memory 80 bananas: expected a number above 0 and a unit"),
        (["--gpus", "8", "--memory", "80GB", "--reserve", "1"], "--reserve 1.0: expected a part"),
        (["--gpus", "8", "--memory", "80GB", "model.text_token=3"], "did you mean 'text_tokens'?"),
        (["--gpus", "8", "--memory", "80GB", "model.pretrained=nowhere"], "nowhere/config.json not found"),
        (["--gpus", "8", "--memory", "80GB", "model.trainable=[nothing.*]"], "'nothing.*' matches none"),
    ],
)
def test_mistakes_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["plan", "--config", str(write_small(tmp_path)), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
