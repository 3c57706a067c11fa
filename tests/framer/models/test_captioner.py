"""Captioning models say what transformers' own greedy decoding says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from text_folders import blip, llava, sd21_texts
from transformers import AutoProcessor, BlipForConditionalGeneration, LlavaForConditionalGeneration

from framer.errors import UserError
from framer.models.captioner import CHAT_PROMPT, ImageTextCaptioner

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captioners")
    return {"blip": blip(root / "blip"), "llava": llava(root / "llava")}


def _image(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def _captioner(folder: Path, **options: Any) -> ImageTextCaptioner:
    return ImageTextCaptioner(folder, device=CPU, **({"max_new_tokens": 12} | options))


@pytest.mark.parametrize("prompt", [None, "a cat"])
def test_a_captioner_that_is_asked_nothing(folders: dict[str, Path], prompt: str | None) -> None:
    model = BlipForConditionalGeneration.from_pretrained(folders["blip"]).eval()
    processor = AutoProcessor.from_pretrained(folders["blip"])
    said = []
    for seed in range(4):
        inputs = processor(images=Image.fromarray(_image(seed)), text=prompt, return_tensors="pt")
        written = model.generate(**inputs, do_sample=False, max_new_tokens=12)
        said.append(processor.decode(written[0], skip_special_tokens=True))
    captioner = _captioner(folders["blip"], prompt=prompt)
    assert [captioner.caption(_image(seed)) for seed in range(4)] == said
    assert len(set(said)) > 1
    assert all(caption.startswith(prompt or "") for caption in said)


@pytest.mark.parametrize("prompt", [None, "what is it ?"])
def test_a_chat_model_is_asked_and_the_question_is_no_part_of_the_caption(
    folders: dict[str, Path], prompt: str | None
) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(folders["llava"]).eval()
    processor = AutoProcessor.from_pretrained(folders["llava"])
    text = f"USER: <image> {CHAT_PROMPT if prompt is None else prompt} ASSISTANT:"
    inputs = processor(images=Image.fromarray(_image(2)), text=text, return_tensors="pt")
    written = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0]
    expected = processor.decode(written[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    said = _captioner(folders["llava"], prompt=prompt).caption(_image(2))
    assert said == expected
    assert said
    assert "USER:" not in said


def test_a_caption_does_not_depend_on_what_was_captioned_before(folders: dict[str, Path]) -> None:
    first, second = _captioner(folders["llava"]), _captioner(folders["llava"])
    forwards = [first.caption(_image(seed)) for seed in range(3)]
    assert [second.caption(_image(seed)) for seed in reversed(range(3))] == forwards[::-1]


def test_the_identity_is_of_model_and_prompt_and_not_of_the_place(folders: dict[str, Path], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folders["llava"], tmp_path / "moved"))
    before = _captioner(folders["llava"]).identity
    assert _captioner(moved).identity == _captioner(moved, prompt=CHAT_PROMPT).identity == before
    others = {
        _captioner(moved, prompt="what is it ?").identity,
        _captioner(moved, max_new_tokens=13).identity,
        _captioner(moved, precision="bf16").identity,
        _captioner(folders["blip"]).identity,
    }
    template = moved / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    others.add(_captioner(moved).identity)
    assert len(others | {before}) == 6


def test_bf16_describes_too(folders: dict[str, Path]) -> None:
    assert _captioner(folders["blip"], precision="bf16").caption(_image(0))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json not found"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load .*copy: "),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 100), "cannot load .*copy: Safetensor"),
    ],
)
def test_damaged_folders_are_named(folders: dict[str, Path], tmp_path: Path, damage: Any, message: str) -> None:
    folder = Path(shutil.copytree(folders["blip"], tmp_path / "copy"))
    damage(folder)
    with pytest.raises(UserError, match=message):
        _captioner(folder).caption(_image(0))


def test_a_model_of_texts_describes_no_image(tmp_path: Path) -> None:
    encoder = sd21_texts(tmp_path / "pipeline")
    shutil.copytree(encoder / "tokenizer", encoder / "text_encoder", dirs_exist_ok=True)
    with pytest.raises(UserError, match="holds no model that describes images: its processor is a CLIPTokenizer"):
        _captioner(encoder / "text_encoder")


def test_captions_have_a_length(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="max_new_tokens must be at least 1, got 0"):
        _captioner(folders["blip"], max_new_tokens=0)
