from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest

from framer.data import photographs
from framer.data.images import read_image
from framer.data.photographs import BUNDLED, Split, bundled_photographs
from framer.errors import MissingExtraError, UserError

DOCS = Path(__file__).parents[3] / "docs" / "data.md"


def test_every_photograph_is_installed_and_large_enough_to_crop() -> None:
    paths = [path for split in get_args(Split) for path in bundled_photographs(split)]
    assert len(paths) == len(BUNDLED)
    for path in paths:
        assert min(read_image(path).shape[:2]) >= 256


def test_names_are_unique_and_are_the_files() -> None:
    assert len({photograph.name for photograph in BUNDLED}) == len(BUNDLED)
    for photograph in BUNDLED:
        assert Path(photograph.file).stem == photograph.name


def test_licences_are_free() -> None:
    assert {photograph.licence for photograph in BUNDLED} <= {"CC0-1.0", "CC-BY-2.0", "public domain"}
    assert all(photograph.credit and photograph.source for photograph in BUNDLED)


def test_heldout_are_the_four_colour_photographs() -> None:
    names = [photograph.name for photograph in BUNDLED if photograph.split == "heldout"]
    assert names == ["astronaut", "chelsea", "flower", "grace_hopper"]


def test_no_picture_is_in_two_splits() -> None:
    digests: dict[str, str] = {}
    thumbnails: list[np.ndarray] = []
    for split in get_args(Split):
        for path in bundled_photographs(split):
            image = read_image(path)
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            assert digest not in digests, f"{path} equals {digests[digest]}"
            digests[digest] = str(path)
            thumbnail = cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).astype(float)
            thumbnails.append((thumbnail - thumbnail.mean()) / thumbnail.std())
    # Not even as another encoding or size of the same picture.
    vectors = np.stack([thumbnail.ravel() for thumbnail in thumbnails])
    correlations = vectors @ vectors.T / vectors.shape[1] - np.eye(len(vectors))
    assert correlations.max() < 0.9


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="unknown split 'test'; expected one of train, validation, heldout"):
        bundled_photographs("test")  # type: ignore[arg-type]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"coffee comes with skimage.*-e '\.\[train\]"):
        bundled_photographs("train")


def test_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = dataclasses.replace(BUNDLED[0], file="data/gone.png")
    monkeypatch.setattr(photographs, "BUNDLED", (gone,))
    with pytest.raises(UserError, match=r"coffee is missing from the installed skimage: no file .*gone\.png"):
        bundled_photographs("train")


def test_the_documentation_lists_every_photograph() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    for photograph in BUNDLED:
        expected = [
            photograph.name,
            f"`{photograph.package}/{photograph.file}`",
            photograph.licence,
            photograph.credit,
            photograph.source,
            photograph.split,
        ]
        assert expected in rows, f"docs/data.md lacks the row {expected}"
