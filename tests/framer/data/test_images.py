from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from framer.data.images import ImageError, find_images, read_image, resize_bicubic, write_png
from framer.errors import UserError


def _noise(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_png_round_trip_is_exact_and_leaves_no_partial_file(tmp_path: Path) -> None:
    image = _noise()
    write_png(tmp_path / "new" / "a.png", image)
    write_png(tmp_path / "new" / "a.png", image[::-1])
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), image[::-1])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_png(path, _noise())

    def fail(self: Image.Image, file: object, format: str) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_png(path, _noise(seed=1))
    assert np.array_equal(read_image(path), _noise())
    assert list(tmp_path.iterdir()) == [path]


def test_write_png_refuses_floats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.png: expected a uint8 \[H, W, 3\] image, got float32 \[4, 4, 3\]"):
        write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.float32))


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    grey = _noise()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))


def test_bilevel_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(_noise()[..., 0] > 127).save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = (200, 10, 30)
    Image.fromarray(image).quantize(4).save(tmp_path / "palette.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    assert np.array_equal(read_image(tmp_path / "palette.png"), image)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new(mode, (3, 1))
    colour = (100, 100, 100) if mode == "RGBA" else (100,)
    for x, alpha in enumerate((0, 51, 255)):
        picture.putpixel((x, 0), (*colour, alpha))
    picture.save(tmp_path / "alpha.png")
    values = read_image(tmp_path / "alpha.png")[0, :, 0]
    # alpha 51/255 = 0.2: 0.2 * 100 + 0.8 * 255 = 224
    assert values.tolist() == [255, 224, 100]


def test_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "palette.png", transparency=0)
    assert read_image(tmp_path / "palette.png")[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 257, 128 * 257, 255 * 257]], np.uint16)
    assert cv2.imwrite(str(tmp_path / f"deep.{suffix}"), levels)
    assert read_image(tmp_path / f"deep.{suffix}")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_rgb_is_scaled(tmp_path: Path) -> None:
    image = _noise()
    deep = image.astype(np.uint16) * 257
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    assert np.array_equal(read_image(tmp_path / "deep.png"), image)


def _deep(channels: int) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 65536, (24, 32, channels), dtype=np.uint16)


def _write_deep(path: Path, samples: np.ndarray) -> None:
    assert cv2.imwrite(str(path), samples[..., [2, 1, 0, 3][: samples.shape[2]]])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_colours_are_rounded_not_cut(tmp_path: Path, suffix: str) -> None:
    _write_deep(tmp_path / f"deep.{suffix}", _deep(3))
    expected = np.rint(_deep(3) / 257)
    assert np.array_equal(read_image(tmp_path / f"deep.{suffix}"), expected)
    assert (expected != _deep(3) >> 8).mean() > 0.2


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_transparency_is_laid_over_white_before_rounding(tmp_path: Path, suffix: str) -> None:
    samples = _deep(4)
    samples[0, :3, 3] = (0, 32768, 65535)
    _write_deep(tmp_path / f"deep.{suffix}", samples)
    colour, alpha = samples[..., :3] / 65535, samples[..., 3:] / 65535
    expected = np.rint(255 * (colour * alpha + 1 - alpha))
    read = read_image(tmp_path / f"deep.{suffix}")
    assert np.array_equal(read, expected)
    assert read[0, 0].tolist() == [255, 255, 255]


def _png(samples: np.ndarray, kind: int, chunk: bytes = b"", content: bytes = b"") -> bytes:
    """A 16-bit PNG with one more chunk."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (chunk, content)]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
        if name
    )


def test_sixteen_bit_grey_with_alpha_is_rounded(tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(_png(_deep(2), 4))
    grey, alpha = (_deep(2) / 65535).transpose(2, 0, 1)
    read = read_image(tmp_path / "deep.png")
    assert np.array_equal(read, np.rint(255 * (grey * alpha + 1 - alpha))[..., None].repeat(3, axis=2))


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3)])
def test_the_transparent_colour_of_a_sixteen_bit_png_is_white(tmp_path: Path, kind: int, channels: int) -> None:
    samples = _deep(channels)
    key = samples[1, 2].astype(">u2").tobytes()
    (tmp_path / "deep.png").write_bytes(_png(samples, kind, b"tRNS", key))
    expected = np.rint(samples / 257).repeat(3 // channels, axis=2)
    expected[1, 2] = 255
    assert np.array_equal(read_image(tmp_path / "deep.png"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_colours_are_turned_as_eight_bit_ones(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    (tmp_path / "deep.png").write_bytes(_png(_noise().astype(np.uint16) * 257, 2, b"eXIf", block))
    Image.fromarray(_noise()).save(tmp_path / "plain.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "deep.png"), read_image(tmp_path / "plain.png"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_tiffs_are_turned_as_eight_bit_ones(tmp_path: Path, orientation: int) -> None:
    Image.fromarray(_noise()).save(tmp_path / "plain.tif", tiffinfo={274: orientation})
    (tmp_path / "deep.tif").write_bytes(_tiff(_noise().astype(np.uint16) * 257, orientation))
    assert np.array_equal(read_image(tmp_path / "deep.tif"), read_image(tmp_path / "plain.tif"))


def test_sixteen_bit_tiffs_whose_channels_lie_apart_are_refused(tmp_path: Path) -> None:
    (tmp_path / "together.tif").write_bytes(_tiff(_deep(3), 1))
    assert np.array_equal(read_image(tmp_path / "together.tif"), np.rint(_deep(3) / 257))
    (tmp_path / "apart.tif").write_bytes(_tiff(_deep(3), 1, planar=True))
    with pytest.raises(ImageError, match=r"apart\.tif: cannot be read: its channels of 16 bits .* convert it"):
        read_image(tmp_path / "apart.tif")


def _tiff(samples: np.ndarray, orientation: int, *, planar: bool = False) -> bytes:
    """An uncompressed TIFF of three channels with 16 bits; ``planar``: one channel after the other."""
    height, width, channels = samples.shape
    strips, size = (channels, samples.nbytes // channels) if planar else (1, samples.nbytes)
    tags = {256: [width], 257: [height], 258: [16] * channels, 259: [1], 262: [2], 274: [orientation], 277: [channels]}
    tags |= {278: [height], 279: [size] * strips, 284: [2 if planar else 1]}
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    data = start + 4 * channels * 3  # room for the values that do not fit into their tag
    tags[273] = [data + number * size for number in range(strips)]
    entries, room = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        fits = len(values) == 1
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += packed if fits else struct.pack("<I", start + len(room))
        room += b"" if fits else packed
    pixels = (samples.transpose(2, 0, 1) if planar else samples).astype("<u2").tobytes()
    header = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return header + entries + struct.pack("<I", 0) + room.ljust(data - start, b"\0") + pixels


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_truncated_sixteen_bit_colours_are_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"deep.{suffix}"
    _write_deep(path, _deep(3))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ImageError, match=rf"deep\.{suffix}: "):
        read_image(path)


def test_eight_bit_files_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded by OpenCV too"))
    for suffix in ("png", "jpg", "tif", "webp", "bmp"):
        Image.fromarray(_noise()).save(tmp_path / f"a.{suffix}")
        assert read_image(tmp_path / f"a.{suffix}").shape == (24, 32, 3)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 255
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise: left becomes top
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = read_image(tmp_path / "turned.jpg")
    assert turned.shape == (32, 16, 3)
    assert turned[:14].mean() > 250
    assert turned[18:].mean() < 5


def test_cmyk_jpeg_is_read(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "print.jpg").mean(axis=(0, 1))
    assert red > 240
    assert green < 20
    assert blue < 20


def test_float_samples_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"float\.tif: 32-bit samples .* convert the file to 8 or 16 bits"):
        read_image(tmp_path / "float.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
def test_truncated_files_name_the_file(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"whole.{suffix}"
    Image.fromarray(_noise(64, 64)).save(path)
    data = path.read_bytes()
    broken = tmp_path / f"broken.{suffix}"
    broken.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=rf"broken\.{suffix}: ") as caught:
        read_image(broken)
    assert isinstance(caught.value, UserError)


def test_empty_text_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("this is not an image")
    with pytest.raises(ImageError, match=r"empty\.jpg: the file is empty \(0 bytes\)"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match=r"text\.png: not an image in a known format"):
        read_image(tmp_path / "text.png")
    with pytest.raises(ImageError, match=r"gone\.png: cannot be read: No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="cannot be read: Is a directory"):
        read_image(tmp_path)


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)))
    with pytest.raises(ImageError, match=r"bomb\.png: too many pixels to open safely"):
        read_image(path)


def test_find_images_is_recursive_sorted_and_blind_to_case_and_hidden_files(tmp_path: Path) -> None:
    wanted = ["B.PNG", "a.jpg", "sub/c.JpEg", "sub/deeper/d.tiff", "z.webp", "y.bmp", "x.TIF"]
    for name in [*wanted, ".hidden.png", ".cache/e.png", "notes.txt", "sub/png", "._a.jpg"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == sorted(tmp_path / name for name in wanted)
    assert find_images(str(tmp_path)) == find_images(tmp_path)


def test_find_images_follows_links_once(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    (photos / "sub" / "a.png").touch()
    (photos / "sub" / "loop").symlink_to(photos)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.png").touch()
    (photos / "link").symlink_to(elsewhere)
    assert find_images(photos) == [photos / "link" / "b.png", photos / "sub" / "a.png"]


def test_find_images_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image folder .*missing does not exist"):
        find_images(tmp_path / "missing")
    with pytest.raises(UserError, match=r"image folder .* holds no image \(looked for \.bmp \.jpeg \.jpg"):
        find_images(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"a\.png is not a folder"):
        find_images(tmp_path / "a.png")


def test_bicubic_weights_are_those_of_keys() -> None:
    # An impulse doubled in size: the Keys kernel with a = -0.5 at distances 0.25, 0.75, 1.25, 1.75.
    impulse = np.zeros((9, 9, 1), np.float32)
    impulse[4, 4] = 1.0
    row = resize_bicubic(impulse, (18, 18))[:, :, 0].sum(axis=0)[5:13]

    def keys(distance: float) -> float:
        a = -0.5
        if distance < 1:
            return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a

    half = [keys(distance) for distance in (1.75, 1.25, 0.75, 0.25)]
    np.testing.assert_allclose(row, 2 * np.array(half + half[::-1]), atol=1e-5)


def test_bicubic_shrinking_is_antialiased_and_keeps_channels_apart() -> None:
    stripes = np.zeros((64, 64, 2), np.float32)
    stripes[:, ::2, 0] = 1.0
    stripes[:, :, 1] = 0.25
    small = resize_bicubic(stripes, (16, 16))
    assert small.dtype == np.float32
    np.testing.assert_allclose(small[:, 2:-2, 0], 0.5, atol=0.01)
    np.testing.assert_allclose(small[..., 1], 0.25, atol=1e-6)


def test_bicubic_takes_height_before_width() -> None:
    assert resize_bicubic(np.zeros((8, 4, 3), np.float32), (6, 2)).shape == (6, 2, 3)


@pytest.mark.parametrize("size", [(0, 4), (4, -1)])
def test_bicubic_refuses_empty_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected a positive size"):
        resize_bicubic(np.zeros((8, 8, 3), np.float32), size)


def test_bicubic_refuses_bytes() -> None:
    with pytest.raises(ValueError, match=r"expected a float32 \[H, W, C\] image, got uint8"):
        resize_bicubic(np.zeros((8, 8, 3), np.uint8), (4, 4))  # type: ignore[arg-type]
