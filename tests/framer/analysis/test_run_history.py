import json
import logging
from pathlib import Path

import pytest

from framer.analysis import read_metrics
from framer.errors import UserError

LAYERS = {
    "names": ["block.0", "block.1"],
    **{key: [0.5, 0.25] for key in ("weight_lf", "weight_hf", "align_lf", "align_hf", "intra", "inter")},
}


def line(step: int, loss: float = 1.0, **changes: object) -> str:
    record = {
        "step": step,
        "loss": loss,
        "noise_loss": 0.4,
        "framer_loss": 0.6,
        "gradient_norm": 2.0,
        "layers": LAYERS,
        "time": {"images_per_second": 3.0},
    }
    return json.dumps(record | changes) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_reads_what_the_trainer_writes(path: Path) -> None:
    path.write_text(line(1, 3.0) + line(2, 2.0, framer_loss=None, layers=None))
    first, second = read_metrics(path)
    assert (first.step, first.loss, first.noise_loss, first.framer_loss) == (1, 3.0, 0.4, 0.6)
    assert first.layers is not None
    assert first.layers.names == ["block.0", "block.1"]
    assert first.layers.align_hf == [0.5, 0.25]
    assert second.framer_loss is None
    assert second.layers is None


@pytest.mark.parametrize("kept", [1, 20, 60, len(line(3)) - 2])
def test_a_last_line_cut_short_is_left_out_with_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    path.write_text(line(1) + line(2) + line(3)[:kept])
    with caplog.at_level(logging.WARNING):
        assert [record.step for record in read_metrics(path)] == [1, 2]
    assert "cut short" in caplog.text


def test_a_last_line_cut_inside_a_character_is_left_out(path: Path) -> None:
    path.write_bytes(line(1).encode() + '{"step": 2, "name": "é'.encode()[:-1])
    assert [record.step for record in read_metrics(path)] == [1]


def test_a_whole_last_line_without_its_newline_counts(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(line(1) + line(2).rstrip("\n"))
    assert [record.step for record in read_metrics(path)] == [1, 2]
    assert not caplog.text


def test_a_resumed_run_replaces_the_steps_it_went_back_over(path: Path) -> None:
    path.write_text(line(1) + line(2) + line(3, 9.0) + line(4, 9.0) + line(3, 1.5))
    assert [(record.step, record.loss) for record in read_metrics(path)] == [(1, 1.0), (2, 1.0), (3, 1.5)]


def test_an_empty_file_holds_no_records(path: Path) -> None:
    path.write_text("")
    assert read_metrics(path) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"step": 2, "lo\n', "line 2: not a JSON object"),
        ("[1, 2]\n", "line 2: not a metrics record"),
        ('{"step": 2, "loss": 1.0}\n', "line 2: not a metrics record: noise_loss: Field required"),
        (line(2, layers=LAYERS | {"intra": [1.0]}), r"line 2: .*'intra': 1"),
        (line(2, loss="high"), "line 2: .*loss"),  # type: ignore[arg-type]
    ],
)
def test_a_damaged_line_is_named(path: Path, bad: str, message: str) -> None:
    path.write_text(line(1) + bad + line(3))
    with pytest.raises(UserError, match=message):
        read_metrics(path)


def test_a_missing_file_is_a_clear_error(path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the metrics: No such file"):
        read_metrics(path)
