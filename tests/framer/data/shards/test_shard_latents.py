"""Latents in shards: the moments that training would compute, whoever computed them and when."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from family_folders import LATENT_CHANNELS, autoencoder
from safetensors.torch import load, save
from shard_cases import contents, dataset_of, make_shards

from framer.config.model import ModelConfig
from framer.data.samples import Sample
from framer.data.shards.index import LATENTS, members_of, open_index, spans_of
from framer.data.shards.latents import LatentEncoder
from framer.data.shards.manifest import LatentsDtype, read_manifest
from framer.data.shards.reader import ShardDataset
from framer.errors import UserError
from framer.models.latents import VaeLatents, build_latents, vae_sha256

CPU = torch.device("cpu")
SAMPLES = 7


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return autoencoder(tmp_path_factory.mktemp("vae"))


def _make(photos: list[Path], folder: Path, vae: Path, dtype: LatentsDtype = "fp32", workers: int = 0) -> Path:
    encoder = LatentEncoder(vae, dtype=dtype, device=CPU)
    make_shards(dataset_of(photos), folder, samples=SAMPLES, shard_size=20_000, workers=workers, encoder=encoder)
    return folder


@pytest.fixture(scope="module")
def shards(photos: list[Path], vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make(photos, tmp_path_factory.mktemp("latents") / "out", vae)


def _epoch(folder: Path) -> list[Sample]:
    dataset = ShardDataset(folder, read_manifest(folder), seed=5)
    return [
        dataset.sample(bucket, place, 0) for bucket, size in enumerate(dataset.bucket_sizes) for place in range(size)
    ]


def test_the_manifest_says_what_the_latents_are(shards: Path, vae: Path) -> None:
    latents = read_manifest(shards).latents
    assert latents is not None
    assert (latents.dtype, latents.channels, latents.downscale) == ("fp32", LATENT_CHANNELS, 2)
    assert latents.vae_sha256 == vae_sha256(vae)
    assert len(read_manifest(shards).shards) >= 3


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_moments_are_those_of_the_stored_images(
    photos: list[Path], shards: Path, vae: Path, tmp_path: Path, dtype: LatentsDtype
) -> None:
    folder = shards if dtype == "fp32" else _make(photos, tmp_path, vae, dtype)
    space = build_latents(ModelConfig(latents="vae", vae=str(vae)), CPU)
    assert isinstance(space, VaeLatents)
    samples = _epoch(folder)
    assert len(samples) == SAMPLES
    # In a batch, as training would.
    for shape in {sample["hr"].shape for sample in samples}:
        batch = [sample for sample in samples if sample["hr"].shape == shape]
        hr = space.moments(torch.stack([sample["hr"] for sample in batch]))
        lr = space.moments(torch.stack([sample["lr_upsampled"] for sample in batch]))
        tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == "fp32" else {"atol": 2e-3, "rtol": 2e-3}
        for key, expected in (
            ("hr_latents_mean", hr.mean),
            ("hr_latents_logvar", hr.logvar),
            ("lr_latents_mean", lr.mean),
        ):
            stored = torch.stack([sample[key] for sample in batch])  # type: ignore[literal-required]
            assert stored.dtype == torch.float32
            torch.testing.assert_close(stored, expected, **tolerance)
        assert not torch.allclose(hr.mean, lr.mean, atol=1e-3)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_do_not_depend_on_the_workers(
    photos: list[Path], shards: Path, vae: Path, tmp_path: Path, workers: int
) -> None:
    assert contents(_make(photos, tmp_path, vae, workers=workers)) == contents(shards)


def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    # As wide as it takes for the results of plain calls to differ with the threads.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 64, 128, 128),
            latent_channels=16,
        ).save_pretrained(tmp_path)
    encoder = LatentEncoder(tmp_path, dtype="fp32", device=CPU)
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(encoder.encode(image, image, "sample"))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert found[0] == found[1]


def test_damaged_shards_are_made_again_with_the_same_bytes(
    photos: list[Path], shards: Path, vae: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(shards, tmp_path / "out")
    # With an intact one between them, so that workers are started anew after the autoencoder has run.
    for name in ("000000.tar", "000002.tar"):
        (folder / name).write_bytes(b"")
    assert contents(_make(photos, folder, vae, workers=1)) == contents(shards)


def test_another_autoencoder_or_dtype_is_refused(photos: list[Path], shards: Path, vae: Path, tmp_path: Path) -> None:
    other = shutil.copytree(vae, tmp_path / "other")
    (weights,) = other.glob("*.safetensors")
    tensors = load(weights.read_bytes())
    name = next(iter(tensors))
    weights.write_bytes(save(tensors | {name: tensors[name] + 1}))
    with pytest.raises(UserError, match=r"made from something else: --vae SHA-256 .* \(now SHA-256"):
        _make(photos, shards, other)
    with pytest.raises(UserError, match=r"--latents-dtype fp32 \(now fp16\)"):
        _make(photos, shards, vae, "fp16")
    with pytest.raises(UserError, match=r"--vae SHA-256 .* \(now None\)"):
        make_shards(dataset_of(photos), shards, samples=SAMPLES, shard_size=20_000)


def test_sides_that_have_no_latents(photos: list[Path], tmp_path: Path, vae: Path) -> None:
    encoder = LatentEncoder(vae, dtype="fp32", device=CPU)
    with pytest.raises(UserError, match="--vae: sides of 33 and 33 pixels are no multiples of the 2"):
        make_shards(
            dataset_of(photos, crop_size=33, scale=1, buckets=()), tmp_path / "out", crop_size=33, encoder=encoder
        )


def test_an_autoencoder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^--vae: {tmp_path / 'none'}/config\.json not found"):
        LatentEncoder(tmp_path / "none", dtype="fp32", device=CPU)


def test_moments_that_are_not_finite_are_named(photos: list[Path], vae: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(vae, tmp_path / "broken")
    (weights,) = broken.glob("*.safetensors")
    tensors = load(weights.read_bytes())
    weights.write_bytes(save(tensors | {"quant_conv.bias": tensors["quant_conv.bias"] * 0 + 1e6}))
    with pytest.raises(UserError, match=r"sample 0000000\d\d: .* hr_mean that is not finite or too large for fp16"):
        _make(photos, tmp_path / "out", broken, "fp16")


def test_pairs_with_latents_are_not_mirrored(shards: Path) -> None:
    with pytest.raises(ValueError, match="neither mirrored nor turned"):
        ShardDataset(shards, read_manifest(shards), seed=0, horizontal_flip=True)


def _replaced(folder: Path, data: bytes) -> tuple[Path, str]:
    """Writes other content over the beginning of one sample's latents; the shard and the sample's key."""
    shard, members = read_manifest(folder).shards[1], members_of(latents=True)
    row = open_index(folder / shard.index_file, samples=shard.samples, members=members)[0]
    with (folder / shard.file).open("r+b") as file:
        file.seek(spans_of(row, members)[LATENTS].offset)
        file.write(data)
    return folder / shard.file, f"{int(row[0]):09d}"


def _stored(folder: Path) -> bytes:
    shard, members = read_manifest(folder).shards[1], members_of(latents=True)
    span = spans_of(open_index(folder / shard.index_file, samples=shard.samples, members=members)[0], members)[LATENTS]
    return (folder / shard.file).read_bytes()[span.offset :][: span.size]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("header", "latents.safetensors is damaged: "),
        ("name", "latents.safetensors is damaged: it lacks lr_mean"),
        ("dtype", "is torch.int32 [4, "),
        ("shape", "hr_mean is torch.float32 [1, "),
        ("numbers", "hr_logvar holds numbers that are not finite"),
    ],
)
def test_damaged_latents_are_named_by_shard_and_key(shards: Path, tmp_path: Path, damage: str, problem: str) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    before = _stored(folder)
    if damage == "numbers":
        tensors = load(before)
        after = save(tensors | {"hr_logvar": tensors["hr_logvar"] * float("nan")})
    elif damage == "shape":
        tensors = load(before)
        after = save(tensors | {"hr_mean": tensors["hr_mean"].flatten()[None, None]})
    else:
        after = {
            "header": b"\xff" * 8,
            "name": before.replace(b"lr_mean", b"xr_mean"),
            "dtype": before.replace(b'"F32"', b'"I32"'),
        }[damage]
    path, key = _replaced(folder, after[: len(before)])
    with pytest.raises(UserError) as caught:
        _epoch(folder)
    assert str(caught.value).startswith(f"{path}: sample {key}: latents.safetensors is damaged: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
