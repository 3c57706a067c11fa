"""The photographs that the `train` extra installs, inside the wheels of other projects.

Nothing is downloaded and nothing is copied into this package: the files are read where scikit-image,
scikit-learn and matplotlib put them. Only photographs whose licence is CC0, public domain or CC-BY are
listed, with the licence as those projects state it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from framer.errors import MissingExtraError, UserError
from framer.extras import how_to_install

Split = Literal["train", "validation", "heldout"]
"""What a photograph is for: `train` is learnt from, settings are chosen on `validation`, and `heldout` is
only ever measured on."""


@dataclass(frozen=True)
class Photograph:
    """One photograph of an installed package.

    Attributes:
        name: Short unique name, the stem of the file.
        package: Import name of the package that ships the file.
        file: Path of the file inside the package, with forward slashes.
        licence: `"CC0-1.0"`, `"CC-BY-2.0"` or `"public domain"`.
        credit: Who is to be credited.
        source: Where the licence is stated or the photograph was published.
        split: What the photograph is for; none is in two splits.
    """

    name: str
    package: str
    file: str
    licence: str
    credit: str
    source: str
    split: Split


def _scikit_image(file: str, licence: str, credit: str, source: str, split: Split) -> Photograph:
    return Photograph(Path(file).stem, "skimage", f"data/{file}", licence, credit, source, split)


def _scikit_learn(file: str, credit: str, source: str, split: Split) -> Photograph:
    return Photograph(Path(file).stem, "sklearn", f"datasets/images/{file}", "CC-BY-2.0", credit, source, split)


BUNDLED: tuple[Photograph, ...] = (
    _scikit_image("coffee.png", "CC0-1.0", "Rachel Michetti", "scikit-image, skimage.data.coffee", "train"),
    _scikit_learn("china.jpg", "danielbuechele", "https://www.flickr.com/photos/danielbuechele/6061409035/", "train"),
    _scikit_image(
        "retina.jpg",
        "CC0-1.0",
        "Mikael Häggström",
        "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        "train",
    ),
    _scikit_image(
        "hubble_deep_field.jpg",
        "public domain",
        "NASA",
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        "train",
    ),
    _scikit_image("brick.png", "CC0-1.0", "CC0Textures", "https://cc0textures.com/view.php?tex=Bricks25", "train"),
    _scikit_image(
        "camera.png",
        "CC0-1.0",
        "Lav Varshney",
        "https://github.com/scikit-image/scikit-image/issues/3927",
        "train",
    ),
    _scikit_image(
        "rocket.jpg",
        "public domain",
        "SpaceX",
        "https://www.flickr.com/photos/spacexphotos/16511594820/",
        "validation",
    ),
    _scikit_image("astronaut.png", "public domain", "NASA", "https://flic.kr/p/r9qvLn", "heldout"),
    _scikit_image("chelsea.png", "CC0-1.0", "Stefan van der Walt", "scikit-image, skimage.data.chelsea", "heldout"),
    _scikit_learn("flower.jpg", "vultilion", "https://www.flickr.com/photos/vultilion/6056698931/", "heldout"),
    Photograph(
        "grace_hopper",
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "public domain",
        "James S. Davis, U.S. Navy",
        "https://github.com/matplotlib/matplotlib/pull/1599",
        "heldout",
    ),
)
"""Every bundled photograph; docs/data.md shows the same list."""


def bundled_photographs(split: Split) -> list[Path]:
    """Finds the bundled photographs of one split on this machine.

    Args:
        split: `"train"`, `"validation"` or `"heldout"`.

    Returns:
        Their paths, in the order of `BUNDLED`.

    Raises:
        ValueError: There is no such split.
        MissingExtraError: A package that ships some of them is not installed.
        UserError: An installed package lacks its file.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(get_args(Split))}")
    return [_installed_path(photograph) for photograph in BUNDLED if photograph.split == split]


def _installed_path(photograph: Photograph) -> Path:
    # Found without importing: these packages are slow to import, and none of their code is needed.
    spec = importlib.util.find_spec(photograph.package)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            f"the photograph {photograph.name} comes with {photograph.package}, which is not installed; "
            f"{how_to_install('train')}"
        )
    path = Path(spec.origin).parent.joinpath(*photograph.file.split("/"))
    if not path.is_file():
        raise UserError(
            f"the photograph {photograph.name} is missing from the installed {photograph.package}: "
            f"no file {path}; reinstall the package from its wheel, or use photographs of your own"
        )
    return path
