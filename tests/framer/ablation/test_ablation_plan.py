"""Which runs an ablation's file means, and what is refused before any is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from ablation_cases import plan, write_study

from framer.ablation.plan import read_table
from framer.cli import main
from framer.config.distillation import FramerConfig
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.errors import ConfigError, UserError
from framer_kernels import BandAssignment

REPOSITORY = Path(__file__).resolve().parents[3]
TABLES = sorted((REPOSITORY / "configs" / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("file", TABLES, ids=lambda path: path.stem)
def test_every_variant_of_the_papers_tables_is_a_valid_configuration_of_its_own(file: Path) -> None:
    runs = plan(file)
    assert len(runs) == len(read_table(file).variants) > 1
    settings = [run.config.framer.model_dump_json() for run in runs]
    assert len(set(settings)) == len(settings), "two variants train the same"


def test_there_is_a_table_for_each_of_the_papers() -> None:
    assert [path.stem for path in TABLES] == ["table2", "table3", "table4", "table5", "table7"]


def test_the_full_method_is_a_row_of_each_table() -> None:
    for file in TABLES:
        base = FramerConfig(weight=0.02)
        assert any(run.config.framer == base for run in plan(file)), file


def test_table_4_has_all_assignments_and_changes_nothing_else() -> None:
    runs = plan(REPOSITORY / "configs" / "ablations" / "table4.yaml")

    assert {run.config.framer.assignment for run in runs} == set(get_args(BandAssignment))
    assert {run.config.framer.model_copy(update={"assignment": "intra_low"}).model_dump_json() for run in runs} == {
        FramerConfig(weight=0.02).model_dump_json()
    }


@pytest.mark.parametrize("file", TABLES, ids=lambda path: path.stem)
def test_full_size_bases_take_the_tables_too(file: Path) -> None:
    name = "framer_u_sd21_stage1" if file.stem == "table7" else "framer_d_sd35_medium"
    base = load_config(TrainConfig, REPOSITORY / "configs" / f"{name}.yaml")
    runs = plan(file, config=REPOSITORY / "configs" / f"{name}.yaml")
    assert len(runs) > 1
    for run in runs:
        assert run.config.model.pretrained == base.model.pretrained is not None
        assert run.config.objective == base.objective


def test_variants_times_seeds_each_in_a_folder_of_its_own(tmp_path: Path) -> None:
    output = tmp_path / "it's: {odd}"
    runs = plan(write_study(tmp_path), seeds=(1, 2), output=output)
    assert [(run.variant, run.seed) for run in runs] == [("none", 1), ("none", 2), ("framer", 1), ("framer", 2)]
    assert [run.config.output_dir for run in runs][:2] == [str(output / "none" / f"seed-{seed}") for seed in (1, 2)]
    assert [run.config.framer.enabled for run in runs] == [False, False, True, True]
    assert [run.config.seed for run in runs] == [1, 2, 1, 2]


def test_settings_of_the_command_line_hold_for_every_run_and_a_variants_own_win(tmp_path: Path) -> None:
    none, full = plan(write_study(tmp_path), overrides=("framer.enabled=true", "optimizer.lr=5e-4"))
    assert none.config.optimizer.lr == full.config.optimizer.lr == 5e-4
    assert not none.config.framer.enabled


def test_only_some_variants(tmp_path: Path) -> None:
    assert [run.variant for run in plan(write_study(tmp_path), only=("framer",))] == ["framer"]
    with pytest.raises(UserError, match=r"--only: no variant frmaer in .*; it has none, framer"):
        plan(write_study(tmp_path), only=("frmaer", "none"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "variants"),
        ({"variants": {"A b": {"title": "x"}}}, "the name A b has other than lower-case letters"),
        ({"variants": {"../up": {"title": "x"}}}, "has other than lower-case letters"),
        ({"variants": {"a": {"title": "x", "overrides": ["seed=1"]}}}, "seed=1 is set for every run by the suite"),
        ({"variant": {}}, "variant"),
        ({"base": "missing.yaml"}, "missing.yaml"),
        ({"variants": {"a": {"title": "x", "overrides": ["framer.fam=maybe"]}}}, "variant a: .*framer.fam"),
        ({"variants": {"a": {"title": "x", "overrides": ["framer.wrong=1"]}}}, "variant a: .*framer.wrong"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        plan(write_study(tmp_path, **changes))


def test_mistakes_on_the_command_line_start_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("framer.ablation.runs.train", None)
    file = str(write_study(tmp_path))
    for arguments, message in (
        (["--only", "all"], "no variant all"),
        (["--only", ","], "--only names no variant"),
        (["--seeds", "1", "1"], "--seeds: expected different seeds"),
        (["output_dir=x"], "output_dir=x: the suite sets it"),
        (["optimizer.lr=fast"], "optimizer.lr"),
        (["--launcher-args", "--num_gpus 2"], "give --launcher deepspeed too"),
    ):
        assert main(["ablate", file, "-o", str(tmp_path / "out"), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_list_shows_what_each_variant_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_study(tmp_path))
    assert main(["ablate", file]) == 2
    assert "give --output" in capsys.readouterr().err
    assert main(["ablate", file, "--list"]) == 0
    assert capsys.readouterr().out == "none: no FRAMER\n  framer.enabled=false\nframer: FRAMER\n  the base as it is\n"
