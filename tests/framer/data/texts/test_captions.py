"""Captions find their photographs by name, and captioning goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from framer.data.images import write_png
from framer.data.outputs import LOCK_FILE
from framer.data.texts.captions import captions_from_model, captions_from_text_files, without_forbidden_sentences
from framer.data.texts.keys import photograph_key, photographs_by_key
from framer.data.texts.sentences import split_sentences
from framer.errors import UserError
from framer.models.captioner import Captioner


def _named(*names: str) -> dict[str, Path]:
    return photographs_by_key([Path("photos", name) for name in names], Path("photos"))


def _texts(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_keys_are_paths_without_suffix() -> None:
    root = Path("/data/photos")
    assert photograph_key(root / "street" / "a.b.png", root) == "street/a.b"
    assert photograph_key(root / "a.JPG", root) == "a"
    assert photograph_key(Path("/elsewhere/coffee.png"), None) == "coffee"
    with pytest.raises(ValueError, match="photos"):
        photograph_key(Path("/elsewhere/coffee.png"), root)


def test_photographs_that_differ_by_suffix_alone_are_refused() -> None:
    with pytest.raises(UserError, match=r"photos/x/a\.jpg and photos/x/a\.png differ by their suffix"):
        _named("x/a.jpg", "b.png", "x/a.png")


def test_texts_are_matched_by_path_and_not_by_order(tmp_path: Path) -> None:
    folder = _texts(tmp_path, z="last", a="first", x__a="nested")
    found = captions_from_text_files(_named("z.png", "x/a.png", "a.png"), folder)
    assert list(found.items()) == [("z", "last"), ("x/a", "nested"), ("a", "first")]


def test_texts_in_one_folder_are_matched_by_file_name(tmp_path: Path) -> None:
    folder = _texts(tmp_path, a="of a", b="of b")
    assert captions_from_text_files(_named("y/b.png", "x/a.png"), folder) == {"x/a": "of a", "y/b": "of b"}


def test_a_nested_text_is_of_no_photograph_elsewhere(tmp_path: Path) -> None:
    folder = _texts(tmp_path, x__a="of x/a", b="of b")
    with pytest.raises(UserError, match=r"1 of 2 photographs have no text in .*: y/a\.txt; write"):
        captions_from_text_files(_named("y/a.png", "b.png"), folder)


def test_a_name_of_two_photographs_is_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt could be of several photographs: x/a, y/a; .* such as y/a\.txt"):
        captions_from_text_files(_named("x/a.png", "y/a.png"), _texts(tmp_path, a="which?"))


def test_missing_texts_are_counted_and_the_first_named(tmp_path: Path) -> None:
    photographs = _named(*(f"{number}.png" for number in range(9)))
    with pytest.raises(UserError, match=r"8 of 9 photographs .*: 0\.txt, 1\.txt, 2\.txt, 3\.txt, 5\.txt, and 3 more"):
        captions_from_text_files(photographs, _texts(tmp_path, **{"4": "four"}))


def test_texts_of_no_photograph_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = _texts(tmp_path, a="text", README="notes")
    assert captions_from_text_files(_named("a.png"), folder) == {"a": "text"}
    assert "1 texts in" in caplog.text
    assert "README.txt" in caplog.text


def test_white_space_byte_order_marks_and_hidden_files_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_bytes("\ufeffGrüße aus Köln\r\n".encode())
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".a.txt").write_text("hidden")
    found = captions_from_text_files(_named("a.png", "empty.png"), tmp_path)
    assert found == {"a": "Grüße aus Köln", "empty": ""}


def test_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8: byte 2 is 0xfc"):
        captions_from_text_files(_named("a.png"), tmp_path)


@pytest.mark.parametrize(("name", "message"), [("nowhere", "is no folder"), ("", "holds no text files")])
def test_folders_without_texts(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        captions_from_text_files(_named("a.png"), tmp_path / name)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "The image features a brown bear standing in a grassy field. The bear is the main focus of the scene, and "
            "its fur is detailed. In the background, there are several trees.",
            "The image features a brown bear standing in a grassy field.",
        ),
        (
            "A street in Washington, D.C. is lined with cars. The shallow depth of field isolates the subject. There "
            "are 3.5 million people in the U.S. Navy museum's guest book!",
            "A street in Washington, D.C. is lined with cars. There are 3.5 million people in the U.S. Navy museum's "
            "guest book!",
        ),
        (
            'A man, e.g. Dr. J. Smith, holds a sign that reads "STOP!" Cars are blurred by motion... A dog waits.',
            'A man, e.g. Dr. J. Smith, holds a sign that reads "STOP!" A dog waits.',
        ),
        (
            "The photo shows:\n1. A red barn.\n2. An out-of-focus fence.\n\nOverall, it is calm.",
            "The photo shows: 1. A red barn. Overall, it is calm.",
        ),
        ("Her face is unfocused. Is the backdrop blurry? No. It is plain.", "No. It is plain."),
        ("A blurry photo of a cat", ""),
        ("a dog on  a beach", "a dog on  a beach"),
        ("Two boats.\nOne is red.", "Two boats.\nOne is red."),
        ("", ""),
    ],
)
def test_sentences_about_focus_blur_depth_and_background_are_dropped(text: str, kept: str) -> None:
    assert without_forbidden_sentences(text) == kept


def test_sentences_end_where_a_reader_ends_them() -> None:
    text = (
        "It was taken at 5 p.m. The sun is low. She works for the U.S. They see No. 5 of the series. (A cat sleeps.) "
        "“Wait!” A file named img.png lies there. It costs approx. 3 Euro... He left"
    )
    assert split_sentences(text) == [
        "It was taken at 5 p.m.",
        "The sun is low.",
        "She works for the U.S.",
        "They see No. 5 of the series.",
        "(A cat sleeps.)",
        "“Wait!”",
        "A file named img.png lies there.",
        "It costs approx. 3 Euro...",
        "He left",
    ]


class _CountingCaptioner(Captioner):
    def __init__(self, *, most: int = 100, identity: str = "first") -> None:
        self.calls = 0
        self._most = most
        self._identity = identity

    @property
    def identity(self) -> str:
        return self._identity

    def caption(self, image: npt.NDArray[np.uint8]) -> str:
        if self.calls == self._most:
            raise KeyboardInterrupt
        self.calls += 1
        return f"{self._identity}: of value {image[0, 0, 0]}, “quoted”"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four photographs, of which the last equals the first."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        write_png(path, np.full((8, 8, 3), number % 3, dtype=np.uint8))
    return photographs_by_key(paths, folder)


_EXPECTED = {str(number): f"first: of value {number % 3}, “quoted”" for number in range(4)}


def test_equal_photographs_are_captioned_once_and_only_once(photos: dict[str, Path], tmp_path: Path) -> None:
    captioner, cache = _CountingCaptioner(), tmp_path / "new" / "captions.jsonl"
    assert captions_from_model(photos, captioner, cache) == _EXPECTED
    assert captions_from_model(photos, captioner, cache) == _EXPECTED
    assert captioner.calls == 3
    assert [json.loads(line)["caption"] for line in cache.read_text().splitlines()] == list(_EXPECTED.values())[:3]


def test_captioning_goes_on_where_it_stopped(photos: dict[str, Path], tmp_path: Path) -> None:
    cache, whole = tmp_path / "captions.jsonl", tmp_path / "whole.jsonl"
    captions_from_model(photos, _CountingCaptioner(), whole)
    with pytest.raises(KeyboardInterrupt):
        captions_from_model(photos, _CountingCaptioner(most=2), cache)
    cache.write_bytes(cache.read_bytes()[:-7])  # killed while it wrote the second line
    again = _CountingCaptioner()
    assert captions_from_model(photos, again, cache) == _EXPECTED
    assert again.calls == 2
    assert cache.read_bytes() == whole.read_bytes()


def test_the_first_line_may_be_torn(photos: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "captions.jsonl"
    cache.write_text('{"photograph": "')
    assert captions_from_model(photos, _CountingCaptioner(), cache) == _EXPECTED
    assert len(cache.read_text().splitlines()) == 3


def test_another_captioner_does_not_take_the_captions(photos: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "captions.jsonl"
    captions_from_model(photos, _CountingCaptioner(), cache)
    other = _CountingCaptioner(identity="second")
    assert captions_from_model(photos, other, cache)["2"] == "second: of value 2, “quoted”"
    assert other.calls == 3
    assert captions_from_model(photos, _CountingCaptioner(most=0), cache) == _EXPECTED


@pytest.mark.parametrize("line", ["{}", "no JSON", "[1]", '{"photograph": 1, "captioner": "a", "caption": "b"}'])
def test_a_damaged_cache_is_named(photos: dict[str, Path], tmp_path: Path, line: str) -> None:
    cache = tmp_path / "captions.jsonl"
    captions_from_model(photos, _CountingCaptioner(), cache)
    cache.write_text(cache.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"captions\.jsonl is damaged in line 4"):
        captions_from_model(photos, _CountingCaptioner(), cache)


def test_a_photograph_that_vanished_is_named(photos: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*gone\.png"):
        captions_from_model({"gone": tmp_path / "gone.png"}, _CountingCaptioner(), tmp_path / "captions.jsonl")


def test_a_cache_that_another_process_writes_is_refused(photos: dict[str, Path], tmp_path: Path) -> None:
    with (tmp_path / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing into"):
            captions_from_model(photos, _CountingCaptioner(), tmp_path / "captions.jsonl")
    assert not (tmp_path / "captions.jsonl").exists()
