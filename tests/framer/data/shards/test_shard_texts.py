"""Texts in shards: each photograph's own, wherever its samples lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import webdataset
from shard_cases import NumberedTexts, contents, dataset_of, make_shards

from framer.data.shards.index import members_of, open_index, spans_of
from framer.data.shards.manifest import MANIFEST_FILE, TEXTS_FOLDER, read_manifest
from framer.data.shards.reader import ShardDataset
from framer.data.shards.stream_pairs import PhotographTexts
from framer.data.texts.store import TextStore, write_text_store
from framer.errors import UserError

CAPTIONS = {
    "photo0": "a mole",
    "photo1": "two moles",
    "photo2": "a mole",
    "photo3": "",
    "photo4": "fünf Maulwürfe",
}


def _make(photos: list[Path], folder: Path, *, pooled: int | None = 3, captions: dict[str, str] = CAPTIONS) -> Path:
    store = write_text_store(folder / TEXTS_FOLDER, captions, NumberedTexts(pooled=pooled), dtype="fp32")
    make_shards(dataset_of(photos), folder, texts=PhotographTexts(captions, store, photos[0].parent))
    return folder


@pytest.fixture(scope="module")
def shards(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make(photos, tmp_path_factory.mktemp("texts") / "out")


def _open(folder: Path) -> ShardDataset:
    return ShardDataset(folder, read_manifest(folder), seed=5)


def test_the_manifest_says_what_the_texts_are(shards: Path) -> None:
    texts = read_manifest(shards).texts
    assert texts is not None
    assert (texts.tokens, texts.prompt, texts.pooled) == (5, 8, 3)
    assert texts.fingerprint == TextStore(shards / TEXTS_FOLDER).fingerprint


def test_each_sample_has_the_text_of_its_photograph(shards: Path) -> None:
    store, dataset, names = TextStore(shards / TEXTS_FOLDER), _open(shards), set()
    for index in range(40):
        sample = dataset[index]
        expected = NumberedTexts(pooled=3).encode([CAPTIONS[sample["name"]]])
        torch.testing.assert_close(sample["prompt_embeds"], expected.prompt[0])
        assert expected.pooled is not None
        torch.testing.assert_close(sample["pooled_prompt_embeds"], expected.pooled[0])
        names.add(sample["name"])
    assert names == CAPTIONS.keys()
    for shard in read_manifest(shards).shards:
        for sample in webdataset.WebDataset(str(shards / shard.file), shardshuffle=False):
            meta = json.loads(sample["json"])
            assert meta["caption"] == CAPTIONS[meta["name"]]
            assert meta["text"] == store.row_of(meta["name"])


def test_captions_without_embeddings(photos: list[Path], tmp_path: Path) -> None:
    make_shards(dataset_of(photos), tmp_path, texts=PhotographTexts(CAPTIONS, None, photos[0].parent))
    assert read_manifest(tmp_path).texts is None
    assert "prompt_embeds" not in _open(tmp_path)[0]
    shard = read_manifest(tmp_path).shards[0]
    sample = next(iter(webdataset.WebDataset(str(tmp_path / shard.file), shardshuffle=False)))
    meta = json.loads(sample["json"])
    assert (meta["caption"], meta["text"]) == (CAPTIONS[meta["name"]], None)


def test_without_a_pooled_embedding(photos: list[Path], tmp_path: Path) -> None:
    sample = _open(_make(photos, tmp_path, pooled=None))[0]
    assert sample["prompt_embeds"].shape == (5, 8)
    assert "pooled_prompt_embeds" not in sample


def test_other_captions_are_refused(photos: list[Path], shards: Path) -> None:
    before = contents(shards)
    other = CAPTIONS | {"photo0": "a vole"}
    with pytest.raises(UserError, match="made from something else"):
        _make(photos, shards, captions=other)
    store = TextStore(shards / TEXTS_FOLDER)
    with pytest.raises(UserError, match=r"--captions SHA-256 .* \(now SHA-256"):
        make_shards(dataset_of(photos), shards, texts=PhotographTexts(other, store, photos[0].parent))
    assert contents(shards) == before


def test_texts_of_other_shards_are_told(photos: list[Path], shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    other = _make(photos, tmp_path / "other", captions=dict.fromkeys(CAPTIONS, "fog"))
    shutil.rmtree(folder / TEXTS_FOLDER)
    with pytest.raises(UserError, match=r"texts has no texts\.json"):
        _open(folder)
    shutil.copytree(other / TEXTS_FOLDER, folder / TEXTS_FOLDER)
    with pytest.raises(UserError, match=rf"texts holds other texts than those of {folder / MANIFEST_FILE}"):
        _open(folder)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'"text": 9}', "text: .* has 4 rows, there is no row 9"),
        (b'"text":""}', "is damaged: text: "),
        (b'"text":-1}', "is damaged: text: "),
    ],
)
def test_a_row_that_is_not_there_is_named_by_shard_and_key(
    shards: Path, tmp_path: Path, text: bytes, problem: str
) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    shard, members = read_manifest(folder).shards[0], members_of(latents=False)
    row = open_index(folder / shard.index_file, samples=shard.samples, members=members)[1]
    span = spans_of(row, members)["json"]
    with (folder / shard.file).open("r+b") as file:
        file.seek(span.offset + span.size - len(text))
        file.write(text)
    with pytest.raises(UserError, match=rf"{folder / shard.file}: sample {int(row[0]):09d}: json:? .*{problem}"):
        [_open(folder).sample(0, place, 0) for place in range(_open(folder).bucket_sizes[0])]
