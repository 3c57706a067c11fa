"""``framer evaluate`` on folders as users have them: files, tables, and what is refused."""

import csv
import hashlib
import json
import math
import shlex
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framer.cli import main
from framer.data.images import read_image, resize_bicubic, write_png
from framer.errors import UserError
from framer.evaluation import comparison_plot
from framer.evaluation.folders import Settings, evaluate_folders
from framer.evaluation.metrics import PSNR_ID, SSIM_ID, psnr_8bit, ssim_8bit
from framer.evaluation.niqe import niqe
from framer.evaluation.protocols import choose_metrics
from framer.evaluation.results import as_json, markdown
from framer.evaluation.runs import PictureFile
from framer.evaluation.scoring import Workers, inspect

NAMES = ("a.b.c", "canon/0001", "plain")


def texture(seed, height=192, width=96):
    generator = np.random.default_rng(seed)
    smooth = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return np.array(smooth.resize((width, height), Image.BICUBIC))


def spoilt(picture, sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.rint((picture + noise).clip(0, 255)).astype(np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Originals, LR images and two runs of three photographs; ``good`` is better than ``bad``."""
    for seed, name in enumerate(NAMES):
        hr = texture(seed)
        lr = Image.fromarray(hr).resize((hr.shape[1] // 4, hr.shape[0] // 4), Image.BICUBIC)
        write_png(tmp_path / "hr" / f"{name}.png", hr)
        write_png(tmp_path / "lr" / f"{name}.png", np.array(lr))
        write_png(tmp_path / "good" / f"{name}.png", spoilt(hr, 2, seed))
        write_png(tmp_path / "bad" / f"{name}.png", spoilt(hr, 9, seed))
    return tmp_path


def evaluate(folder, *runs, reference="hr", protocol="framer", extra=()):
    arguments = ["evaluate", *(str(folder / run) for run in runs), "--protocol", protocol, "--workers", "0"]
    if reference:
        arguments += ["--reference", str(folder / reference)]
    return main([*arguments, "-o", str(folder / "out"), *map(str, extra)])


def results(folder):
    return json.loads((folder / "out" / "evaluation.json").read_text())


def refused(capsys, status):
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    return captured.err


@pytest.fixture(autouse=True)
def not_drawn(monkeypatch):
    """Drawing takes longer than all the rest and has its own tests."""
    monkeypatch.setattr(comparison_plot, "plot_comparison", lambda path, _: path.write_bytes(b"") or "not drawn")


def test_writes_table_json_csv_and_plot(folders, capsys):
    assert evaluate(folders, "good", "bad") == 0
    assert sorted(path.name for path in (folders / "out").iterdir()) == [
        "comparison.png",
        "evaluation.json",
        "evaluation.md",
        "per_image.csv",
        "pictures.png",
    ]
    table = (folders / "out" / "evaluation.md").read_text()
    assert table in capsys.readouterr().out
    assert PSNR_ID in table
    assert SSIM_ID in table


def test_numbers_are_those_of_the_metrics_and_picture_by_picture(folders):
    evaluate(folders, "good", "bad")
    document = results(folders)
    with (folders / "out" / "per_image.csv").open() as file:
        lines = {(line["run"], line["name"]): line for line in csv.DictReader(file)}
    assert len(lines) == 6
    for index, picture in enumerate(document["pictures"]):
        assert picture["name"] == NAMES[index]
        assert (picture["height"], picture["width"]) == (192, 96)
        for run, sigma in (("good", 2), ("bad", 9)):
            hr = texture(index)
            sr = spoilt(hr, sigma, index)
            expected = {"psnr": psnr_8bit(sr, hr), "ssim": ssim_8bit(sr, hr), "niqe": niqe(sr)}
            for name, value in expected.items():
                assert picture["values"][name][run] == value
                assert float(lines[run, picture["name"]][name]) == value
    psnr = document["metrics"]["psnr"]
    assert psnr["id"] == PSNR_ID
    assert psnr["library"].startswith("scikit-image ")
    values = [picture["values"]["psnr"]["good"] for picture in document["pictures"]]
    assert psnr["means"]["good"]["value"] == pytest.approx(np.mean(values))


def test_json_holds_the_hashes_of_all_files(folders):
    evaluate(folders, "good", extra=["--lr", folders / "lr"])
    for picture in results(folders)["pictures"]:
        for run, folder in (("good", "good"), ("reference", "hr"), ("LR", "lr")):
            content = (folders / folder / f"{picture['name']}.png").read_bytes()
            assert picture["sha256"][run] == hashlib.sha256(content).hexdigest()


def test_the_better_run_wins_every_picture(folders):
    evaluate(folders, "bad", "good")
    differences = {(d["metric"], d["run"], d["against"]): d for d in results(folders)["differences"]}
    psnr = differences["psnr", "good", "bad"]
    assert (psnr["wins"], psnr["ties"], psnr["losses"], psnr["win_rate"]) == (3, 0, 0, 1.0)
    assert psnr["interval"][0] > 5


def test_folder_is_searched_whatever_the_suffix_and_matched_by_name(folders):
    for name in NAMES:
        path = folders / "good" / f"{name}.png"
        with Image.open(path) as picture:
            picture.save(path.with_name(path.stem + ".TIFF"))
        path.unlink()
    assert evaluate(folders, "good") == 0
    assert [picture["name"] for picture in results(folders)["pictures"]] == list(NAMES)


def test_lr_adds_bicubic_as_the_first_run(folders):
    evaluate(folders, "good", extra=["--lr", folders / "lr"])
    document = results(folders)
    assert list(document["runs"]) == ["bicubic", "good"]
    enlarged = resize_bicubic(read_image(folders / "lr" / "plain.png").astype(np.float32), (192, 96))
    bicubic = np.rint(enlarged.clip(0, 255)).astype(np.uint8)
    assert document["pictures"][2]["values"]["psnr"]["bicubic"] == psnr_8bit(bicubic, texture(2))


def test_without_originals_what_needs_them_is_named_and_niqe_is_there(folders, capsys):
    assert evaluate(folders, "good", reference=None, protocol="osediff") == 0
    metrics = results(folders)["metrics"]
    assert math.isfinite(metrics["niqe"]["means"]["good"]["value"])
    for name in ("psnr", "ssim", "lpips", "dists", "fid"):
        assert "give their folder as --reference" in metrics[name]["not_computed_because"]
    table = capsys.readouterr().out
    assert table.count("| not computed, because `it compares with the originals") == 5


def test_metrics_asked_for_by_name_and_not_computed_are_a_failure_and_the_others_are_written(folders, capsys):
    assert evaluate(folders, "good", reference=None, extra=["--metrics", "ssim", "niqe", "psnr"]) == 1
    assert math.isfinite(results(folders)["metrics"]["niqe"]["means"]["good"]["value"])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not computed")]
    reason = "it compares with the originals; give their folder as --reference"
    assert lines == [f"not computed: {name}: {reason}" for name in ("psnr", "ssim")]


@pytest.mark.parametrize("protocol", ["framer", "osediff"])
def test_every_metric_of_the_protocol_has_a_line_in_the_table(folders, capsys, protocol):
    evaluate(folders, "good", protocol=protocol)
    table = capsys.readouterr().out
    document = results(folders)
    for metric in choose_metrics(protocol):
        assert metric.id in table
        entry = document["metrics"][metric.name]
        assert ("means" in entry) != ("not_computed_because" in entry)


def test_border_is_cut_and_named(folders):
    evaluate(folders, "good", extra=["--border", 4, "--metrics", "psnr"])
    document = results(folders)
    assert document["metrics"]["psnr"]["id"] == f"{PSNR_ID}, after a border of 4 px is cut off"
    hr = texture(2)
    expected = psnr_8bit(spoilt(hr, 2, 2)[4:-4, 4:-4], hr[4:-4, 4:-4])
    assert document["pictures"][2]["values"]["psnr"]["good"] == expected


def test_the_same_pictures_are_inf_in_json_and_said_in_the_table(folders, capsys):
    path = folders / "good" / "plain.png"
    path.write_bytes((folders / "hr" / "plain.png").read_bytes())
    evaluate(folders, "good", "bad", extra=["--metrics", "psnr", "ssim"])
    document = results(folders)
    assert document["pictures"][2]["values"]["psnr"]["good"] == "inf"
    mean = document["metrics"]["psnr"]["means"]["good"]
    others = [picture["values"]["psnr"]["good"] for picture in document["pictures"][:2]]
    assert (mean["value"], mean["infinite"]) == ("inf", 1)
    assert mean["finite"] == pytest.approx(np.mean(others))
    difference = document["differences"][0]
    assert (difference["left_out"], difference["losses"]) == (1, 3)
    finite = f"{np.mean(others):.2f} [{min(others):.2f}, {max(others):.2f}]"
    assert f"| inf (1 same as the original; {finite} over the 2 others) |" in capsys.readouterr().out
    assert "good,plain,inf,1.0" in (folders / "out" / "per_image.csv").read_text()


def test_originals_against_themselves(folders, capsys):
    assert evaluate(folders, "hr", extra=["--metrics", "psnr", "ssim"]) == 0
    assert "inf (3 same as the original; as all others)" in capsys.readouterr().out


def test_a_flat_picture_has_no_niqe_and_the_mean_says_so(folders, capsys):
    write_png(folders / "good" / "plain.png", np.full((192, 96, 3), 90, np.uint8))
    evaluate(folders, "good")
    document = results(folders)
    assert document["pictures"][2]["values"]["niqe"]["good"] is None
    assert document["metrics"]["niqe"]["means"]["good"]["undefined"] == 1
    assert "(not defined for 1)" in capsys.readouterr().out
    line = (folders / "out" / "per_image.csv").read_text().splitlines()[3]
    assert line.startswith("good,plain,")
    assert line.endswith(",")


def test_small_pictures_leave_niqe_out_and_name_one(folders, capsys):
    for run in ("hr", "good"):
        write_png(folders / run / "plain.png", texture(9)[:95])
    assert evaluate(folders, "good") == 0
    assert "because `plain (95 x 96) is too small: it has fewer than 2 patches of 96 px" in capsys.readouterr().out
    assert "means" in results(folders)["metrics"]["ssim"]


def test_grey_16_bit_and_transparent_files_are_measured_as_8_bit_rgb(folders):
    grey = np.linspace(0, 65535, 192 * 96).reshape(192, 96).astype(np.uint16)
    Image.fromarray(grey).save(folders / "hr" / "plain.png")
    eight_bit = np.rint(grey / 257).astype(np.uint8)
    Image.fromarray(eight_bit).save(folders / "good" / "plain.png")
    rgb = texture(0)
    opaque = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    Image.fromarray(np.concatenate([rgb, opaque], axis=2)).save(folders / "good" / "a.b.c.png")
    evaluate(folders, "good", extra=["--metrics", "psnr"])
    values = [picture["values"]["psnr"]["good"] for picture in results(folders)["pictures"]]
    assert values[0] == values[2] == "inf"


def test_missing_and_extra_names_of_all_folders_are_in_one_error(folders, capsys):
    (folders / "good" / "plain.png").unlink()
    write_png(folders / "bad" / "other.png", texture(0))
    error = refused(capsys, evaluate(folders, "good", "bad"))
    assert "good" in error
    assert "lacks 1: plain" in error
    assert "has 1 others: other" in error
    assert not (folders / "out").exists()


def test_files_with_the_same_name_but_for_the_suffix_are_refused(folders, capsys):
    Image.fromarray(texture(0)).save(folders / "good" / "plain.jpg")
    error = refused(capsys, evaluate(folders, "good"))
    assert "plain.jpg and plain.png" in error


def test_all_pictures_of_other_sizes_are_named(folders, capsys):
    for name in ("plain", "canon/0001"):
        write_png(folders / "bad" / f"{name}.png", texture(0)[:100])
    error = refused(capsys, evaluate(folders, "good", "bad"))
    assert "2 of 3 differ" in error
    assert "plain: reference 192 x 96, good 192 x 96, bad 100 x 96" in error
    assert "canon/0001: " in error


def test_all_damaged_files_are_named_before_anything_is_measured(folders, capsys):
    for name in ("plain", "a.b.c"):
        path = folders / "bad" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:300])
    (folders / "hr" / "plain.png").write_bytes(b"")
    error = refused(capsys, evaluate(folders, "good", "bad"))
    assert "3 of 9 pictures cannot be read; nothing was measured" in error
    for path in ("bad/plain.png", "bad/a.b.c.png", "hr/plain.png"):
        assert str(folders / path) in error
    assert not (folders / "out").exists()


def test_mutated_files_are_told_or_read_but_never_crash(folders):
    generator = np.random.default_rng(0)
    path = folders / "hr" / "plain.png"
    content = path.read_bytes()
    told = 0
    for _ in range(200):
        mutated = bytearray(content[: generator.integers(1, len(content) + 1)])
        for position in generator.integers(0, len(mutated), 3):
            mutated[position] = generator.integers(0, 256)
        path.write_bytes(mutated)
        found = inspect(PictureFile(path))
        assert (found.problem == "") == (len(found.sha256) == 64)
        assert not found.problem or str(path) in found.problem
        told += bool(found.problem)
    assert told > 100


def test_lr_that_does_not_divide_the_pictures_is_refused(folders, capsys):
    write_png(folders / "lr" / "plain.png", texture(0)[:47, :24])
    error = refused(capsys, evaluate(folders, "good", extra=["--lr", folders / "lr"]))
    assert "plain: LR 47 x 24, picture 192 x 96" in error


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--border", "-1"], "--border must not be negative"),
        (["--border", "48"], "--border 48 leaves nothing of"),
        (["--workers", "-2"], "--workers must not be negative"),
        (["--metrics", "dists"], "protocol framer has no metric dists; it has"),
        (["--name", "good"], "--name good: expected NAME=FOLDER"),
        (["--name", "=x"], "expected NAME=FOLDER"),
        (["--published", "osediff-realsr"], "was measured with --protocol osediff"),
        (["--device", "gpu"], "--device gpu: not a device"),
    ],
)
def test_wrong_options_are_told(folders, capsys, extra, message):
    assert message in refused(capsys, evaluate(folders, "good", extra=extra))


def test_runs_of_the_same_name_must_be_named_apart(folders, capsys):
    other = folders / "elsewhere" / "good"
    other.parent.mkdir()
    (folders / "bad").rename(other)
    message = "more than one run is called good; name them apart with --name NAME=FOLDER"
    assert message in refused(capsys, evaluate(folders, "good", "elsewhere/good"))
    assert evaluate(folders, "good", extra=["--name", f"second try={other}"]) == 0
    assert list(results(folders)["runs"]) == ["good", "second try"]


def test_bicubic_is_no_name_for_a_run_beside_lr(folders, capsys):
    extra = ["--lr", folders / "lr", "--name", f"bicubic={folders / 'bad'}"]
    message = "a run cannot be called bicubic, which means another folder here; give --name NAME=FOLDER"
    assert message in refused(capsys, evaluate(folders, "good", extra=extra))


def test_nothing_to_judge_and_missing_folders_are_told(folders, capsys):
    assert "give at least one folder" in refused(capsys, evaluate(folders))
    assert "does not exist" in refused(capsys, evaluate(folders, "nowhere"))
    named = f"ours={folders / 'good'}"
    assert f"to name a run, give --name {shlex.quote(named)}" in refused(capsys, evaluate(folders, extra=[named]))
    (folders / "good").rename(folders / "lr=0.1")
    assert evaluate(folders, "lr=0.1", extra=["--metrics", "psnr"]) == 0


def test_output_inside_a_folder_of_pictures_is_refused(folders, capsys):
    arguments = ["evaluate", str(folders / "good"), "--protocol", "framer", "-o", str(folders / "good" / "out")]
    assert "lies in" in refused(capsys, main(arguments))


@pytest.mark.parametrize("output", ["afile", "afile/x", "/proc/x"])
def test_an_output_that_cannot_be_written_is_told_before_pictures_are_read(folders, capsys, monkeypatch, output):
    (folders / "afile").touch()
    monkeypatch.setattr(PictureFile, "read", lambda _: pytest.fail("read"))
    monkeypatch.setattr("framer.evaluation.folders.open_run", lambda *_: pytest.fail("listed"))
    message = refused(capsys, evaluate(folders, "good", extra=["-o", folders / output]))
    assert f"--output{'' if output == 'afile' else ': cannot write to'} {folders / output}" in message


def test_links_are_runs_of_their_own_name(folders, capsys, monkeypatch):
    (folders / "newest").symlink_to("good")
    assert evaluate(folders, "newest", "bad/../good") == 0
    assert results(folders)["runs"] == {"newest": f"{folders}/newest", "good": f"{folders}/bad/../good"}
    monkeypatch.chdir(folders / "good")
    assert main(["evaluate", ".", "--protocol", "framer", "--workers", "0", "-o", str(folders / "out")]) == 0
    assert list(results(folders)["runs"]) == ["good"]
    capsys.readouterr()
    inside = str(folders / "good" / "out")
    assert "lies in" in refused(capsys, main(["evaluate", "../newest", "--protocol", "framer", "-o", inside]))


def test_measuring_again_replaces_the_results(folders):
    evaluate(folders, "good")
    evaluate(folders, "bad")
    assert list(results(folders)["runs"]) == ["bad"]
    assert not [path for path in (folders / "out").iterdir() if path.name.startswith(".")]


def test_pictures_of_an_earlier_evaluation_do_not_stay_beside_a_table_that_is_not_theirs(folders, monkeypatch):
    psnr = ["--metrics", "psnr"]
    evaluate(folders, "good", extra=psnr)
    (folders / "out" / "notes.txt").write_text("mine")
    evaluate(folders, "good", reference=None, extra=psnr)
    left = ["evaluation.json", "evaluation.md", "notes.txt", "per_image.csv", "pictures.png"]
    assert sorted(path.name for path in (folders / "out").iterdir()) == left

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison_plot, "plot_comparison", full)
    assert evaluate(folders, "bad", extra=psnr) == 2
    assert not list((folders / "out").glob("*.png"))


def test_published_numbers_stand_beside_the_measured(folders, capsys):
    evaluate(folders, "good", protocol="osediff", extra=["--published", "osediff-realsr"])
    table = capsys.readouterr().out
    mean = results(folders)["metrics"]["psnr"]["means"]["good"]["value"]
    assert f"| psnr | 25.1511 | good | {mean:.4f} | {mean - 25.1511:+.4f} |" in table
    assert "| maniqa-pipal | 0.6331 | | not computed | |" in table


def test_few_pictures_are_said_to_be_few(folders, capsys):
    evaluate(folders, "good")
    assert "Only 3 pictures" in capsys.readouterr().out


def test_one_picture_has_no_interval(tmp_path, capsys):
    write_png(tmp_path / "hr" / "one.png", texture(0))
    write_png(tmp_path / "sr" / "one.png", spoilt(texture(0), 4))
    assert evaluate(tmp_path, "sr") == 0
    assert "One picture: there is no interval" in capsys.readouterr().out
    assert results(tmp_path)["metrics"]["psnr"]["means"]["sr"]["interval"] is None


def test_names_that_markdown_would_interpret_stay_in_their_cells(folders, capsys):
    (folders / "good").rename(folders / "a|b *c*")
    evaluate(folders, "a|b *c*", "bad")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| PSNR RGB")]
    assert r"bad - a\|b \*c\*" in lines[1]


@pytest.mark.slow
def test_processes_give_the_same_result(folders, monkeypatch):
    settings = {"runs": (("good", folders / "good"), ("bad", folders / "bad")), "reference": folders / "hr"}
    here = evaluate_folders(Settings(**settings, workers=0))
    maps = []
    original = Workers.map

    def counted(self, function, items, **words):
        maps.append(self._pool is not None)
        return original(self, function, items, **words)

    monkeypatch.setattr(Workers, "map", counted)
    there = evaluate_folders(Settings(**settings, workers=2))
    assert maps == [True, True]
    assert as_json(there) == as_json(here)
    assert markdown(there) == markdown(here)


def test_a_process_that_was_ended_is_told():
    class EndedPool:
        def map(self, function, items):
            yield function(items[0])
            raise BrokenProcessPool

    with pytest.raises(UserError, match="check: a process was ended before its pictures were done"):
        Workers(EndedPool()).map(str, [1, 2], doing="check", unit="picture")


def test_results_are_not_shared_with_the_input_folders(folders):
    before = {path: path.read_bytes() for path in Path(folders).rglob("*.png")}
    evaluate(folders, "good", "bad", extra=["--lr", folders / "lr"])
    assert {path: path.read_bytes() for path in Path(folders).rglob("*.png") if "out" not in path.parts} == before
