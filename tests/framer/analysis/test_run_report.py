import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from framer.analysis import Figure, write_report
from framer.errors import UserError
from framer.evaluation import PSNR_ID, SSIM_ID, EvaluationRow

ROWS = [EvaluationRow("coffee", 24.0, 25.5, 0.70, 0.75), EvaluationRow("cat", 26.0, 25.0, 0.80, 0.79)]
SHEET = Figure(path=Path("samples/step 10.png"), title="Held-out photographs", caption="LR, bicubic, SR, HR.")
PLOT = Figure(path=Path("plots/losses.png"), title="Losses", caption="Losses of\nsteps 1 to 10.")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    for figure in (SHEET, PLOT):
        (tmp_path / figure.path).parent.mkdir()
        (tmp_path / figure.path).write_bytes(b"PNG")
    return tmp_path


def report(run_folder: Path, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "Quickstart",
        "command": "deepspeed train.py --config configs/quickstart.yaml",
        "config_summary": {"framer.preset": "paper", "training.max_steps": "300"},
        "evaluation": ROWS,
        "figures": [SHEET, PLOT],
        "notes": ["The held-out photographs were never trained on."],
    }
    path = write_report(run_folder, **(arguments | changes))
    assert path == run_folder / "report.md"
    return path.read_text(encoding="utf-8")


def test_the_report_shows_settings_command_table_and_notes(run_folder: Path) -> None:
    text = report(run_folder)
    assert text.startswith("# Quickstart\n")
    assert "| training.max_steps | 300 |" in text
    assert "```bash\ndeepspeed train.py --config configs/quickstart.yaml\n```" in text
    assert PSNR_ID in text
    assert SSIM_ID in text
    assert "Mean PSNR: SR 25.25 dB, bicubic 25.00 dB, gain +0.25 dB; SR is higher on 1 of 2 crops." in text
    assert "* The held-out photographs were never trained on." in text
    assert "Losses of steps 1 to 10." in text


def test_what_training_changed_is_told_from_what_it_began_with(run_folder: Path) -> None:
    before = [EvaluationRow("coffee", 24.0, 25.0, 0.70, 0.74), EvaluationRow("cat", 26.0, 25.6, 0.80, 0.79)]
    text = report(run_folder, before=before)
    line = "Before training: SR 25.30 dB and 0.7650 on the same crops; training changed that by -0.05 dB and +0.0050."
    assert line in text
    assert "Before training" not in report(run_folder)


def test_the_heading_says_what_was_measured_on(run_folder: Path) -> None:
    assert "## SR against bicubic on held-out photographs\n" in report(run_folder)
    text = report(run_folder, trained_on=True)
    assert "## SR against bicubic on photographs that may have been trained on\n" in text


def test_every_link_leads_to_a_file(run_folder: Path) -> None:
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", report(run_folder))
    assert [unquote(link) for link in links] == [str(SHEET.path), str(PLOT.path)]
    assert not any(" " in link for link in links)
    assert all((run_folder / unquote(link)).is_file() for link in links)


def test_a_loss_against_bicubic_is_told_as_one(run_folder: Path) -> None:
    text = report(run_folder, evaluation=[ROWS[1]])
    assert "gain -1.00 dB; SR is higher on 0 of 1 crops" in text


def test_without_evaluation_or_notes_the_report_says_so(run_folder: Path) -> None:
    text = report(run_folder, evaluation=[], notes=[])
    assert "No held-out photographs were evaluated." in text
    assert "## Notes" not in text


def test_a_missing_figure_is_refused_and_the_old_report_stays(run_folder: Path) -> None:
    before = report(run_folder)
    (run_folder / PLOT.path).unlink()
    with pytest.raises(UserError, match=r"losses\.png \(Losses\) is missing"):
        report(run_folder)
    assert (run_folder / "report.md").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("path", [Path("/etc/hostname"), Path("../outside.png"), Path("plots/../../outside.png")])
def test_a_figure_outside_the_run_folder_is_refused(run_folder: Path, path: Path) -> None:
    (run_folder.parent / "outside.png").write_bytes(b"PNG")
    with pytest.raises(UserError, match="path inside"):
        report(run_folder, figures=[Figure(path=path, title="Elsewhere", caption="")])


def test_settings_cannot_break_the_table(run_folder: Path) -> None:
    text = report(run_folder, config_summary={"data.train": "a|b\nc"})
    assert r"| data.train | a\|b c |" in text
