"""Damaged manifests: told with the file's name, or without effect; never another exception, never other pairs."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from shard_cases import contents, dataset_of, make_shards

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.data.samples import Sample
from framer.data.shards.manifest import MANIFEST_FILE, UNFINISHED_FILE
from framer.data.sources import open_source, with_shard_settings
from framer.errors import UserError

Result = TypeVar("Result")
MUTATIONS = ("byte", "truncated", "deleted", "swapped", "type", "white space")
COUNT, UNFINISHED = 240, 30
WRONG: list[Any] = [None, True, -1, 0, 1.5, 10**30, "", "x", "\x00", [], {}, [[]], "000000.tar", "../000000.tar"]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a JSON document is, but for the whole."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in items for place in [(*path, key), *_places(child, (*path, key))]]


def _holder(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        document = document[key]
    return document


def _mutated(data: bytes, mutation: str, rng: np.random.Generator) -> bytes:
    if mutation == "byte":
        content = bytearray(data)
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        return bytes(content)
    if mutation == "truncated":
        return data[: int(rng.integers(len(data)))]
    document = json.loads(data)
    if mutation == "white space":
        return json.dumps(document, indent=int(rng.integers(5))).encode()
    places = _places(document)
    if mutation == "swapped":
        numbers = [place for place in places if type(_holder(document, place)[place[-1]]) is int]
        values = {place: _holder(document, place)[place[-1]] for place in numbers}
        first = numbers[int(rng.integers(len(numbers)))]
        others = [place for place in numbers if values[place] != values[first]]
        second = others[int(rng.integers(len(others)))]
        _holder(document, first)[first[-1]], _holder(document, second)[second[-1]] = values[second], values[first]
    else:
        place = places[int(rng.integers(len(places)))]
        if mutation == "deleted":
            del _holder(document, place)[place[-1]]
        else:
            _holder(document, place)[place[-1]] = copy.deepcopy(WRONG[int(rng.integers(len(WRONG)))])
    return json.dumps(document, indent=2).encode()


def _trained_on(folder: Path) -> list[Sample]:
    config = build_config(TrainConfig, {"output_dir": "x", "data": {"train": str(folder)}}, source="test")
    config = with_shard_settings(config)
    source = open_source(config.data, seed=0)
    return [source.sample(bucket, place, place) for bucket in range(len(source.buckets)) for place in range(2)]


def _message_of(call: Callable[[], Result]) -> tuple[Result | None, str]:
    """What a call gives, or the message of its UserError; other errors are not caught."""
    try:
        return call(), ""
    except UserError as error:
        return None, str(error)


def _equal(found: list[Sample], expected: list[Sample]) -> bool:
    return len(found) == len(expected) and all(
        a["name"] == b["name"] and torch.equal(a["hr"], b["hr"]) and torch.equal(a["lr"], b["lr"])
        for a, b in zip(found, expected, strict=True)
    )


def test_mutated_manifests(photos: list[Path], shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    written, expected, dataset = contents(folder), _trained_on(folder), dataset_of(photos)
    path = folder / MANIFEST_FILE
    rng = np.random.default_rng(7)
    told = dict.fromkeys(MUTATIONS, 0)
    for number in range(COUNT):
        mutation = MUTATIONS[number % len(MUTATIONS)]
        path.write_bytes(_mutated(written[MANIFEST_FILE], mutation, rng))
        found, message = _message_of(lambda: _trained_on(folder))
        assert str(path) in message if found is None else _equal(found, expected)
        told[mutation] += found is None
        manifest, message = _message_of(lambda: make_shards(dataset, folder))
        assert str(path) in message if manifest is None else contents(folder) == written
        # Neither touched the shards.
        assert {name: data for name, data in contents(folder).items() if name != MANIFEST_FILE} == {
            name: data for name, data in written.items() if name != MANIFEST_FILE
        }
    each = COUNT // len(MUTATIONS)
    assert told["white space"] == 0
    assert all(told[mutation] == each for mutation in ("truncated", "deleted", "swapped"))
    assert told["type"] >= each - each // 3  # null can take the place of null
    assert told["byte"] >= each // 2


def test_mutated_manifests_of_what_is_unfinished(photos: list[Path], shards: Path, tmp_path: Path) -> None:
    written, dataset, rng = contents(shards), dataset_of(photos), np.random.default_rng(8)
    for number in range(UNFINISHED):
        folder = shutil.copytree(shards, tmp_path / str(number))
        path = folder / UNFINISHED_FILE
        (folder / MANIFEST_FILE).unlink()
        path.write_bytes(_mutated(written[MANIFEST_FILE], MUTATIONS[number % len(MUTATIONS)], rng))
        with pytest.raises(UserError, match=f"{folder} has no {MANIFEST_FILE}: its shards are not finished"):
            _trained_on(folder)
        manifest, message = _message_of(lambda folder=folder: make_shards(dataset, folder))  # type: ignore[misc]
        assert str(path) in message if manifest is None else contents(folder) == written
