"""What the resolved configuration says of a run's texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_stores import text_store

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.data.dataset import RealISRDataset
from framer.data.images import write_png
from framer.data.shards.stream_pairs import StreamPairs
from framer.data.shards.writer import write_shards
from framer.data.sources import null_text, text_folder, with_text_settings
from framer.data.texts.store import TextStore
from framer.errors import ConfigError, UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TextStore:
    return text_store(tmp_path_factory.mktemp("texts"), {"coffee": "a cup"}, prompt=3, tokens=6)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without texts."""
    photograph, folder = tmp_path_factory.mktemp("photographs") / "x.png", tmp_path_factory.mktemp("shards")
    write_png(photograph, np.zeros((16, 16, 3), np.uint8))
    pairs = StreamPairs(RealISRDataset([photograph], crop_size=16), samples=1)
    write_shards(pairs, folder, crop_size=16, shard_size=10_000, workers=0)
    return folder


def config_of(model: dict[str, Any] | None = None, **data: Any) -> TrainConfig:
    return build_config(TrainConfig, {"output_dir": "x", "data": data, "model": model or {}}, source="test")


def test_the_store_gives_tokens_and_fingerprint(store: TextStore) -> None:
    config = with_text_settings(config_of(texts=str(store.folder)))
    assert (config.model.text_tokens, config.data.texts_fingerprint) == (6, store.fingerprint)
    assert with_text_settings(config) == config
    given = config_of({"text_tokens": 6}, texts=str(store.folder), texts_fingerprint=store.fingerprint)
    assert with_text_settings(given) == config
    null = null_text(config.data)
    assert null is not None
    assert null.prompt.equal(store.embeddings(0).prompt)


def test_a_configuration_without_texts_stays_as_it_is(shards: Path) -> None:
    for config in (config_of(), config_of(train=str(shards))):
        assert with_text_settings(config) is config
        assert text_folder(config.data) is None
        assert null_text(config.data) is None


def test_what_contradicts_the_store_is_named(store: TextStore) -> None:
    config = config_of({"text_tokens": 77}, texts=str(store.folder), texts_fingerprint="0" * 64)
    with pytest.raises(ConfigError) as caught:
        with_text_settings(config)
    assert str(caught.value) == (
        f"{store.folder} contradicts the configuration: model.text_tokens=77 (the texts have 6); "
        f"data.texts_fingerprint={'0' * 64} (the texts have {store.fingerprint})"
    )


def test_a_fingerprint_of_nothing_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"data.texts_fingerprint is given, but data.texts is not; name the text store"
    ):
        with_text_settings(config_of(texts_fingerprint="0" * 64))


def test_a_folder_that_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no texts.json"):
        with_text_settings(config_of(texts=str(tmp_path)))


def test_shards_take_no_other_texts(shards: Path, store: TextStore) -> None:
    with pytest.raises(
        ConfigError, match=r"data.texts=.* but data.train=.* holds shards, whose texts are prepared with"
    ):
        with_text_settings(config_of(train=str(shards), texts=str(store.folder)))


@pytest.mark.parametrize("value", [-0.1, 1.5, "half", True])
def test_a_probability_is_from_0_to_1(value: object) -> None:
    with pytest.raises(ConfigError, match=r"data.null_text_probability"):
        config_of(null_text_probability=value)
