"""Arguments that commands share: the empty text of a shell variable that is not set is refused, by its option."""

import pytest

from framer.cli import main

EVALUATE = ["evaluate", "sr", "--protocol", "framer"]
PREPARE = ["prepare", "--config", "c.yaml", "--samples", "1"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["evaluate", "", "--protocol", "framer", "-o", "out"], "FOLDER"),
        ([*EVALUATE, "-o", ""], "-o/--output"),
        ([*EVALUATE, "-o", "out", "--reference", ""], "--reference"),
        ([*EVALUATE, "-o", "out", "--lr", ""], "--lr"),
        ([*PREPARE, "--output", ""], "--output"),
        ([*PREPARE, "--output", "out", "--captions", ""], "--captions"),
        (["prepare", "--config", "", "--output", "out", "--samples", "1"], "--config"),
        (["prepare", "--from", "", "--layout", "seesr", "--output", "out"], "--from"),
        (["prepare", "--from", "in", "--layout", "seesr", "--output", "out", "--vae", ""], "--vae"),
        (["prepare", "--verify", ""], "--verify"),
        ([*PREPARE, "--evaluation-pairs", ""], "--evaluation-pairs"),
        (["analyze", "", "-o", "out"], "CHECKPOINT"),
        (["analyze", "base", "-o", ""], "-o/--output"),
        (["analyze", "base", "-o", "out", "--images", ""], "--images"),
        (["analyze", "base", "-o", "out", "--vae", ""], "--vae"),
        (["ablate", "", "-o", "out"], "table"),
        (["ablate", "table.yaml", "-o", ""], "-o/--output"),
        (["ablate", "table.yaml", "-o", "out", "--config", ""], "--config"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert f"argument {named}: it is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
