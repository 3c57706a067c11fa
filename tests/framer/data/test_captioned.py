"""Photographs with texts: each sample has its own photograph's."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from text_stores import text_store

from framer.config.data import DataConfig
from framer.data.captioned import CaptionedPhotographs
from framer.data.dataset import RealISRDataset
from framer.data.images import write_png
from framer.data.samples import Sample
from framer.data.sources import open_source
from framer.data.texts.store import TextStore
from framer.errors import ConfigError, UserError

SEED = 7
# Two of the same file name, and wide ones for a second bucket.
SHAPES = {"a/tree": (20, 20), "b/tree": (20, 20), "sea": (20, 22), "road": (20, 40), "c/field": (20, 44)}
CAPTIONS = {key: f"a photograph of {key}" for key in SHAPES}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of one grey, which tells it in a sample."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, (key, shape) in enumerate(SHAPES.items()):
        write_png(folder / f"{key}.png", np.full((*shape, 3), 40 * (number + 1), np.uint8))
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TextStore:
    return text_store(tmp_path_factory.mktemp("texts"), {**CAPTIONS, "of another set": "unused"}, prompt=3, pooled=2)


def captioned(photographs: Path, store: TextStore) -> CaptionedPhotographs:
    data = DataConfig(
        train=str(photographs),
        texts=str(store.folder),
        crop_size=16,
        buckets=[[16, 16], [12, 24]],
    )
    opened = open_source(data, seed=SEED)
    assert isinstance(opened, CaptionedPhotographs)
    return opened


def key_of(sample: Sample) -> str:
    """By the photograph's grey, whatever the sample is named."""
    level = float(sample["hr"].mean() + 1) / 2 * 255
    return list(SHAPES)[round(level / 40) - 1]


def row_of(sample: Sample, store: TextStore) -> int:
    rows = [row for row in range(len(store)) if torch.equal(store.embeddings(row).prompt, sample["prompt_embeds"])]
    assert len(rows) == 1
    pooled = store.embeddings(rows[0]).pooled
    assert pooled is not None
    assert torch.equal(sample["pooled_prompt_embeds"], pooled)
    return rows[0]


def test_every_sample_has_its_own_photographs_text(photographs: Path, store: TextStore) -> None:
    samples = [captioned(photographs, store)[index] for index in range(30)]
    assert {key_of(sample) for sample in samples} == set(SHAPES)
    for sample in samples:
        assert store.caption(row_of(sample, store)) == CAPTIONS[key_of(sample)]


def test_images_are_those_without_texts(photographs: Path, store: TextStore) -> None:
    with_texts = captioned(photographs, store)
    without = RealISRDataset(sorted(photographs.rglob("*.png")), crop_size=16, buckets=[(16, 16), (12, 24)], seed=SEED)
    assert with_texts.buckets == without.buckets
    assert with_texts.bucket_sizes == without.bucket_sizes == [3, 2]
    assert len(with_texts) == len(without)
    for index in range(12):
        for key in ("hr", "lr", "lr_upsampled"):
            assert torch.equal(with_texts[index][key], without[index][key])
        place = (index % 2, 5 + index, index)
        assert torch.equal(with_texts.sample(*place)["lr"], without.sample(*place)["lr"])


def test_the_text_depends_on_seed_and_number_alone(photographs: Path, store: TextStore) -> None:
    opened = captioned(photographs, store)
    order = list(range(20))
    rows = {index: row_of(opened[index], store) for index in order}
    random.Random(0).shuffle(order)
    again = pickle.loads(pickle.dumps(captioned(photographs, store)))
    assert {index: row_of(again[index], store) for index in order} == rows


def test_bundled_photographs_are_known_by_their_names(tmp_path: Path) -> None:
    names = ["coffee", "china", "retina", "hubble_deep_field", "brick", "camera"]
    store = text_store(tmp_path, {name: name for name in names}, prompt=3)
    opened = open_source(DataConfig(texts=str(tmp_path)), seed=0)
    for index in range(6):
        sample = opened.sample(0, index, index)
        assert torch.equal(sample["prompt_embeds"], store.embeddings(store.row_of(sample["name"])).prompt)
        assert "pooled_prompt_embeds" not in sample


def test_photographs_without_a_text_are_named(photographs: Path, tmp_path: Path) -> None:
    few = {key: CAPTIONS[key] for key in ("a/tree", "sea", "road")}
    store = text_store(tmp_path, few, prompt=3, pooled=2)
    with pytest.raises(
        UserError, match=rf"data.texts: 2 of 5 photographs have no text in {tmp_path}: b/tree, c/field;"
    ):
        captioned(photographs, store)


def test_photographs_that_share_a_name_are_refused(tmp_path: Path) -> None:
    for name in ("x.png", "x.webp"):
        write_png(tmp_path / "photographs" / name, np.zeros((20, 20, 3), np.uint8))
    store = text_store(tmp_path / "texts", {"x": "one of them"}, prompt=3)
    with pytest.raises(UserError, match=r"x.png and .*x.webp differ by their suffix alone"):
        open_source(DataConfig(train=str(tmp_path / "photographs"), texts=str(store.folder), crop_size=16), seed=0)


def test_texts_that_are_not_there_cannot_be_dropped(photographs: Path, tmp_path: Path) -> None:
    data = DataConfig(train=str(photographs), crop_size=16, null_text_probability=0.2)
    with pytest.raises(ConfigError, match=r"data.null_text_probability=0.2, but neither data.texts nor the shards"):
        open_source(data, seed=0)
    with pytest.raises(UserError, match=r"nothing has no texts.json: it is no store of texts"):
        open_source(data.model_copy(update={"texts": str(tmp_path / "nothing")}), seed=0)
