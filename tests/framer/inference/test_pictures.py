from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from framer.data.images import ImageError
from framer.errors import UserError
from framer.inference.pictures import Picture, encode_picture, read_picture, read_size

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ARTIST, EXIF_IFD, ORIENTATION = 0x013B, 0x8769, 0x0112


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def write_picture(path: Path, picture: Picture) -> list[str]:
    content, notes = encode_picture(picture, path.suffix)
    path.write_bytes(content)
    return notes


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_orientation_is_applied_as_pillow_does_and_the_tag_reset(
    orientation: int, suffix: str, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[ARTIST] = orientation, "Ada"
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(noise(6, 10, 3)).save(path, exif=exif)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    picture = read_picture(path)
    assert np.array_equal(np.rint(picture.colour * 255), expected)
    assert sorted(read_size(path)) == sorted(expected.shape[:2])
    again = tmp_path / f"again.{suffix}"
    assert write_picture(again, picture) == []
    with Image.open(again) as opened:
        assert opened.getexif().get(ORIENTATION, 1) == 1
        assert opened.getexif()[ARTIST] == "Ada"
        assert opened.size == expected.shape[1::-1]


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_sixteen_bits_are_kept_with_orientation_profile_and_exif(orientation: int, tmp_path: Path) -> None:
    samples = noise(5, 8, 3, dtype=np.uint16)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION], exif[ARTIST] = orientation, "Ada"
    Image.new("RGB", (1, 1)).save(file, format="PNG", exif=exif, icc_profile=PROFILE)
    donor, plain = file.getvalue(), cv2.imencode(".png", samples[..., ::-1])[1].tobytes()
    path = tmp_path / "deep.png"
    path.write_bytes(plain[:33] + b"".join(chunk(donor, name) for name in (b"iCCP", b"eXIf")) + plain[33:])
    picture = read_picture(path)
    expected = {1: samples, 6: np.rot90(samples, -1), 7: np.rot90(samples, 2).swapaxes(0, 1)}[orientation]
    assert picture.bits == 16
    assert np.array_equal(np.rint(picture.colour * 65535).astype(np.uint16), expected)
    again = tmp_path / "again.png"
    assert write_picture(again, picture) == []
    assert np.array_equal(cv2.imread(str(again), cv2.IMREAD_UNCHANGED)[..., ::-1], expected)
    with Image.open(again) as opened:
        opened.load()
        assert opened.info["icc_profile"] == PROFILE
        assert opened.getexif()[ARTIST] == "Ada"
        assert opened.getexif().get(ORIENTATION, 1) == 1


def chunk(png: bytes, name: bytes) -> bytes:
    """A PNG file's chunk of this name, whole."""
    at = png.index(name) - 4
    return png[at : at + 12 + struct.unpack(">I", png[at : at + 4])[0]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_colour_and_transparency_return_as_they_were(channels: int, dtype: type, tmp_path: Path) -> None:
    samples = noise(7, 9, channels, dtype=dtype)
    colour = samples[..., :1].repeat(3, 2) if channels < 3 else samples[..., :3]
    largest = np.float32(np.iinfo(dtype).max)
    picture = Picture(
        colour=colour.astype(np.float32) / largest,
        alpha=samples[..., -1].astype(np.float32) / largest if channels in (2, 4) else None,
        grey=channels < 3,
        bits=16 if dtype is np.uint16 else 8,
    )
    write_picture(tmp_path / "a.png", picture)
    again = read_picture(tmp_path / "a.png")
    assert (again.grey, again.bits) == (picture.grey, picture.bits)
    assert np.array_equal(again.colour, picture.colour)
    if picture.alpha is None:
        assert again.alpha is None
    else:
        assert again.alpha is not None
        assert np.array_equal(again.alpha, picture.alpha)


def test_a_sixteen_bit_png_is_what_opencv_reads(tmp_path: Path) -> None:
    samples = noise(40, 30, 3, dtype=np.uint16)
    write_picture(tmp_path / "a.png", Picture(samples.astype(np.float32) / 65535, bits=16))
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)[..., ::-1], samples)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_profile_is_kept(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(8, 8, 3)).save(path, icc_profile=PROFILE)
    picture = read_picture(path)
    write_picture(tmp_path / f"b.{suffix}", picture)
    with Image.open(tmp_path / f"b.{suffix}") as opened:
        assert opened.info["icc_profile"] == PROFILE


def test_the_size_in_exif_is_the_new_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[0xA002] = 8
    exif.get_ifd(EXIF_IFD)[0xA003] = 6
    Image.fromarray(noise(6, 8, 3)).save(tmp_path / "a.jpg", exif=exif)
    picture = read_picture(tmp_path / "a.jpg")
    write_picture(tmp_path / "b.jpg", Picture(np.zeros((24, 32, 3), np.float32), exif=picture.exif))
    with Image.open(tmp_path / "b.jpg") as opened:
        within = opened.getexif().get_ifd(EXIF_IFD)
        assert (within[0xA002], within[0xA003]) == (32, 24)


def test_palettes_become_rgb_and_their_transparency_alpha(tmp_path: Path) -> None:
    image = Image.fromarray(noise(4, 4, 3) // 128 * 255).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=image.getpixel((1, 2)))
    plain, clear = read_picture(tmp_path / "plain.png"), read_picture(tmp_path / "clear.png")
    assert plain.alpha is None
    assert not plain.grey
    assert np.array_equal(np.rint(plain.colour * 255), np.asarray(image.convert("RGB")))
    assert clear.alpha is not None
    assert clear.alpha[2, 1] == 0
    assert clear.alpha.max() == 1


def test_one_bit_images_are_grey(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8) > 127).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.grey
    assert set(np.unique(picture.colour)) == {0.0, 1.0}


def test_cmyk_is_converted_and_said(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 4), mode="CMYK").save(tmp_path / "a.jpg", icc_profile=PROFILE)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.colour.shape == (8, 8, 3)
    assert picture.profile is None
    assert picture.notes == ["CMYK is converted to RGB", "the colour profile of CMYK is left out"]


def test_of_an_animation_the_first_frame_is_taken_and_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, 3, seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(np.rint(picture.colour * 255), np.asarray(frames[0]))
    assert picture.notes == ["the first of 3 frames is taken"]


@pytest.mark.parametrize(
    ("suffix", "says"),
    [
        ("jpg", ["JPEG has no transparency: it is laid over white", "16-bit samples become 8-bit ones in JPEG"]),
        ("bmp", ["BMP has no transparency", "BMP has no room for colour profile and EXIF", "16-bit samples become"]),
        ("tif", ["16-bit samples become 8-bit ones in TIFF; PNG keeps them"]),
        ("png", []),
    ],
)
def test_what_a_format_cannot_hold_is_said(suffix: str, says: list[str], tmp_path: Path) -> None:
    picture = Picture(np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.float32), bits=16, profile=PROFILE)
    notes = write_picture(tmp_path / f"a.{suffix}", picture)
    assert len(notes) == len(says)
    assert all(note.startswith(start) for note, start in zip(notes, says, strict=True))
    if suffix in ("jpg", "bmp"):
        with Image.open(tmp_path / f"a.{suffix}") as opened:
            assert opened.convert("RGB").getpixel((3, 3)) == (255, 255, 255)


def test_jpeg_is_written_at_quality_95(tmp_path: Path) -> None:
    picture = Picture(noise(32, 32, 3).astype(np.float32) / 255)
    write_picture(tmp_path / "a.jpg", picture)
    with Image.open(tmp_path / "a.jpg") as written:
        tables = written.quantization  # type: ignore[attr-defined]
    Image.fromarray(noise(32, 32, 3)).save(tmp_path / "b.jpg", quality=95)
    with Image.open(tmp_path / "b.jpg") as expected:
        assert tables == expected.quantization  # type: ignore[attr-defined]


@pytest.mark.parametrize(("suffix", "side"), [("jpg", 65501), ("webp", 16384)])
def test_a_size_that_the_format_cannot_hold(suffix: str, side: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{side}x1 pixels are more than \w+ can hold \({side - 1} a side\)"):
        write_picture(tmp_path / f"a.{suffix}", Picture(np.zeros((1, side, 3), np.float32)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", r"a\.png: the file is empty"), (b"no image at all", r"a\.png: not an image in a known format")],
)
def test_files_that_are_no_images(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_picture, read_size):
        with pytest.raises(ImageError, match=says):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_truncated_files(dtype: type, tmp_path: Path) -> None:
    whole = cv2.imencode(".png", noise(64, 64, 3, dtype=dtype))[1].tobytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"a\.png"):
        read_picture(tmp_path / "a.png")


def test_floats_have_no_known_range(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="32-bit samples"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_tiffs_are_read_in_full(channels: int, tmp_path: Path) -> None:
    samples = noise(6, 7, channels, dtype=np.uint16)
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    assert cv2.imwrite(str(tmp_path / "a.tif"), samples[..., order])
    picture = read_picture(tmp_path / "a.tif")
    assert picture.bits == 16
    colours = 3 if channels > 1 else 1
    assert np.array_equal(np.rint(picture.colour[..., :colours] * 65535), samples[..., :colours])
    assert (picture.alpha is not None) == (channels == 4)


def test_a_grey_value_that_means_transparent(tmp_path: Path) -> None:
    samples = noise(6, 7)
    Image.fromarray(samples).save(tmp_path / "a.png", transparency=int(samples[2, 3]))
    picture = read_picture(tmp_path / "a.png")
    assert picture.grey
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, samples == samples[2, 3])
    assert np.array_equal(np.rint(picture.colour[..., 0] * 255), samples)


RESOLUTION_UNIT, SSHORT = 0x0128, 8


def with_signed_resolution_unit(path: Path) -> Path:
    """A JPEG whose ResolutionUnit is a signed -5, and whose artist is Ada."""
    exif = Image.Exif()
    exif[RESOLUTION_UNIT], exif[ARTIST] = 2, "Ada"
    file = io.BytesIO()
    Image.fromarray(noise(4, 6, 3)).save(file, format="JPEG", exif=exif)
    for order in "<>":
        entry = struct.pack(f"{order}HHIHH", RESOLUTION_UNIT, 3, 1, 2, 0)
        signed = struct.pack(f"{order}HHIhH", RESOLUTION_UNIT, SSHORT, 1, -5, 0)
        path.write_bytes(file.getvalue().replace(entry, signed))
        with Image.open(path) as opened:
            if opened.getexif()[RESOLUTION_UNIT] == -5:
                return path
    raise AssertionError("the tag was not found")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_that_cannot_be_written_is_left_out_and_said(suffix: str, tmp_path: Path) -> None:
    picture = read_picture(with_signed_resolution_unit(tmp_path / "a.jpg"))
    notes = write_picture(tmp_path / f"b.{suffix}", picture)
    assert notes == ["EXIF tags that cannot be written are left out: ResolutionUnit"]
    with Image.open(tmp_path / f"b.{suffix}") as opened:
        assert opened.getexif()[ARTIST] == "Ada"


def test_exif_within_the_exif_that_cannot_be_written(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ARTIST] = "Ada"
    exif.get_ifd(EXIF_IFD)[0x8827] = 1 << 40  # ISO
    exif[EXIF_IFD] = exif.get_ifd(EXIF_IFD)
    notes = write_picture(tmp_path / "b.jpg", Picture(np.zeros((2, 3, 3), np.float32), exif=exif))
    assert notes == ["EXIF tags that cannot be written are left out: ISOSpeedRatings"]


def test_exif_too_long_for_jpeg_is_left_out_there_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ARTIST] = "A" * 70_000
    picture = Picture(np.zeros((2, 3, 3), np.float32), exif=exif)
    (note,) = write_picture(tmp_path / "b.jpg", picture)
    assert "is more than JPEG can hold (65533): it is left out" in note
    assert write_picture(tmp_path / "b.png", picture) == []
    with Image.open(tmp_path / "b.png") as opened:
        assert len(opened.getexif()[ARTIST]) == 70_000


def test_what_pillow_cannot_encode_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise struct.error("nothing fits")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match="cannot be written as JPEG: nothing fits"):
        encode_picture(Picture(np.zeros((2, 3, 3), np.float32)), ".jpg")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_sixteen_bits_is_kept(channels: int, tmp_path: Path) -> None:
    samples = noise(5, 8, channels, dtype=np.uint16)
    samples[0, :3] = samples[0, 0]
    colour = struct.pack(f">{channels}H", *samples[0, 0])
    plain = cv2.imencode(".png", samples[..., ::-1])[1].tobytes()
    content = b"tRNS" + colour
    path = tmp_path / "deep.png"
    transparency = struct.pack(">I", len(colour)) + content + struct.pack(">I", zlib.crc32(content))
    path.write_bytes(plain[:33] + transparency + plain[33:])
    picture = read_picture(path)
    assert picture.alpha is not None
    assert picture.bits == 16
    assert np.array_equal(picture.alpha == 0, (samples == samples[0, 0]).all(axis=2))
    assert np.array_equal(np.rint(picture.colour[..., :channels] * 65535).astype(np.uint16), samples)
