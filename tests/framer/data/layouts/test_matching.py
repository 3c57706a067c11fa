"""Files belong together by name."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from layout_cases import NAMES, make_layout

from framer.data.layouts.dit4sr import DIT4SR
from framer.data.layouts.matching import open_layout
from framer.data.layouts.seesr import SEESR
from framer.errors import UserError

SMALL = replace(DIT4SR, prompt_channels=8, pooled_channels=4)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_layout(tmp_path_factory.mktemp("dit4sr"), SMALL)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "pairs"))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_layout(folder, SMALL)
    return str(caught.value)


def test_records_are_in_the_order_of_names_whatever_the_order_on_disk(folder: Path) -> None:
    # Files made again, in reverse, come in another order of the folder's own.
    for path in sorted((folder / "lr").iterdir(), reverse=True):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    opened = open_layout(folder, SMALL)
    assert [record.name for record in opened.records] == sorted(NAMES)
    assert opened.subfolders == SMALL.subfolders
    for record in opened.records:
        assert set(record.paths) == set(SMALL.subfolders)
        assert {path.stem for path in record.paths.values()} == {record.name}
    assert opened.null_tensors["prompt_embeds"] == folder / "prompt_embeds" / "NULL_prompt_embeds.pt"


def test_a_missing_and_a_renamed_file_are_both_named(folder: Path) -> None:
    (folder / "lr" / "0002.png").unlink()
    (folder / "prompt_embeds" / "a.pt").rename(folder / "prompt_embeds" / "aa.pt")
    message = refusal(folder)
    assert "lr lacks 2: 0002, aa" in message
    assert "prompt_embeds lacks 1: a (remove" in message
    assert "gt lacks 1: aa" in message
    assert "nothing was written" in message


def test_all_kinds_of_problems_come_in_one_message(folder: Path) -> None:
    shutil.copy(folder / "gt" / "a.png", folder / "gt" / "a.jpg")
    shutil.copy(folder / "gt" / "a.png", folder / "gt" / "a.gif")
    (folder / "lr" / "sub").mkdir()
    (folder / "sr_bicubic" / ".DS_Store").write_bytes(b"")
    (folder / "sr_bicubic" / "b\n.png").write_bytes(b"")
    shutil.rmtree(folder / "latent_lr")
    (folder / "pooled_prompt_embeds" / "NULL_pooled_prompt_embeds.pt").unlink()
    message = refusal(folder)
    assert "gt holds 2: a.jpg, a.png, which have the same name but for the suffix" in message
    assert "gt holds 1: a.gif, which are not files ending in .bmp .jpeg" in message
    assert "lr holds 1: sub, which are not files" in message
    assert "sr_bicubic holds 1: 'b\\n.png', whose names cannot be printed" in message
    assert "latent_hr is there without latent_lr/; add or remove them together" in message
    assert "pooled_prompt_embeds lacks NULL_pooled_prompt_embeds.pt, the embedding of the empty text" in message
    assert "DS_Store" not in message


def test_a_long_list_is_cut_at_ten(folder: Path) -> None:
    for number in range(25):
        (folder / "gt" / f"x{number:02d}.png").write_bytes(b"")
    message = refusal(folder)
    assert "lr lacks 25: x00, x01, x02, x03, x04, x05, x06, x07, x08, x09, and 15 more" in message


def test_optional_subfolders_may_be_absent_as_a_whole(folder: Path) -> None:
    for name in ("sr_bicubic", "prompt_txt", "prompt_embeds", "pooled_prompt_embeds", "latent_hr", "latent_lr"):
        shutil.rmtree(folder / name)
    opened = open_layout(folder, SMALL)
    assert opened.subfolders == ("gt", "lr")
    assert opened.null_tensors == {}


def test_subfolders_of_another_layout_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_layout(folder, SMALL)
    assert not caplog.text
    open_layout(folder, SEESR)
    assert (
        "not of layout seesr: 5: latent_hr, latent_lr, pooled_prompt_embeds, prompt_embeds, prompt_txt" in caplog.text
    )


def test_an_empty_subfolder_is_not_an_absent_one(folder: Path) -> None:
    for path in (folder / "sr_bicubic").iterdir():
        path.unlink()
    assert "sr_bicubic lacks 6: 0001, 0002, 0003, 0010, a, b (remove the subfolder to do without it)" in refusal(folder)


def test_embeddings_of_the_empty_text_may_lie_beside_the_subfolder_but_not_twice(folder: Path) -> None:
    inside, beside = folder / "prompt_embeds" / "NULL_prompt_embeds.pt", folder / "NULL_prompt_embeds.pt"
    shutil.copy(inside, beside)
    assert "NULL_prompt_embeds.pt lies both in prompt_embeds and beside it" in refusal(folder)
    inside.unlink()
    assert open_layout(folder, SMALL).null_tensors["prompt_embeds"] == beside


def test_a_folder_of_no_layout(tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    (tmp_path / "readme.txt").write_text("")
    message = refusal(tmp_path)
    assert "is no folder of layout dit4sr: it lacks gt/ lr/. Expected gt/ lr/ and, as far as prepared" in message
    assert "sr_bicubic/ prompt_txt/ prompt_embeds/" in message
    assert "found HR/ readme.txt" in message
    assert "is not a folder" in refusal(tmp_path / "no")
    (tmp_path / "gt").mkdir()
    (tmp_path / "lr").mkdir()
    with pytest.raises(UserError, match="no images in"):
        open_layout(tmp_path, SEESR)


def test_mutated_names_never_give_a_wrong_pairing(prepared: Path, tmp_path: Path) -> None:
    for seed in range(200):
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        for subfolder in ("gt", "lr", "prompt_txt"):
            (folder / subfolder).mkdir(parents=True)
            for path in (prepared / subfolder).iterdir():
                (folder / subfolder / path.name).write_text(path.stem)
        for _ in range(rng.randint(1, 3)):
            path = rng.choice(sorted(folder.glob("*/*")))
            letters = list(path.name)
            place = rng.randrange(len(letters))
            letters[place : place + rng.randint(0, 1)] = rng.choice(
                ["", "x", "0", ".", "é", "\udce9", " ", "\n", "A", "a"]
            )
            name = "".join(letters) or "x"
            mutated = path.with_name("x" if name in (".", "..") else name)
            rng.choice([path.rename, lambda to, path=path: shutil.copy(path, to)])(mutated) if path != mutated else None
        try:
            opened = open_layout(folder, SMALL)
        except UserError as error:
            str(error).encode()
            continue
        for record in opened.records:
            assert {path.stem for path in record.paths.values()} == {record.name}
            assert len(record.paths) == 3
