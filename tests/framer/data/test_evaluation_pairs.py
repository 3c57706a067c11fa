from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framer.cli import main
from framer.data.dataset import heldout_pairs
from framer.data.evaluation_pairs import write_evaluation_pairs
from framer.data.images import read_image, write_png
from framer.errors import UserError


def photograph(path: Path, height: int, width: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    write_png(path, rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return path


def test_each_photograph_gives_a_pair_by_its_name(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / "in" / "b.x.png", 41, 66), photograph(tmp_path / "in" / "a.png", 32, 32, 1)]
    assert write_evaluation_pairs(paths, tmp_path / "out", degradation="light") == 2
    assert read_image(tmp_path / "out" / "hr" / "b.x.png").shape == (40, 64, 3)
    assert read_image(tmp_path / "out" / "lr" / "b.x.png").shape == (10, 16, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "hr" / "b.x.png"), read_image(paths[0])[:40, :64])


def test_a_photograph_is_degraded_as_in_the_evaluation_of_training(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png", 32, 32)
    write_evaluation_pairs([path], tmp_path / "out", degradation="heavy", seed=3)
    (expected,) = heldout_pairs([path], crop_size=32, degradation="heavy", seed=3)
    for name in ("hr", "lr"):
        pixels = read_image(tmp_path / "out" / name / "a.png").astype(np.float32)
        wanted = (expected[name].permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(pixels - wanted).max() <= 0.5 + 1e-3


def test_a_pair_does_not_depend_on_the_others_and_comes_out_again(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / f"{name}.png", 32, 32, seed) for seed, name in enumerate("abc")]
    write_evaluation_pairs(paths, tmp_path / "all")
    write_evaluation_pairs(paths[2:], tmp_path / "one")
    write_evaluation_pairs(paths[2:], tmp_path / "one")
    assert (tmp_path / "all/lr/c.png").read_bytes() == (tmp_path / "one/lr/c.png").read_bytes()


@pytest.mark.parametrize("changed", [{"seed": 1}, {"degradation": "heavy"}, {"scale": 2}])
def test_pairs_made_otherwise_are_not_mixed(tmp_path: Path, changed: dict[str, object]) -> None:
    path = photograph(tmp_path / "a.png", 32, 32)
    write_evaluation_pairs([path], tmp_path / "out")
    with pytest.raises(UserError, match=r"holds pairs made with .*give another folder"):
        write_evaluation_pairs([path], tmp_path / "out", **changed)  # type: ignore[arg-type]


def test_mistakes_are_named_before_anything_is_written(tmp_path: Path) -> None:
    good, small = photograph(tmp_path / "a.png", 32, 32), photograph(tmp_path / "small.png", 3, 40)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 of 3 photographs(.|\n)*small\.png: 40x3 pixels(.|\n)*broken\.png"):
        write_evaluation_pairs([good, small, tmp_path / "broken.png"], tmp_path / "out")
    with pytest.raises(UserError, match="more than one photograph is called a"):
        write_evaluation_pairs([good, photograph(tmp_path / "b" / "a.png", 32, 32)], tmp_path / "out")
    with pytest.raises(UserError, match="empty"):
        write_evaluation_pairs([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_takes_the_evaluation_photographs_of_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph(tmp_path / "in" / "a.png", 32, 48)
    config = tmp_path / "config.yaml"
    config.write_text("output_dir: run\n")
    arguments = ["prepare", "--config", str(config), "--evaluation-pairs", str(tmp_path / "out")]
    assert main([*arguments, f"data.evaluation={tmp_path / 'in'}"]) == 0
    assert "1 photographs in hr" in capsys.readouterr().out
    assert read_image(tmp_path / "out/lr/a.png").shape == (8, 12, 3)
    assert main([*arguments, "data.evaluation=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
