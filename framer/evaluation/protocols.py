"""Which metrics a protocol measures, and under which ids: the one list of metrics there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from framer.errors import UserError
from framer.evaluation.metrics import (
    PSNR_ID,
    PSNR_Y_ID,
    SSIM_ID,
    SSIM_WINDOW,
    SSIM_Y_ID,
    psnr_8bit,
    psnr_y_8bit,
    ssim_8bit,
    ssim_y_8bit,
)
from framer.evaluation.niqe import MIN_PATCHES, NIQE_ID, PATCH, niqe, patches_of

Picture: TypeAlias = NDArray[np.uint8]
"""RGB picture ``uint8 [H, W, 3]``, as a file holds it."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that pictures are judged by.

    Attributes:
        name: What the user calls it; in the learned ones also its name in pyiqa.
        label: Heading in tables, with the unit.
        id: What exactly is computed; holds for whole pictures, see :func:`metric_id`.
        library: The distribution that computes it; empty for this package's own.
        higher_is_better: The direction.
        needs_reference: Whether it compares with an original.
        decimals: Decimals in tables.
    """

    name: str
    label: str
    id: str
    library: str
    higher_is_better: bool
    needs_reference: bool
    decimals: int


@dataclass(frozen=True, kw_only=True)
class BuiltIn(Metric):
    """A metric that needs no learned weights.

    Attributes:
        measure: Called with the picture and its original, or with the picture alone.
        too_small: Says why a picture of that height and width cannot be measured; empty where it can.
    """

    measure: Callable[..., float]
    too_small: Callable[[int, int], str]


@dataclass(frozen=True)
class Weights:
    """A file that a learned metric reads.

    Attributes:
        store: Whose cache it lies in.
        file: Its name there.
    """

    store: Literal["pyiqa", "torchvision", "clip", "huggingface"]
    file: str


@dataclass(frozen=True, kw_only=True)
class Learned(Metric):
    """A metric of the optional library pyiqa.

    Attributes:
        weights: The files it reads.
        of_sets: Whether it compares the whole folder with the originals and has no value for a picture.
    """

    weights: tuple[Weights, ...]
    of_sets: bool = False


def _never(height: int, width: int) -> str:
    return ""


def _ssim_too_small(height: int, width: int) -> str:
    return "" if min(height, width) >= SSIM_WINDOW else f"a side is below the window's {SSIM_WINDOW} px"


def _niqe_too_small(height: int, width: int) -> str:
    return "" if patches_of(height, width) >= MIN_PATCHES else f"it has fewer than {MIN_PATCHES} patches of {PATCH} px"


def _built_in(
    name: Literal["psnr", "ssim"], metric_id: str, measure: Callable[[Picture, Picture], float], *, luma: bool
) -> BuiltIn:
    channel = "Y" if luma else "RGB"
    return BuiltIn(
        name=name,
        label=f"PSNR {channel} (dB)" if name == "psnr" else f"SSIM {channel}",
        id=metric_id,
        library="scikit-image",
        higher_is_better=True,
        needs_reference=True,
        decimals=2 if name == "psnr" else 4,
        measure=measure,
        too_small=_never if name == "psnr" else _ssim_too_small,
    )


_NIQE: Final = BuiltIn(
    name="niqe",
    label="NIQE",
    id=NIQE_ID,
    library="",
    higher_is_better=False,
    needs_reference=False,
    decimals=4,
    measure=niqe,
    too_small=_niqe_too_small,
)

_VGG16: Final = Weights("torchvision", "vgg16-397923af.pth")
_VIT: Final = Weights("huggingface", "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k")


def _learned(
    name: str,
    label: str,
    what: str,
    *weights: Weights,
    higher_is_better: bool,
    needs_reference: bool,
    of_sets: bool = False,
) -> Learned:
    files = ", ".join(file.file for file in weights)
    return Learned(
        name=name,
        label=label,
        id=f"{name} (pyiqa's '{name}' with default settings: {what}; 8-bit RGB in [0, 1], whole crop; weights {files})",
        library="pyiqa",
        higher_is_better=higher_is_better,
        needs_reference=needs_reference,
        decimals=4,
        weights=weights,
        of_sets=of_sets,
    )


_LPIPS: Final = _learned(
    "lpips",
    "LPIPS",
    "AlexNet, version 0.1",
    Weights("torchvision", "alexnet-owt-7be5be79.pth"),
    Weights("pyiqa", "LPIPS_v0.1_alex-df73285e.pth"),
    higher_is_better=False,
    needs_reference=True,
)
_DISTS: Final = _learned(
    "dists",
    "DISTS",
    "VGG16",
    _VGG16,
    Weights("pyiqa", "DISTS_weights-f5e65c96.pth"),
    higher_is_better=False,
    needs_reference=True,
)
_CLIPIQA: Final = _learned(
    "clipiqa", "CLIPIQA", "CLIP RN50", Weights("clip", "RN50.pt"), higher_is_better=True, needs_reference=False
)
_MUSIQ: Final = _learned(
    "musiq",
    "MUSIQ",
    "KonIQ-10k",
    Weights("pyiqa", "musiq_koniq_ckpt-e95806b9.pth"),
    higher_is_better=True,
    needs_reference=False,
)
_MANIQA: Final = _learned(
    "maniqa",
    "MANIQA (KonIQ)",
    "KonIQ-10k",
    _VIT,
    Weights("pyiqa", "ckpt_koniq10k.pt"),
    higher_is_better=True,
    needs_reference=False,
)
_MANIQA_PIPAL: Final = _learned(
    "maniqa-pipal",
    "MANIQA (PIPAL)",
    "PIPAL",
    _VIT,
    Weights("pyiqa", "MANIQA_PIPAL-ae6d356b.pth"),
    higher_is_better=True,
    needs_reference=False,
)
_FID: Final = _learned(
    "fid",
    "FID",
    "Inception v3, 2048 features, mode clean",
    Weights("pyiqa", "pt_inception-2015-12-05-6726825d.pth"),
    higher_is_better=False,
    needs_reference=True,
    of_sets=True,
)

PROTOCOLS: Final[dict[str, tuple[Metric, ...]]] = {
    "framer": (
        _built_in("psnr", PSNR_ID, psnr_8bit, luma=False),
        _built_in("ssim", SSIM_ID, ssim_8bit, luma=False),
        _LPIPS,
        _NIQE,
        _MANIQA,
        _MUSIQ,
    ),
    "osediff": (
        _built_in("psnr", PSNR_Y_ID, psnr_y_8bit, luma=True),
        _built_in("ssim", SSIM_Y_ID, ssim_y_8bit, luma=True),
        _LPIPS,
        _DISTS,
        _CLIPIQA,
        _NIQE,
        _MUSIQ,
        _MANIQA_PIPAL,
        _FID,
    ),
}
"""The metrics of each protocol, in the order of its table: FRAMER's paper's, and that of OSEDiff's test script."""


def choose_metrics(protocol: str, names: Sequence[str] | None = None) -> tuple[Metric, ...]:
    """The metrics to measure.

    Args:
        protocol: A key of :data:`PROTOCOLS`.
        names: Some of the protocol's metrics; by default all.

    Returns:
        The metrics, each once, in the protocol's order.

    Raises:
        UserError: A name is none of the protocol's; the message lists them.
    """
    metrics = PROTOCOLS[protocol]
    if names is None:
        return metrics
    known = [metric.name for metric in metrics]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"protocol {protocol} has no metric {', '.join(unknown)}; it has {', '.join(known)}")
    return tuple(metric for metric in metrics if metric.name in names)


def metric_id(metric: Metric, *, border: int) -> str:
    """The metric's id where ``border`` pixels of each side are cut off every picture before anything is measured."""
    return metric.id if border == 0 else f"{metric.id}, after a border of {border} px is cut off"
