"""Which models a command line of ``framer analyze`` means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framer.analysis.paper.sources import find_sources
from framer.errors import UserError
from framer.models.folders import BASE_FOLDER


def export(folder: Path, *, step: int | None = None) -> Path:
    folder.mkdir(parents=True)
    of_step = {} if step is None else {"step": step}
    (folder / "restoration.json").write_text(json.dumps({"tile": 64, "scale": 4, **of_step}))
    return folder


def a_run(folder: Path, *steps: int, exported: bool = True, export_step: int | None = None) -> Path:
    """A run with checkpoints, and the export of the last of them where nothing else is said."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("output_dir: somewhere\n")
    (folder / "metrics.jsonl").write_text("")
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")
    if exported:
        export(folder / "export", step=export_step or max(steps, default=None))
    return folder


def found(
    *arguments: str | Path, labels: tuple[str, ...] = (), every_step: bool = False
) -> list[tuple[str, int | None]]:
    sources = find_sources([str(argument) for argument in arguments], labels=labels, every_step=every_step)
    return [(source.label, source.step) for source in sources]


def test_base_an_export_and_a_run_are_told_apart(tmp_path: Path) -> None:
    lone, run = export(tmp_path / "lone"), a_run(tmp_path / "mine", 100, 200)
    base, of_folder, of_run = find_sources(["base", str(lone), str(run)], labels=(), every_step=False)
    assert (base.folder, base.metrics) == (BASE_FOLDER, BASE_FOLDER / "metrics.jsonl")
    assert (of_folder.label, of_folder.run, of_folder.metrics) == ("lone", None, None)
    assert (of_run.label, of_run.folder, of_run.step) == ("mine", run / "export", 200)
    assert of_run.metrics == run / "metrics.jsonl"


def test_the_export_of_a_run_knows_its_run(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine", 200)
    (source,) = find_sources([str(run / "export")], labels=(), every_step=False)
    assert (source.label, source.run, source.step) == ("mine", run.resolve(), 200)


def test_every_step_of_a_run_with_its_export_in_the_place_of_the_last(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine", 100, 200, 300)
    sources = find_sources([str(run)], labels=(), every_step=True)
    assert [source.label for source in sources] == ["mine, step 100", "mine, step 200", "mine, step 300"]
    assert [source.checkpoint for source in sources] == [True, True, False]


def test_a_run_without_an_export_stands_at_its_newest_checkpoint_and_says_so(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine", 100, 200, exported=False)
    (source,) = find_sources([str(run)], labels=(), every_step=False)
    assert (source.label, source.step, source.checkpoint) == ("mine, step 200", 200, True)
    assert "no export yet" in source.note


def test_an_export_that_the_run_has_left_behind_is_not_taken_for_its_newest_step(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine", 2, 20, 29, export_step=2)
    (source,) = find_sources([str(run)], labels=(), every_step=False)
    assert (source.label, source.step, source.checkpoint) == ("mine, step 29", 29, True)
    assert "went on after its export of step 2" in source.note
    (source,) = find_sources([str(run / "export")], labels=(), every_step=False)
    assert (source.step, source.checkpoint) == (2, False)
    assert "gone on to step 29" in source.note


@pytest.mark.parametrize("kept", [(2, 20, 29), (20, 29)])
def test_every_step_has_the_old_export_at_its_own_step_and_all_that_came_after(
    tmp_path: Path, kept: tuple[int, ...]
) -> None:
    run = a_run(tmp_path / "mine", *kept, export_step=2)
    sources = find_sources([str(run)], labels=(), every_step=True)
    assert [(source.step, source.checkpoint) for source in sources] == [(2, False), (20, True), (29, True)]


def test_the_step_of_an_older_export_is_unknown_and_never_the_newest_checkpoints(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine", 2, 29)
    (run / "export" / "restoration.json").write_text(json.dumps({"tile": 64, "scale": 4}))
    assert found(run / "export") == [("mine", None)]
    assert found(run) == [("mine, step 29", 29)]
    assert found(run, every_step=True) == [("mine, step 2", 2), ("mine, step 29", 29)]
    (source,) = find_sources([str(run)], labels=(), every_step=False)
    assert "does not say of which step" in source.note


def test_labels_name_runs_and_steps_go_on(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine", 100, 200)
    assert found("base", run, labels=("prior", "ours")) == [("prior", 8000), ("ours", 200)]
    assert found(run, labels=("ours",), every_step=True) == [("ours, step 100", 100), ("ours, step 200", 200)]


def test_runs_of_one_name_get_their_folders_names(tmp_path: Path) -> None:
    first, second = a_run(tmp_path / "monday" / "run", 1), a_run(tmp_path / "tuesday" / "run", 1)
    assert [label for label, _ in found(first, second)] == ["monday/run", "tuesday/run"]


@pytest.mark.parametrize(
    ("arguments", "labels", "message"),
    [
        (["nowhere"], (), "nowhere: no such folder"),
        (["empty"], (), "neither an export"),
        (["mine"], ("a", "b"), "--labels names 2 models, but 1 are given"),
        (["mine", "base"], ("a", "a"), "--labels: a is given twice"),
        (["mine", "mine/export"], (), "is given twice"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], labels: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "mine", 100)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        found(*arguments, labels=labels)
