from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from framer.data.augmentation import recolour
from framer.data.dataset import RealISRDataset
from framer.data.images import write_png
from framer.data.photographs import bundled_photographs
from framer.errors import UserError


def _gradient(path: Path) -> Path:
    """A photograph whose red grows to the right and whose green grows downwards."""
    ramp = np.linspace(0, 255, 96)
    image = np.stack([np.tile(ramp, (96, 1)), np.tile(ramp[:, None], (1, 96)), np.full((96, 96), 80.0)], axis=-1)
    write_png(path, np.rint(image).astype(np.uint8))
    return path


def _slopes(image: torch.Tensor) -> tuple[int, int]:
    """Signs of the mean slope of a ``[H, W]`` image downwards and to the right, 0 where it is flat."""
    down, right = image.diff(dim=0).mean().item(), image.diff(dim=1).mean().item()
    return tuple(0 if abs(s) < 2e-3 else (1 if s > 0 else -1) for s in (down, right))  # type: ignore[return-value]


def test_all_eight_orientations_come_up_and_lr_turns_with_hr(tmp_path: Path) -> None:
    dataset = RealISRDataset([_gradient(tmp_path / "a.png")], crop_size=32, quarter_turns=True, margin=24)
    seen = set()
    for index in range(60):
        sample = dataset[index]
        red, green = _slopes(sample["hr"][0]), _slopes(sample["hr"][1])
        seen.add((red, green))
        # A turn or mirroring that LR did not follow would lose the likeness.
        hr, lr = (sample[key][:2].flatten() for key in ("hr", "lr_upsampled"))
        assert torch.corrcoef(torch.stack([hr, lr]))[0, 1] > 0.8, index
    assert len(seen) == 8


def test_margins_follow_the_turns(tmp_path: Path) -> None:
    """At the photograph's corner, where margins differ from side to side, the crop is the same part of it."""
    generator = np.random.default_rng(0)
    write_png(tmp_path / "a.png", generator.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    plain = RealISRDataset([tmp_path / "a.png"], crop_size=40, margin=8, horizontal_flip=False)
    turned = RealISRDataset([tmp_path / "a.png"], crop_size=40, margin=8, horizontal_flip=False, quarter_turns=True)
    matched = 0
    for index in range(40):
        hr, expected = turned[index]["hr"], plain[index]["hr"]
        matched += any(torch.equal(torch.rot90(expected, turns, (1, 2)), hr) for turns in range(4))
    assert matched == 40


def test_rescaled_photographs_are_smaller(tmp_path: Path) -> None:
    path = _gradient(tmp_path / "a.png")
    full = RealISRDataset([path], crop_size=32, horizontal_flip=False)
    half = RealISRDataset([path], crop_size=32, horizontal_flip=False, rescale=[0.5])
    slope = [float(data[i]["hr"][0].diff(dim=1).mean()) for data in (full, half) for i in range(1)]
    assert slope[1] == pytest.approx(2 * slope[0], rel=0.05)


def test_photograph_too_small_at_its_smallest_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png: 48x48 pixels, at 0\.5 of its size, are too few"):
        RealISRDataset([_gradient(tmp_path / "a.png")], crop_size=64, rescale=[1.0, 0.5])


@pytest.mark.parametrize("rescale", [[], [0.0], [1.5], [-1.0]])
def test_impossible_sizes(rescale: list[float]) -> None:
    with pytest.raises(ValueError, match="rescale"):
        RealISRDataset(bundled_photographs("train")[:1], crop_size=32, rescale=rescale)


def test_recolour_keeps_shapes_and_order_of_brightness() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    for seed in range(20):
        out = recolour(ramp, np.random.default_rng(seed))
        assert out.dtype == np.uint8
        assert out.shape == ramp.shape
        assert (np.ptp(out, axis=2) == 0).all()  # grey stays grey
        assert (np.diff(out[:, 0, 0].astype(int)) >= 0).all()
        assert 0.29 * 255 <= out.max() <= 255


def test_recolour_puts_every_channel_everywhere() -> None:
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    image[..., 0] = 200
    brightest = {int(recolour(image, np.random.default_rng(seed))[0, 0].argmax()) for seed in range(30)}
    assert brightest == {0, 1, 2}


def test_colour_jitter_is_part_of_the_seeded_sample() -> None:
    paths = bundled_photographs("train")[:1]
    first, second = (RealISRDataset(paths, crop_size=32, colour_jitter=True) for _ in range(2))
    plain = RealISRDataset(paths, crop_size=32)
    assert torch.equal(first[3]["hr"], second[3]["hr"])
    assert not torch.equal(first[3]["hr"], plain[3]["hr"])
