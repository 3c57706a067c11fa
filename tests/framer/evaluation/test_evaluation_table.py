import json
import math
from pathlib import Path

import numpy as np
import pytest

from framer.errors import UserError
from framer.evaluation import (
    PSNR_ID,
    SSIM_ID,
    EvaluationRow,
    evaluate,
    markdown_table,
    mean_row,
    psnr,
    read_evaluation,
    ssim,
    write_evaluation,
)

ROWS = [EvaluationRow("coffee.png", 24.0, 25.5, 0.70, 0.75), EvaluationRow("a|b_c", 26.0, 25.0, 0.80, 0.79)]


def pictures(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((16, 16, 3))


def test_each_row_compares_the_pictures_of_its_own_place() -> None:
    hr = [pictures(0), pictures(1)]
    sr = [np.clip(image + 0.01, 0, 1) for image in hr]
    bicubic = [np.clip(image + 0.1, 0, 1) for image in hr]
    rows = evaluate(["first", "second"], sr, bicubic, hr)
    assert [row.name for row in rows] == ["first", "second"]
    for row, sr_image, bicubic_image, hr_image in zip(rows, sr, bicubic, hr, strict=True):
        assert row.psnr_sr == psnr(sr_image, hr_image)
        assert row.psnr_bicubic == psnr(bicubic_image, hr_image)
        assert row.ssim_sr == ssim(sr_image, hr_image)
        assert row.ssim_bicubic == ssim(bicubic_image, hr_image)
        assert row.psnr_gain > 0
        assert row.ssim_gain > 0


def test_evaluate_refuses_what_does_not_pair_up() -> None:
    one = [pictures(0)]
    with pytest.raises(ValueError, match=r"equally long.*'sr': 2"):
        evaluate(["a"], one * 2, one, one)
    with pytest.raises(ValueError, match="no pictures"):
        evaluate([], [], [], [])
    with pytest.raises(ValueError, match="more than one picture of: a"):
        evaluate(["a", "a"], one * 2, one * 2, one * 2)


def test_evaluate_names_the_photograph_that_is_wrong() -> None:
    good, bad = pictures(0), pictures(1) + 1
    with pytest.raises(ValueError, match=r"^second: sr: values must lie in \[0, 1\]"):
        evaluate(["first", "second"], [good, bad], [good, good], [good, good])


def test_mean_is_the_arithmetic_mean_of_each_column() -> None:
    assert mean_row(ROWS) == EvaluationRow("mean", 25.0, 25.25, 0.75, pytest.approx(0.77))
    with pytest.raises(ValueError, match="no evaluation rows"):
        mean_row([])


def test_markdown_holds_every_row_the_means_and_the_ids() -> None:
    lines = markdown_table(ROWS).splitlines()
    assert lines[2] == "| coffee.png | 24.00 | 25.50 | +1.50 | 0.7000 | 0.7500 | +0.0500 |"
    assert lines[3] == r"| a\|b_c | 26.00 | 25.00 | -1.00 | 0.8000 | 0.7900 | -0.0100 |"
    assert lines[4] == ("| **mean of 2** | **25.00** | **25.25** | **+0.25** | **0.7500** | **0.7700** | **+0.0200** |")
    assert PSNR_ID in lines[6]
    assert SSIM_ID in lines[7]


def test_json_round_trip_keeps_infinite_psnr(tmp_path: Path) -> None:
    rows = [*ROWS, EvaluationRow("perfect", 30.0, math.inf, 0.9, 1.0)]
    path = tmp_path / "evaluation.json"
    write_evaluation(path, rows)
    assert read_evaluation(path) == rows
    document = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["metrics"] == {"psnr": PSNR_ID, "ssim": SSIM_ID}
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_of_other_metrics_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    write_evaluation(path, ROWS)
    path.write_text(path.read_text().replace("RGB, 8-bit, whole crop", "Y channel"))
    with pytest.raises(UserError, match=r"Y channel.*cannot be compared"):
        read_evaluation(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metrics": {}, "rows": [{"name": "a"}]}', '{"metrics": 1, "r'])
def test_a_damaged_table_is_a_clear_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(UserError, match="not an evaluation table"):
        read_evaluation(path)


def test_a_missing_table_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot read"):
        read_evaluation(tmp_path / "absent.json")
