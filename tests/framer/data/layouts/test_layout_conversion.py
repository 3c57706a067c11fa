"""Shards made of other projects' folders hold what the folders held."""

from __future__ import annotations

import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from family_folders import autoencoder
from layout_cases import NAMES, SIZE, TOKENS, embeddings, make_layout

from framer.data.images import read_image, write_png
from framer.data.layouts.base import Layout
from framer.data.layouts.convert import LayoutOptions, layout_pairs
from framer.data.layouts.dit4sr import DIT4SR
from framer.data.layouts.seesr import SEESR
from framer.data.samples import Sample, sample_of_pair
from framer.data.shards.manifest import ShardManifest, read_manifest
from framer.data.shards.reader import ShardDataset
from framer.data.shards.writer import write_shards
from framer.data.texts.store import NULL_ROW, TextStore
from framer.errors import UserError

SMALL = replace(DIT4SR, prompt_channels=8, pooled_channels=4, latent_channels=4, latent_downscale=2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_layout(tmp_path_factory.mktemp("dit4sr"), SMALL)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "pairs"))


def convert(folder: Path, output: Path, layout: Layout = SMALL, **options: Any) -> ShardManifest:
    source = layout_pairs(folder, layout, output, LayoutOptions(**options))
    return write_shards(source, output, crop_size=source.crop_size, shard_size=30_000, workers=0)


def samples_of(output: Path) -> dict[str, Sample]:
    """Every sample of one epoch by its name."""
    dataset = ShardDataset(output, read_manifest(output), seed=1)
    found = [dataset[index] for index in range(len(dataset))]
    by_name = {sample["name"]: sample for sample in found}
    assert len(by_name) == len(found)
    return by_name


def metas_of(output: Path) -> dict[str, dict[str, Any]]:
    """What the shards say of each sample, by its name."""
    found = {}
    for path in output.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    meta = json.load(file)
                    found[meta["name"]] = meta
    return found


def refusal(folder: Path, layout: Layout = SMALL, **options: Any) -> str:
    output = folder.parent / "refused"
    with pytest.raises(UserError) as caught:
        convert(folder, output, layout, **options)
    assert not output.exists()
    return str(caught.value)


def check_images(folder: Path, sample: Sample) -> None:
    pair = [read_image(folder / kind / f"{sample['name']}.png").astype(np.float32) / 255 for kind in ("gt", "lr")]
    expected = sample_of_pair(pair[0], pair[1], index=0, name="")
    for key in ("hr", "lr", "lr_upsampled"):
        torch.testing.assert_close(sample[key], expected[key], rtol=0, atol=0)


def test_dit4sr(prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "shards"
    manifest = convert(prepared, output)
    assert (manifest.samples, manifest.scale, manifest.degradation, manifest.crop_size) == (6, 4, "heavy", SIZE)
    assert len(manifest.shards) > 1
    assert manifest.latents is None
    assert "latents are checked but not carried over" in caplog.text
    assert manifest.licences[0].licence == "unknown"
    samples, metas = samples_of(output), metas_of(output)
    assert set(samples) == set(metas) == set(NAMES)
    for number, name in enumerate(NAMES):
        check_images(prepared, samples[name])
        prompt, pooled = embeddings(number, SMALL)
        torch.testing.assert_close(samples[name]["prompt_embeds"], prompt, rtol=0, atol=0)
        torch.testing.assert_close(samples[name]["pooled_prompt_embeds"], pooled, rtol=0, atol=0)
        assert metas[name]["caption"] == f"Photograph {name}, é."
        assert "hr_latents_mean" not in samples[name]
    # Keys are the samples' places in the order of their names.
    assert [metas[name]["index"] for name in sorted(NAMES)] == list(range(6))
    store = TextStore(output / "texts")
    torch.testing.assert_close(store.embeddings(NULL_ROW).prompt, embeddings(99, SMALL)[0], rtol=0, atol=0)
    assert store.tokens == TOKENS


def test_seesr_in_two_sizes(tmp_path: Path) -> None:
    folder, output = make_layout(tmp_path / "pairs", SEESR, sizes=((64, 64), (48, 80))), tmp_path / "shards"
    manifest = convert(folder, output, SEESR)
    assert [(b.height, b.width, b.samples) for b in manifest.buckets] == [(48, 80, 3), (64, 64, 3)]
    assert (manifest.crop_size, manifest.texts) == (48, None)
    samples, metas = samples_of(output), metas_of(output)
    for name in NAMES:
        check_images(folder, samples[name])
        assert metas[name] | {"index": 0} == {
            "index": 0,
            "name": name,
            "caption": f"Photograph {name}, é.",
            "text": None,
        }


def test_no_sample_is_dropped_at_the_end_whatever_their_number(tmp_path: Path) -> None:
    for count in (1, 5):
        names = tuple(f"{number:02d}" for number in range(count))
        folder = make_layout(tmp_path / f"pairs{count}", SEESR, names=names, only=("gt", "lr"))
        assert convert(folder, tmp_path / f"shards{count}", SEESR).samples == count
        assert set(samples_of(tmp_path / f"shards{count}")) == set(names)


def test_an_interrupted_conversion_goes_on_and_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    clean, output = tmp_path / "clean", tmp_path / "shards"
    convert(folder, clean)
    convert(folder, output)
    (output / "shards.json").rename(output / "shards.unfinished.json")
    (output / "000001.tar").unlink()
    (output / "texts" / "texts.json").unlink()
    convert(folder, output)
    files = sorted(path.relative_to(clean) for path in clean.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())
    for file in files:
        assert (output / file).read_bytes() == (clean / file).read_bytes(), file
    write_png(folder / "gt" / "a.png", read_image(folder / "gt" / "a.png") // 2 * 2)
    with pytest.raises(UserError, match="made from something else: --from 6 samples, SHA-256"):
        convert(folder, output)


def test_texts_that_repeat_share_a_row_unless_their_embeddings_differ(folder: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (folder / "prompt_txt" / f"{name}.txt").write_text("A photograph.")
    for kind in ("prompt_embeds", "pooled_prompt_embeds"):
        shutil.copy(folder / kind / "0001.pt", folder / kind / "0002.pt")
    output = tmp_path / "shards"
    convert(folder, output)
    samples, metas = samples_of(output), metas_of(output)
    assert metas["0001"]["text"] == metas["0002"]["text"] != metas["0003"]["text"]
    assert len(TextStore(output / "texts")) == 6
    for number, name in enumerate(NAMES):
        prompt, _ = embeddings(0 if name == "0002" else number, SMALL)
        torch.testing.assert_close(samples[name]["prompt_embeds"], prompt, rtol=0, atol=0)
        assert metas[name]["caption"] == "A photograph."


def test_embeddings_without_texts(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "prompt_txt")
    convert(folder, tmp_path / "shards")
    samples, metas = samples_of(tmp_path / "shards"), metas_of(tmp_path / "shards")
    for number, name in enumerate(NAMES):
        torch.testing.assert_close(samples[name]["prompt_embeds"], embeddings(number, SMALL)[0], rtol=0, atol=0)
        assert metas[name]["caption"] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_keep_the_precision_they_were_saved_in(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.tensor(1 + 2**-7 if dtype == torch.bfloat16 else 1 + 2**-20)
    for kind, shape in (("prompt_embeds", (1, TOKENS, 8)), ("pooled_prompt_embeds", (1, 4))):
        for path in (folder / kind).iterdir():
            torch.save(value.expand(shape).to(dtype), path)
    convert(folder, tmp_path / "shards")
    assert float(samples_of(tmp_path / "shards")["a"]["prompt_embeds"][0, 0]) == float(value)
    assert TextStore(tmp_path / "shards" / "texts").dtype == ("bf16" if dtype == torch.bfloat16 else "fp32")


def test_other_captions_than_the_folders(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for name in NAMES:
        (own / f"{name}.txt").write_text(f"My {name}")
    convert(folder, tmp_path / "shards", captions=str(own))
    assert {name: meta["caption"] for name, meta in metas_of(tmp_path / "shards").items()} == {
        name: f"My {name}" for name in NAMES
    }
    assert "its embeddings are not carried over" in caplog.text
    assert "prompt_embeds" not in samples_of(tmp_path / "shards")["a"]


def give_latents(folder: Path, vae_folder: Path, *, shift: float = 0.0, scale: torch.Tensor | float = 1.0) -> None:
    """Latents as scripts save them: a draw from the posterior, shifted and scaled."""
    vae: Any = AutoencoderKL.from_pretrained(vae_folder)
    for name in NAMES:
        for kind, image in (("latent_hr", "gt"), ("latent_lr", "sr_bicubic")):
            pixels = torch.from_numpy(read_image(folder / image / f"{name}.png")).permute(2, 0, 1)[None]
            with torch.no_grad():
                posterior = vae.encode(pixels.float() / 127.5 - 1).latent_dist
            torch.save((posterior.mean[0] - shift) * scale, folder / kind / f"{name}.pt")


@pytest.mark.parametrize("per_channel", [False, True])
def test_latents_are_kept_on_demand(per_channel: bool, folder: Path, tmp_path: Path) -> None:
    vae = autoencoder(tmp_path / "vae")
    config = json.loads((vae / "config.json").read_text())
    shift, scale = 0.1, torch.tensor(0.5)
    if per_channel:  # so far off that they would be refused as others
        config |= {"shift_factor": None, "latents_mean": [50.0] * 4, "latents_std": [0.25, 0.5, 1.0, 2.0]}
        shift, scale = 50.0, 0.5 / torch.tensor(config["latents_std"]).view(4, 1, 1)
        (vae / "config.json").write_text(json.dumps(config))
    give_latents(folder, vae, shift=shift, scale=scale)
    manifest = convert(folder, tmp_path / "shards", keep_latents=True, vae=vae)
    assert manifest.latents is not None
    samples = samples_of(tmp_path / "shards")
    for name in NAMES:
        for kind, key in (("latent_hr", "hr_latents_mean"), ("latent_lr", "lr_latents_mean")):
            stored = torch.load(folder / kind / f"{name}.pt", weights_only=True)
            torch.testing.assert_close((samples[name][key] - shift) * scale, stored)  # type: ignore[literal-required]
        assert (samples[name]["hr_latents_logvar"] == -30).all()


def test_latents_that_the_autoencoder_does_not_give(folder: Path, tmp_path: Path) -> None:
    vae = autoencoder(tmp_path / "vae")
    assert "is not what --vae gives for gt, shifted and scaled" in refusal(folder, keep_latents=True, vae=vae)
    other = replace(SMALL, latent_channels=3)
    for kind in ("latent_hr", "latent_lr"):
        for path in (folder / kind).iterdir():
            torch.save(torch.zeros(3, 32, 32), path)
    assert "has latents of 4 channels at 1/2 of the size" in refusal(folder, other, keep_latents=True, vae=vae)
    assert refusal(folder, other, keep_latents=True, vae=Path("/nowhere")).startswith("--vae: /nowhere")


def test_options_that_do_not_fit(folder: Path) -> None:
    assert "--keep-latents needs --vae" in refusal(folder, keep_latents=True)
    for name in ("latent_hr", "latent_lr", "prompt_txt", "prompt_embeds", "pooled_prompt_embeds"):
        shutil.rmtree(folder / name)
    assert "has no latents, latent_hr/ and latent_lr/" in refusal(folder, keep_latents=True, vae=Path("vae"))
    assert "has no texts, prompt_txt/; give --captions" in refusal(folder, text_encoder=Path("encoder"))


def swap(folder: Path, kind: str, one: str, other: str) -> None:
    first, second = folder / kind / f"{one}.png", folder / kind / f"{other}.png"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def test_swapped_images_are_refused_by_what_they_show(folder: Path, tmp_path: Path) -> None:
    swap(folder, "lr", "0001", "0003")
    message = refusal(folder)
    assert (
        "2 x lr shows another image than gt (--no-content-check turns this check off):\n    0001\n    0003" in message
    )
    assert "2 x sr_bicubic is not lr enlarged" in message
    assert convert(folder, tmp_path / "shards", content_check=False).samples == 6


class Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_holds_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for path in (folder / "prompt_embeds" / "a.pt", folder / "latent_hr" / "b.pt"):
        torch.save(Malice(mark), path)
    message = refusal(folder)
    assert f"{folder / 'prompt_embeds' / 'a.pt'} is not loaded: it holds Python objects, which may be code" in message
    assert f"{folder / 'latent_hr' / 'b.pt'} is not loaded" in message
    torch.save(Malice(mark), folder / "prompt_embeds" / "NULL_prompt_embeds.pt")
    assert "NULL_prompt_embeds.pt is not loaded" in refusal(folder)
    assert not mark.exists()


def test_wrong_tensors_are_named(folder: Path) -> None:
    wrong = {
        "prompt_embeds/a": (torch.zeros(TOKENS + 1, 8), f"has shape [{TOKENS + 1}, 8]; expected [{TOKENS}, 8]"),
        "prompt_embeds/b": (torch.zeros(TOKENS, 8, dtype=torch.int64), "expected float32, float16 or bfloat16"),
        "pooled_prompt_embeds/0001": (torch.tensor([0, 1, float("nan"), float("inf")]), "holds 2 values that are inf"),
        "pooled_prompt_embeds/a": (torch.zeros(3), "has shape [3]; expected [4]"),
        "pooled_prompt_embeds/0002": ({"x": torch.zeros(4)}, "holds a dict; expected a tensor"),
        "latent_hr/0003": (torch.zeros(4, 16, 16), "has shape [4, 16, 16]; expected [4, 32, 32]"),
        "latent_lr/0010": (torch.zeros(2, 4, 32, 32), "has shape [2, 4, 32, 32]; expected [4, 32, 32]"),
    }
    for name, (value, _) in wrong.items():
        torch.save(value, folder / f"{name}.pt")
    message = refusal(folder)
    assert "7 x files that cannot be used" in message
    for name, (_, words) in wrong.items():
        assert any(f"{name}.pt" in line and words in line for line in message.splitlines()), name


def test_wrong_images_and_texts_are_named(folder: Path) -> None:
    zeros = np.zeros((64, 64, 3), np.uint8)
    write_png(folder / "lr" / "a.png", zeros[:30, :30])
    write_png(folder / "lr" / "b.png", zeros[:32, :32])
    write_png(folder / "sr_bicubic" / "0001.png", zeros[:32])
    (folder / "gt" / "0002.png").write_bytes(b"")
    (folder / "prompt_txt" / "0003.txt").write_bytes(b"caf\xe9")
    message = refusal(folder, content_check=False)
    assert "a: lr has 30x30, gt 64x64; expected 1/2 or 1/4 or 1/8 of that" in message
    assert "pairs with another factor than the 4 of most:\n    b (2)" in message
    assert "0001: sr_bicubic has 64x32, gt 64x64" in message
    assert "0002.png: the file is empty (0 bytes)" in message
    assert "0003.txt is not UTF-8 text: byte 3 does not decode" in message


def test_sizes_of_one_aspect_ratio_are_refused(tmp_path: Path) -> None:
    folder = make_layout(tmp_path / "pairs", SEESR, sizes=((64, 64), (32, 32)))
    message = refusal(folder, SEESR, content_check=False)
    assert "0002 has 32x32 pixels and 0001 64x64: sizes of one aspect ratio cannot be in one folder" in message


@pytest.mark.parametrize(
    "seeds", [range(30), pytest.param(range(30, 400), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_mutated_files_are_named_or_do_not_matter(prepared: Path, tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        folder, output = tmp_path / "pairs", tmp_path / "shards"
        shutil.copytree(prepared, folder)
        path = rng.choice(sorted(folder.glob("*/*")))
        content = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(bytes(content if rng.random() < 0.7 else content[: rng.randrange(len(content))]))
        message = None
        try:
            source = layout_pairs(folder, SMALL, output, LayoutOptions())
        except UserError as error:
            message = str(error)
        if message is None:
            for row in range(len(source)):
                meta = json.loads(source.encoded(row).files["json"])
                assert meta["name"] == sorted(NAMES)[meta["index"]]
        else:
            assert path.stem in message
        shutil.rmtree(folder)
        shutil.rmtree(output, ignore_errors=True)
