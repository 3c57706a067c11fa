"""Runs on prepared samples and with photographs' own texts: resumed bit for bit, exported, refused where unfit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import family_folders
import numpy as np
import pytest
import text_folders
import torch
from safetensors.torch import load_file, save_file
from text_stores import text_store
from training_runs import TINY, read_steps, tiny_config, train_on_ranks

from framer import cli
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.data.dataset import RealISRDataset
from framer.data.images import write_png
from framer.data.shards.latents import LatentEncoder
from framer.data.shards.stream_pairs import PhotographTexts, StreamPairs
from framer.data.shards.writer import write_shards
from framer.data.sources import with_shard_settings
from framer.data.texts.store import NULL_ROW, TextStore
from framer.errors import ConfigError, UserError
from framer.inference.load import load_restorer
from framer.models.text import NULL_TEXT_FILE, POOLED, PROMPT
from framer.planning.activations import trace_micro_step
from framer.training.command import main
from framer.training.trainer import Trainer

WEIGHTS = "diffusion_pytorch_model.safetensors"
TOKENS = 5
BUCKETS = [(32, 32), (24, 48)]
SHAPES = [(40, 40), (36, 60), (48, 44), (40, 40), (33, 66), (50, 48)]
PROBABILITY = 0.4
SOURCES = ["photographs", "shards"]


class Parts:
    """What the runs are made of.

    Attributes:
        photographs: Of two aspect ratios.
        texts: Of all of them.
        shards: Samples of the photographs in two buckets, with texts and latents.
        images: The same without latents.
    """

    def __init__(self, folder: Path) -> None:
        self.photographs = folder / "photographs"
        for number, shape in enumerate(SHAPES):
            image = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
            write_png(self.photographs / f"{number}.png", image)
        self.vae = family_folders.autoencoder(folder / "vae")
        self.sd3 = family_folders.sd35(folder / "sd3")
        captions = {str(number): f"photograph {number}" for number in range(len(SHAPES))}
        self.store = text_store(folder / "texts", captions, prompt=8, pooled=8, tokens=TOKENS)
        self.shards = self._shards(folder / "shards", captions, latents=True)
        self.images = self._shards(folder / "images", captions, latents=False)

    def _shards(self, folder: Path, captions: dict[str, str], *, latents: bool) -> Path:
        dataset = RealISRDataset(sorted(self.photographs.glob("*.png")), crop_size=32, buckets=BUCKETS, seed=3)
        shutil.copytree(self.store.folder, folder / "texts")
        texts = PhotographTexts(captions, TextStore(folder / "texts"), self.photographs)
        encoder = LatentEncoder(self.vae, dtype="fp32", device=torch.device("cpu")) if latents else None
        # All samples of a bucket in one shard, so that both folders are read in the same order.
        write_shards(
            StreamPairs(dataset, samples=24, texts=texts),
            folder,
            crop_size=32,
            shard_size=10_000_000,
            workers=0,
            encoder=encoder,
        )
        return folder

    def config(self, folder: Path, train: str, **sections: Any) -> Path:
        """Of a run on photographs, shards or images."""
        data: dict[str, Any] = {"train": str(getattr(self, train)), "null_text_probability": PROBABILITY}
        if train == "photographs":
            data |= {"texts": str(self.store.folder), "buckets": [list(bucket) for bucket in BUCKETS]}
        if train == "images":
            data["horizontal_flip"] = False
        model = {"pretrained": str(self.sd3), "latents": "vae", "vae": str(self.vae)}
        own = {"data": data, "model": model, "lr_scheduler": {"type": "constant"}}
        merged = {name: {**own.get(name, {}), **sections.get(name, {})} for name in own.keys() | sections.keys()}
        # TINY's crop size is that of the shards.
        return tiny_config(folder, **merged)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def trained(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs of four steps, by what they train on."""
    folders = {train: tmp_path_factory.mktemp(train) for train in SOURCES}
    for train, folder in folders.items():
        assert main(["--config", str(parts.config(folder, train))]) == 0
    return folders


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Trainer(load_config(TrainConfig, path))
    return str(caught.value)


def rehearsed(path: Path, steps: int) -> list[float]:
    """Noise losses of the first steps."""
    taken = Trainer(load_config(TrainConfig, path)).rehearse(steps)
    return [step.noise_loss for step in taken if step.noise_loss is not None]


def losses_of(folder: Path, key: str = "noise_loss") -> list[float]:
    return [step[key] for step in read_steps(folder)]


@pytest.mark.parametrize("train", SOURCES)
def test_it_resumes_bit_for_bit(train: str, trained: dict[str, Path], parts: Parts, tmp_path: Path) -> None:
    for steps in (2, 4):
        training = {"max_steps": steps, "batch_size": 4, "checkpoint_steps": 2}
        assert main(["--config", str(parts.config(tmp_path, train, training=training, data={"workers": 1}))]) == 0
    assert read_steps(tmp_path) == read_steps(trained[train])
    resumed, once = (load_file(folder / "run/export" / WEIGHTS) for folder in (tmp_path, trained[train]))
    assert all(torch.equal(value, once[name]) for name, value in resumed.items())


def test_accumulated_micro_steps_see_the_same_texts(parts: Parts, tmp_path: Path) -> None:
    """Without buckets, whose order is by micro-steps."""
    losses = []
    for name, size, accumulated in (("one", 4, 1), ("two", 2, 2)):
        training = {"batch_size": size, "gradient_accumulation_steps": accumulated}
        # A contrast with other images depends on how many there are in a forward pass.
        sections = {"training": training, "data": {"buckets": []}, "framer": {"enabled": False}}
        losses.append(rehearsed(parts.config(tmp_path / name, "photographs", **sections), 3))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_stored_latents_train_as_encoding_does(parts: Parts, trained: dict[str, Path], tmp_path: Path) -> None:
    assert main(["--config", str(parts.config(tmp_path, "images"))]) == 0
    for key in ("noise_loss", "framer_loss", "gradient_norm"):
        assert losses_of(tmp_path, key) == pytest.approx(losses_of(trained["shards"], key), rel=1e-4)


@pytest.mark.parametrize("train", SOURCES)
def test_texts_and_their_dropping_change_what_is_trained(
    train: str, trained: dict[str, Path], parts: Parts, tmp_path: Path
) -> None:
    first = {losses_of(trained[train])[0]}
    for probability in (0.0, 1.0):
        data = {"null_text_probability": probability}
        first |= set(rehearsed(parts.config(tmp_path / f"{probability}", train, data=data), 1))
    assert len(first) == 3


@pytest.mark.parametrize("train", SOURCES)
def test_the_resolved_configuration_says_which_texts(train: str, trained: dict[str, Path], parts: Parts) -> None:
    config = load_config(TrainConfig, trained[train] / "run/config.yaml")
    assert config.data.texts_fingerprint == parts.store.fingerprint
    assert config.model.text_tokens == TOKENS


@pytest.mark.parametrize("train", SOURCES)
def test_the_export_carries_the_empty_text(train: str, trained: dict[str, Path], parts: Parts, tmp_path: Path) -> None:
    folder, again = trained[train], tmp_path / "again"
    assert cli.main(["export", str(folder / "run/checkpoints/step-00000004"), "-o", str(again)]) == 0
    null = parts.store.embeddings(NULL_ROW)
    for export in (folder / "run/export", again):
        settings = json.loads((export / "restoration.json").read_text())
        assert (settings["text_tokens"], settings["text_embeddings"]) == (TOKENS, None)
        assert settings["null_text"] == NULL_TEXT_FILE
        assert settings["step"] == 4
        file = load_file(export / NULL_TEXT_FILE)
        assert torch.equal(file[PROMPT], null.prompt)
        assert null.pooled is not None
        assert torch.equal(file[POOLED], null.pooled)
    moved = shutil.copytree(again, tmp_path / "moved")
    upsampled = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    restored = load_restorer(moved)(upsampled, seed=0)
    named = load_restorer(moved, text_embeddings=str(moved / NULL_TEXT_FILE))(upsampled, seed=0)
    assert torch.equal(restored, named)
    other = family_folders.texts(tmp_path / "other.safetensors", prompt=8, pooled=8)
    assert not torch.equal(restored, load_restorer(moved, text_embeddings=str(other))(upsampled, seed=0))


def test_a_text_that_the_configuration_names_is_seen_in_evaluation(parts: Parts, tmp_path: Path) -> None:
    named = family_folders.texts(tmp_path / "named.safetensors", prompt=8, pooled=8)
    model, training = {"text_embeddings": str(named)}, {"max_steps": 1, "batch_size": 2}
    trainer = Trainer(load_config(TrainConfig, parts.config(tmp_path, "shards", model=model, training=training)))
    assert torch.equal(trainer.restoration.text.prompt, load_file(named)[PROMPT])
    trainer.train()
    assert not (tmp_path / "run/export" / NULL_TEXT_FILE).exists()
    assert "here all see that of `model.text_embeddings`" in (tmp_path / "run/report.md").read_text()


def test_evaluation_photographs_see_the_empty_text(trained: dict[str, Path], parts: Parts) -> None:
    folder = trained["shards"]
    trainer = Trainer(load_config(TrainConfig, folder / "run/config.yaml"))
    assert torch.equal(trainer.restoration.text.prompt, parts.store.embeddings(NULL_ROW).prompt)
    report = (folder / "run/report.md").read_text()
    assert "own texts in training, the empty one with probability 0.4; here all see the empty one." in report


def test_a_run_does_not_go_on_with_other_texts(trained: dict[str, Path], parts: Parts, tmp_path: Path) -> None:
    shutil.copytree(trained["photographs"] / "run", tmp_path / "run")
    captions = {str(number): f"another text of {number}" for number in range(len(SHAPES))}
    store = text_store(tmp_path / "others", captions, prompt=8, pooled=8, tokens=TOKENS)
    config = parts.config(tmp_path, "photographs", data={"texts": str(store.folder)}, training={"max_steps": 6})
    error = refusal(config)
    assert f"data.texts_fingerprint {parts.store.fingerprint} (now {store.fingerprint})" in error


@pytest.mark.parametrize(("train", "key"), [("photographs", "texts"), ("shards", "train")])
def test_a_checkpoint_whose_texts_are_gone_is_not_exported_without_them(
    train: str, key: str, parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(parts.store.folder if train == "photographs" else parts.shards, tmp_path / "copy")
    training = {"max_steps": 1, "batch_size": 2, "checkpoint_steps": 1}
    assert main(["--config", str(parts.config(tmp_path, train, data={key: str(copy)}, training=training))]) == 0
    shutil.rmtree(copy)
    checkpoint = tmp_path / "run/checkpoints/step-00000001"
    assert cli.main(["export", str(checkpoint), "-o", str(tmp_path / "out")]) != 0
    assert "has no texts.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_autoencoder_is_refused(parts: Parts, tmp_path: Path) -> None:
    vae = shutil.copytree(parts.vae, tmp_path / "vae")
    weights = load_file(vae / WEIGHTS)
    weights["encoder.conv_in.bias"][0] += 1e-3
    save_file(weights, vae / WEIGHTS)
    error = refusal(parts.config(tmp_path, "shards", model={"vae": str(vae)}))
    assert error.startswith(f"model.vae: the autoencoder in {vae} (SHA-256 ")
    assert f"is not the one that made the latents in {parts.shards}" in error


@pytest.mark.parametrize("latents", ["pixel", "residual"])
def test_latents_are_of_no_use_without_an_autoencoder(latents: str, parts: Parts, tmp_path: Path) -> None:
    model = {"latents": latents, "vae": None, "pretrained": None}
    with pytest.raises(ConfigError, match=rf"model.latents {latents}: the shards in .* hold an autoencoder's latents"):
        Trainer(load_config(TrainConfig, parts.config(tmp_path, "shards", model=model)))


def test_texts_of_another_model_are_refused_before_training(parts: Parts, tmp_path: Path) -> None:
    captions = {str(number): "" for number in range(len(SHAPES))}
    store = text_store(tmp_path / "texts", captions, prompt=12, pooled=8)
    error = refusal(parts.config(tmp_path, "photographs", data={"texts": str(store.folder)}))
    assert "the images' texts have embeddings of 12 channels and a pooled one of 8, but the SD3Transf" in error
    assert not (tmp_path / "run").exists()


def test_photographs_without_a_text_are_refused_before_training(parts: Parts, tmp_path: Path) -> None:
    store = text_store(tmp_path / "texts", {"1": "", "3": ""}, prompt=8, pooled=8)
    error = refusal(parts.config(tmp_path, "photographs", data={"texts": str(store.folder)}))
    assert f"data.texts: 4 of 6 photographs have no text in {store.folder}: 0, 2, 4, 5;" in error


def test_shards_without_texts_have_none_to_drop(parts: Parts, tmp_path: Path) -> None:
    dataset = RealISRDataset(sorted(parts.photographs.glob("*.png")), crop_size=32, seed=3)
    write_shards(StreamPairs(dataset, samples=2), tmp_path / "s", crop_size=32, shard_size=10_000, workers=0)
    error = refusal(parts.config(tmp_path, "images", data={"train": str(tmp_path / "s")}))
    assert "data.null_text_probability=0.4, but neither data.texts nor the shards of data.train" in error


@pytest.mark.parametrize("train", SOURCES)
def test_another_number_of_tokens_is_refused(train: str, parts: Parts, tmp_path: Path) -> None:
    error = refusal(parts.config(tmp_path, train, model={"text_tokens": 77}))
    assert f"model.text_tokens=77 (the texts have {TOKENS})" in error


def test_a_plan_of_stored_latents_does_not_encode(parts: Parts, tmp_path: Path) -> None:
    flops = {}
    for train in ("shards", "images"):
        config = with_shard_settings(load_config(TrainConfig, parts.config(tmp_path / train, train)))
        flops[train] = trace_micro_step(config).flops
    assert flops["shards"].forward < 0.5 * flops["images"].forward
    assert flops["shards"].backward == flops["images"].backward


@pytest.mark.slow
@pytest.mark.parametrize("train", SOURCES)
def test_the_plan_command_takes_the_texts_where_they_are(
    train: str, parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(parts.config(tmp_path, train))
    assert cli.main(["plan", "--config", config, "--gpus", "1", "--memory", "8GB"]) == 0
    assert "nothing fits" not in capsys.readouterr().out
    if train == "photographs":
        gone = [f"data.texts={tmp_path / 'gone'}", f"data.train={tmp_path / 'gone'}"]
        assert cli.main(["plan", "--config", config, "--gpus", "1", "--memory", "8GB", *gone]) == 0


def test_it_can_be_rehearsed(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(parts.config(tmp_path, "shards")), "--dry-run"]) == 0
    assert "the run would start" in capsys.readouterr().out


@pytest.mark.slow
def test_one_configuration_prepares_and_trains(parts: Parts, tmp_path: Path) -> None:
    """With real tokenizers and encoders of SD3's kind, as FRAMER_D is trained."""
    encoders, captions, shards = (
        text_folders.sd3_texts(tmp_path / "encoders"),
        tmp_path / "captions",
        tmp_path / "shards",
    )
    captions.mkdir()
    for number in range(len(SHAPES)):
        (captions / f"{number}.txt").write_text(f"a photograph of {number} trees")
    model = {"pretrained": None, "text_tokens": 154, "vae": str(parts.vae)}
    model["architecture"] = {**TINY["model"]["architecture"], "joint_attention_dim": 24, "pooled_projection_dim": 18}
    config = str(parts.config(tmp_path, "photographs", model=model, data={"texts": None, "on_broken": "skip"}))
    prepare = ["--captions", str(captions), "--text-encoder", str(encoders), "--vae", str(parts.vae)]
    command = ["prepare", "--config", config, "--output", str(shards), "--samples", "12", *prepare]
    assert cli.main(command) == 0
    assert main(["--config", config, f"data.train={shards}"]) == 0
    store = TextStore(shards / "texts")
    settings = json.loads((tmp_path / "run/export/restoration.json").read_text())
    assert settings["text_tokens"] == store.tokens == 154
    # The same photographs, with the shards' texts.
    photographs = [f"data.texts={shards / 'texts'}", f"output_dir={tmp_path / 'again'}"]
    assert main(["--config", config, *photographs, "training.max_steps=1", "lr_scheduler.warmup_steps=0"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("train", SOURCES)
def test_two_ranks_train_what_one_does_and_resume_bit_for_bit(train: str, parts: Parts, tmp_path: Path) -> None:
    """In stage 2, in buckets, with accumulation."""
    engine = {"deepspeed": {"zero_stage": 2}, "framer": {"weight": 0.1}}

    def config(name: str, size: int, steps: int) -> Path:
        training = {"batch_size": size, "gradient_accumulation_steps": 2, "max_steps": steps, "checkpoint_steps": 2}
        return parts.config(tmp_path / name, train, training=training, **engine)

    train_on_ranks(1, [config("one", 4, 4)])
    train_on_ranks(2, [config("two", 2, 4)])
    train_on_ranks(2, [config("resumed", 2, 2)])
    train_on_ranks(2, [config("resumed", 2, 4)])
    assert read_steps(tmp_path / "resumed") == read_steps(tmp_path / "two")
    for key in ("noise_loss", "framer_loss"):
        assert losses_of(tmp_path / "two", key) == pytest.approx(losses_of(tmp_path / "one", key), rel=1e-4)
