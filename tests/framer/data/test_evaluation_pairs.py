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


def test_pairs_of_other_photographs_are_not_mixed(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / "in" / f"{name}.png", 32, 32, seed) for seed, name in enumerate("ab")]
    write_evaluation_pairs(paths, tmp_path / "out")
    with pytest.raises(UserError, match=r"other photographs \(b\); give another folder"):
        write_evaluation_pairs(paths[:1], tmp_path / "out")
    photograph(paths[0], 32, 32, seed=5)
    with pytest.raises(UserError, match=r"other photographs \(a\); give another folder"):
        write_evaluation_pairs(paths, tmp_path / "out")


@pytest.mark.parametrize("content", [b"[]", b"3", b"{", b'{"scale": 4}', b"\xff", b'{"photographs": [1]}', b"[" * 9**5])
def test_a_damaged_record_of_pairs_is_named(tmp_path: Path, content: bytes) -> None:
    path = photograph(tmp_path / "a.png", 32, 32)
    write_evaluation_pairs([path], tmp_path / "out")
    (tmp_path / "out" / "pairs.json").write_bytes(content)
    with pytest.raises(UserError, match=r"pairs\.json is damaged: .*; remove its folder, or give another one"):
        write_evaluation_pairs([path], tmp_path / "out")


@pytest.mark.parametrize("output", ["ts", "ts/hr", "ts/hr/sub/new", "link", "ts/../ts"])
def test_the_photographs_themselves_are_never_replaced(tmp_path: Path, output: str) -> None:
    path = photograph(tmp_path / "ts" / "hr" / "a.png", 33, 34)
    (tmp_path / "link").symlink_to(tmp_path / "ts")
    before = path.read_bytes()
    with pytest.raises(UserError, match="photographs"):
        write_evaluation_pairs([path], tmp_path / output, root=tmp_path / "ts" / "hr")
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in (tmp_path / "ts").rglob("*")) == ["a.png", "hr"]


def test_photographs_that_are_reached_by_a_link_are_not_replaced_either(tmp_path: Path) -> None:
    path = photograph(tmp_path / "ts" / "hr" / "a.png", 33, 34)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(path)
    with pytest.raises(UserError, match=r"holds what the photographs are read from, .*in/a\.png"):
        write_evaluation_pairs([tmp_path / "in" / "a.png"], tmp_path / "ts", root=tmp_path / "in")


@pytest.mark.parametrize("name", ["hr", "lr"])
def test_files_that_are_no_pairs_are_not_replaced(tmp_path: Path, name: str) -> None:
    path = photograph(tmp_path / "a.png", 32, 32)
    other = photograph(tmp_path / "out" / name / "a.png", 8, 8)
    with pytest.raises(UserError, match=r"is there already, and no pairs\.json beside it"):
        write_evaluation_pairs([path], tmp_path / "out")
    assert read_image(other).shape == (8, 8, 3)


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
    original = (tmp_path / "in/a.png").read_bytes()
    inside = ["prepare", "--config", str(config), "--evaluation-pairs", str(tmp_path / "in/pairs")]
    assert main([*inside, f"data.evaluation={tmp_path / 'in'}"]) == 2
    assert (tmp_path / "in/a.png").read_bytes() == original
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.png"]
    assert main([*arguments, "data.evaluation=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
