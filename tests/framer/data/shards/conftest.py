from __future__ import annotations

from pathlib import Path

import pytest
from shard_cases import dataset_of, make_shards, photographs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photographs(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def shards(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "out"
    make_shards(dataset_of(photos), folder)
    return folder
