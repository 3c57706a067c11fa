"""Latents from moments of the autoencoder's posterior that were computed before, and the hash that names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from family_folders import LATENT_CHANNELS, autoencoder
from safetensors.torch import load_file, save_file

from framer.config.model import ModelConfig
from framer.errors import UserError
from framer.models.latents import ImageLatents, Moments, VaeLatents, build_latents, vae_sha256
from framer.models.pixel_condition import PixelCondition
from framer.models.weights import INDEX_FILE, WEIGHTS_FILE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return autoencoder(tmp_path_factory.mktemp("vae") / "vae")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def space(folder: Path) -> VaeLatents:
    built = build_latents(ModelConfig(latents="vae", vae=str(folder)), CPU)
    assert isinstance(built, VaeLatents)
    return built


def images(seed: int) -> torch.Tensor:
    return torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_draw_from_the_moments_is_what_encoding_gives(folder: Path) -> None:
    latents, image = space(folder), images(0)
    moments = latents.moments(image)
    assert {m.dtype for m in moments} == {torch.float32}
    assert {tuple(m.shape) for m in moments} == {(3, LATENT_CHANNELS, 8, 12)}
    encoded = latents.encode(image, image, indices=[5, 6, 9], seed=2)
    assert torch.equal(latents.draw(moments, indices=[5, 6, 9], seed=2), encoded)
    one = Moments(moments.mean[1:2], moments.logvar[1:2])
    assert torch.equal(latents.draw(one, indices=[6], seed=2), encoded[1:2])
    assert not torch.equal(latents.draw(one, indices=[7], seed=2), encoded[1:2])


def test_a_draw_has_the_posteriors_mean_and_deviation(folder: Path) -> None:
    """Through shift and scale: (z - 0.1) * 0.5."""
    mean, logvar = torch.full((1, 1, 64, 64), 0.7), torch.full((1, 1, 64, 64), 2 * torch.log(torch.tensor(3.0)))
    drawn = space(folder).draw(Moments(mean, logvar), indices=[0], seed=0)
    assert float(drawn.mean()) == pytest.approx((0.7 - 0.1) * 0.5, abs=4 * 1.5 / 64)
    assert float(drawn.std()) == pytest.approx(3 * 0.5, rel=0.05)


def test_the_reference_is_the_scaled_mean(folder: Path) -> None:
    latents, upsampled = space(folder), images(1)
    mean = latents.moments(upsampled).mean
    assert torch.equal(latents.reference_of_mean(mean, upsampled), latents.reference(upsampled))
    torch.testing.assert_close(latents.reference(upsampled), (mean - 0.1) * 0.5)


def test_channels_have_their_own_mean_and_deviation(copy: Path) -> None:
    own = {"latents_mean": [-1.5, 2.0, 0.0, 0.5], "latents_std": [4.0, 0.5, 2.0, 1.0]}
    assert LATENT_CHANNELS == 4
    change_config(copy, shift_factor=None, **own)
    latents, image = space(copy), images(1)
    mean, deviation = (torch.tensor(own[name]).view(4, 1, 1) for name in ("latents_mean", "latents_std"))
    moments = latents.moments(image)
    torch.testing.assert_close(latents.reference(image), (moments.mean - mean) * 0.5 / deviation)
    encoded = latents.encode(image, image, indices=[5, 6, 9], seed=2)
    assert torch.equal(latents.draw(moments, indices=[5, 6, 9], seed=2), encoded)
    raw = latents.vae.decode(moments.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(latents.decode(latents.reference(image), image), raw, rtol=0, atol=1e-5)
    on_meta = build_latents(ModelConfig(latents="vae", vae=str(copy)), torch.device("meta"))
    assert on_meta.reference(image.to("meta")).shape == (3, 4, 8, 12)


@pytest.mark.parametrize(
    "changes",
    [
        {"latents_mean": [0.0] * 4, "shift_factor": None},
        {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3, "shift_factor": None},
        {"latents_mean": [0.0] * 4, "latents_std": [1.0, 0.0, 1.0, 1.0], "shift_factor": None},
    ],
    ids=str,
)
def test_means_and_deviations_that_contradict_themselves(changes: dict[str, object], copy: Path) -> None:
    change_config(copy, **changes)
    with pytest.raises(UserError, match="expected the first two alone, 4 numbers each, or neither"):
        space(copy)


def test_a_controlnet_still_sees_pixels(folder: Path) -> None:
    latents, upsampled = space(folder), images(1)
    beside, moments = PixelCondition(latents), latents.moments(upsampled)
    assert torch.equal(beside.reference_of_mean(moments.mean, upsampled), beside.reference(upsampled))
    expected = latents.draw(moments, indices=[0, 1, 2], seed=4)
    assert torch.equal(beside.draw(moments, indices=[0, 1, 2], seed=4), expected)


@pytest.mark.parametrize("kind", ["pixel", "residual"])
def test_images_have_no_moments(kind: str) -> None:
    latents = ImageLatents(kind)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no autoencoder"):
        latents.draw(Moments(torch.zeros(1), torch.zeros(1)), indices=[0], seed=0)
    with pytest.raises(ValueError, match="no autoencoder"):
        latents.reference_of_mean(torch.zeros(1), torch.zeros(1))


def test_the_hash_does_not_depend_on_where_the_folder_is_or_how_latents_are_scaled(folder: Path, copy: Path) -> None:
    change_config(copy, scaling_factor=7.0, shift_factor=None, _name_or_path="elsewhere", _diffusers_version="9")
    assert vae_sha256(copy) == vae_sha256(folder)


def test_a_default_says_what_a_config_without_it_says(folder: Path, copy: Path) -> None:
    path = copy / "config.json"
    content = json.loads(path.read_text())
    assert content.pop("use_quant_conv") is True
    path.write_text(json.dumps(content))
    assert vae_sha256(copy) == vae_sha256(folder)


@pytest.mark.parametrize("changes", [{"use_quant_conv": False}, {"act_fn": "relu"}, {"norm_num_groups": 4}])
def test_the_hash_tells_encoders_apart(folder: Path, copy: Path, changes: dict[str, object]) -> None:
    change_config(copy, **changes)
    assert vae_sha256(copy) != vae_sha256(folder)


def test_the_hash_tells_weights_apart(folder: Path, copy: Path) -> None:
    weights = load_file(copy / WEIGHTS_FILE)
    weights["encoder.conv_in.bias"][0] += 1e-3
    save_file(weights, copy / WEIGHTS_FILE)
    assert vae_sha256(copy) != vae_sha256(folder)


def test_weights_in_several_files_are_all_hashed(copy: Path) -> None:
    weights = load_file(copy / WEIGHTS_FILE)
    (copy / WEIGHTS_FILE).unlink()
    names = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(sorted(weights))}
    (copy / INDEX_FILE).write_text(json.dumps({"weight_map": names}))

    def write() -> str:
        for part in set(names.values()):
            save_file({name: weights[name] for name in weights if names[name] == part}, copy / part)
        return vae_sha256(copy)

    before = write()
    for name in ("encoder.conv_in.bias", "encoder.conv_in.weight"):  # in one file each
        weights[name].view(-1)[0] += 1e-3
        after = write()
        assert after != before
        before = after


def test_a_folder_that_is_not_whole_is_named(copy: Path) -> None:
    (copy / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=rf"model.vae: cannot read {copy}/{WEIGHTS_FILE}: No such file"):
        vae_sha256(copy)
    with pytest.raises(UserError, match=r"model.vae: .*nowhere/config.json not found"):
        vae_sha256(copy / "nowhere")
