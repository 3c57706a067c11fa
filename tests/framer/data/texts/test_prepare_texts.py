"""Texts as the options of a command ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_folders import blip, sd3_texts, sdxl_texts
from text_store_cases import contents

from framer.data.images import write_png
from framer.data.texts.prepare import CACHE_FILE, PreparedTexts, prepare_texts
from framer.data.texts.store import NULL_ROW
from framer.errors import UserError
from framer.models import captioner
from framer.models.text_encoders import load_text_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(("b.png", "x/a.png", "x/c.png")):
        write_png(folder / name, np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd3_texts(tmp_path_factory.mktemp("pipelines") / "sd3")


def _prepared(photos: Path, folder: Path, captions: str, encoder: Path | None, **options: Any) -> PreparedTexts:
    paths = sorted(photos.rglob("*.png"))
    return prepare_texts(paths, photos, folder, captions=captions, encoder_folder=encoder, device=CPU, **options)


def test_texts_of_files_reach_the_store(photos: Path, encoder: Path, tmp_path: Path) -> None:
    texts = {"b": "a red car.", "x/a": "two cats.", "x/c": ""}
    for key, text in texts.items():
        path = tmp_path / "captions" / f"{key}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = _prepared(photos, tmp_path / "out", str(tmp_path / "captions"), encoder, dtype="fp32")
    assert found.captions == texts
    store = found.store
    assert store is not None
    assert store.row_of("x/c") == NULL_ROW
    direct = load_text_encoder(encoder, device=CPU).encode(["", "a red car.", "two cats."])
    assert direct.pooled is not None
    for place, key in enumerate(("x/c", "b", "x/a")):
        row = store.embeddings(store.row_of(key))
        assert row.pooled is not None
        torch.testing.assert_close(row.prompt, direct.prompt[place])
        torch.testing.assert_close(row.pooled, direct.pooled[place])


def test_null_texts_are_one_row(photos: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    sdxl = sdxl_texts(tmp_path_factory.mktemp("pipelines") / "sdxl")
    found = _prepared(photos, tmp_path, "null", sdxl)
    assert found.captions == {"b": "", "x/a": "", "x/c": ""}
    assert found.store is not None
    assert (len(found.store), found.store.tokens) == (1, 77)


def test_null_texts_need_no_distinct_names(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "a.jpg"]
    found = prepare_texts(paths, tmp_path, tmp_path, captions="null", encoder_folder=None, device=CPU)
    assert found == ({"a": ""}, None)


def test_a_model_captions_and_its_sentences_about_blur_are_dropped(
    photos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = iter(["A cat.\nThe background is blurred.", "Out of focus.", "A dog.\nA ball."])
    monkeypatch.setattr(captioner.ImageTextCaptioner, "caption", lambda self, image: next(said))
    model = blip(tmp_path / "model")
    found = _prepared(photos, tmp_path / "out", f"model:{model}", encoder)
    assert found.captions == {"b": "A cat.", "x/a": "", "x/c": "A dog. A ball."}
    assert "1 captions are about focus, blur, depth or background alone, and are empty without: x/a" in caplog.text
    # The captioner would have nothing more to say.
    assert _prepared(photos, tmp_path / "out", f"model:{model}", encoder).captions == found.captions
    assert "The background is blurred." in (tmp_path / "out" / CACHE_FILE).read_text()


def test_a_captioner_and_an_encoder_give_the_same_bytes_twice(photos: Path, encoder: Path, tmp_path: Path) -> None:
    model = blip(tmp_path / "model")
    folders = [tmp_path / "first", tmp_path / "second"]
    first, second = (_prepared(photos, folder, f"model:{model}", encoder) for folder in folders)
    assert first.captions == second.captions
    assert all(first.captions.values())
    assert contents(folders[0]) == contents(folders[1])
    assert set(contents(folders[0])) == {CACHE_FILE, "texts.json", "texts-000000.safetensors"}


def test_captions_without_an_encoder(photos: Path, tmp_path: Path) -> None:
    found = _prepared(photos, tmp_path / "out", f"model:{blip(tmp_path / 'model')}", None)
    assert found.store is None
    assert len(found.captions) == 3


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ("model:", "model: names no folder; expected model:FOLDER"),
        ("model:/nowhere", r"/nowhere/config\.json not found"),
        ("/nowhere", "--captions: /nowhere is no folder; expected a folder of text files, null, or model:FOLDER"),
    ],
)
def test_what_captions_cannot_be(photos: Path, tmp_path: Path, captions: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _prepared(photos, tmp_path, captions, None)
