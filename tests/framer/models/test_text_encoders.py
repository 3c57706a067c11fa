"""Text encoders give what diffusers' own pipelines give."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file, save_file
from text_folders import sd3_texts, sd21_texts, sdxl_texts
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from framer.errors import MissingExtraError, UserError
from framer.models import text_encoders
from framer.models.text_encoders import TextEncoder, load_text_encoder

CPU = torch.device("cpu")
TEXTS = ["a cat sits on a wall.", "two dogs; one tree", "a very long text, " * 20]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "sd21": sd21_texts(root / "sd21"),
        "sdxl": sdxl_texts(root / "sdxl"),
        "sd3": sd3_texts(root / "sd3"),
        "sd3 without T5": sd3_texts(root / "sd3_without_t5", t5=False),
    }


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / "copy"))


def _sd21(folder: Path) -> tuple[torch.Tensor, None]:
    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=None,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline.encode_prompt(TEXTS, CPU, 1, False)[0], None


def _sdxl(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    pipeline = StableDiffusionXLPipeline(
        vae=None,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        unet=None,
        scheduler=None,
    )
    prompt, _, pooled, _ = pipeline.encode_prompt(TEXTS, device=CPU, do_classifier_free_guidance=False)
    return prompt, pooled


def _sd3(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    t5 = (folder / "text_encoder_3").is_dir()
    pipeline = StableDiffusion3Pipeline(
        vae=None,
        text_encoder=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        text_encoder_3=T5EncoderModel.from_pretrained(folder / "text_encoder_3") if t5 else None,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        tokenizer_3=T5TokenizerFast.from_pretrained(folder / "tokenizer_3") if t5 else None,
        transformer=SD3Transformer2DModel(num_layers=1, joint_attention_dim=24, num_attention_heads=1),
        scheduler=None,
    )
    prompt, _, pooled, _ = pipeline.encode_prompt(
        TEXTS, None, None, device=CPU, do_classifier_free_guidance=False, max_sequence_length=77
    )
    return prompt, pooled


@pytest.mark.parametrize(
    ("name", "expected", "sizes", "tokens"),
    [
        ("sd21", _sd21, (8, None), 77),
        ("sdxl", _sdxl, (20, 10), 77),
        ("sd3", _sd3, (24, 18), 154),
        ("sd3 without T5", _sd3, (24, 18), 154),
    ],
)
@torch.no_grad()
def test_embeddings_are_those_of_diffusers(
    folders: dict[str, Path], name: str, expected: Callable[[Path], Any], sizes: tuple[int, int | None], tokens: int
) -> None:
    encoder = load_text_encoder(folders[name], device=CPU)
    assert (encoder.sizes, encoder.tokens) == (sizes, tokens)
    found = encoder.encode(TEXTS)
    assert found.prompt.shape == (3, tokens, sizes[0])
    assert found.prompt.dtype == torch.float32
    prompt, pooled = expected(folders[name])
    torch.testing.assert_close(found.prompt, prompt, rtol=0, atol=0)
    assert (found.prompt[0] != found.prompt[1]).any()
    if pooled is None:
        assert found.pooled is None
    else:
        torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=0)
    if name == "sd3 without T5":
        assert not found.prompt[:, 77:].any()
        assert found.prompt[:, :77, :20].all()


def test_sdxl_sees_zeros_for_the_empty_text_where_its_folder_says_so(copied: Callable[[str], Path]) -> None:
    folder = copied("sdxl")
    encoder = load_text_encoder(folder, device=CPU)
    found = encoder.encode(["", *TEXTS])
    assert not found.prompt[0].any()
    assert found.pooled is not None
    assert not found.pooled[0].any()
    assert found.prompt[1:].all()
    _change_index(folder, force_zeros_for_empty_prompt=False)
    other = load_text_encoder(folder, device=CPU)
    assert other.encode([""]).prompt.any()
    assert other.identity != encoder.identity


@pytest.mark.parametrize("name", ["sd21", "sd3"])
def test_the_empty_text_is_encoded_elsewhere(folders: dict[str, Path], name: str) -> None:
    assert load_text_encoder(folders[name], device=CPU).encode([""]).prompt.any()


def test_tokens_of_t5_are_what_clip_leaves(folders: dict[str, Path]) -> None:
    encoder = load_text_encoder(folders["sd3"], device=CPU, tokens=100)
    assert encoder.tokens == 100
    assert encoder.encode(TEXTS).prompt.shape == (3, 100, 24)
    assert encoder.identity != load_text_encoder(folders["sd3"], device=CPU).identity
    with pytest.raises(UserError, match="77 text tokens are too few"):
        load_text_encoder(folders["sd3"], device=CPU, tokens=77)


def test_clip_has_its_own_number_of_tokens(folders: dict[str, Path]) -> None:
    assert load_text_encoder(folders["sd21"], device=CPU, tokens=77).tokens == 77
    with pytest.raises(UserError, match="StableDiffusion has 77 text tokens, 154 were asked for"):
        load_text_encoder(folders["sd21"], device=CPU, tokens=154)


@pytest.fixture
def warnings_of_libraries(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Their loggers do not pass messages on to the root, where pytest would see them."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)


@torch.no_grad()
def test_long_texts_are_told_without_a_warning_for_each(
    folders: dict[str, Path], warnings_of_libraries: pytest.LogCaptureFixture
) -> None:
    encoder = load_text_encoder(folders["sd3"], device=CPU)
    fits, cut = "x" * 75, "x" * 76  # the tokenizers see single characters; two tokens are marks
    assert encoder.too_long([fits, *TEXTS, cut]) == [TEXTS[2], cut]
    encoder.encode(TEXTS)
    assert warnings_of_libraries.text == ""
    _sd3(folders["sd3"])
    assert "was truncated" in warnings_of_libraries.text


def test_long_texts_are_cut(folders: dict[str, Path]) -> None:
    found = load_text_encoder(folders["sd21"], device=CPU).encode(["x" * 76, "x" * 75 + "y", "x" * 74 + "y"]).prompt
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert (found[1] != found[2]).any()


def test_bf16_computes_in_bf16_and_gives_float32(folders: dict[str, Path]) -> None:
    exact, coarse = (load_text_encoder(folders["sd3"], device=CPU, precision=each) for each in ("fp32", "bf16"))
    found = coarse.encode(TEXTS).prompt
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, found.bfloat16().float(), rtol=0, atol=0)
    torch.testing.assert_close(found, exact.encode(TEXTS).prompt, rtol=0.1, atol=0.1)
    assert exact.identity != coarse.identity


def test_the_identity_is_of_the_files_and_not_of_the_place(
    folders: dict[str, Path], copied: Callable[[str], Path]
) -> None:
    def identity(folder: Path) -> str:
        return load_text_encoder(folder, device=CPU).identity

    before = identity(folders["sd3"])
    folder = copied("sd3")
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "/elsewhere", "dtype": "float16"}))
    (folder / "text_encoder" / "README.md").write_text("of no account")
    assert identity(folder) == before
    weights = folder / "text_encoder_3" / "model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, weights, metadata={"format": "pt"})
    changed = identity(folder)
    assert changed != before
    vocabulary = folder / "tokenizer" / "vocab.json"
    words = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps(words | {"a": words["b"], "b": words["a"]}))
    assert identity(folder) not in (before, changed)


def test_weights_in_several_files(copied: Callable[[str], Path]) -> None:
    folder = copied("sd21")
    expected = load_text_encoder(folder, device=CPU).encode(TEXTS).prompt
    part = folder / "text_encoder"
    model = CLIPTextModel.from_pretrained(part)
    (part / "model.safetensors").unlink()
    model.save_pretrained(part, max_shard_size="4KB")
    assert (part / "model.safetensors.index.json").is_file()
    encoder = load_text_encoder(folder, device=CPU)
    assert encoder.identity
    torch.testing.assert_close(encoder.encode(TEXTS).prompt, expected, rtol=0, atol=0)
    next(part.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(UserError, match="lacks model-00002"):
        load_text_encoder(folder, device=CPU).encode(TEXTS)


@pytest.mark.parametrize(
    "names", [["shared.weight"], ["encoder.embed_tokens.weight"], ["shared.weight", "encoder.embed_tokens.weight"]]
)
def test_weights_as_they_were_published_under_several_names(copied: Callable[[str], Path], names: list[str]) -> None:
    folder = copied("sd3")
    expected = load_text_encoder(folder, device=CPU).encode(TEXTS).prompt
    t5 = folder / "text_encoder_3" / "model.safetensors"
    tensors = load_file(t5)
    embedding = tensors.pop("shared.weight")
    save_file(tensors | {name: embedding.clone() for name in names}, t5, metadata={"format": "pt"})
    clip = folder / "text_encoder" / "model.safetensors"
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(load_file(clip) | positions, clip, metadata={"format": "pt"})
    found = load_text_encoder(folder, device=CPU).encode(TEXTS).prompt
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def _change_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _without_weights(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")


def _truncated_weights(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _weights_that_lack_one(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "token_embedding" in name))
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_weights, "neither model.safetensors nor"),
        (_truncated_weights, "cannot load .*text_encoder: SafetensorError"),
        (_weights_that_lack_one, "the weights lack 1 tensors, such as .*token_embedding"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer not found"),
        (lambda folder: shutil.rmtree(folder / "text_encoder"), r"text_encoder/config\.json not found"),
        (lambda folder: (folder / "model_index.json").unlink(), r"model_index\.json not found"),
        (lambda folder: (folder / "model_index.json").write_text("{"), r"model_index\.json is damaged"),
        (lambda folder: _change_index(folder, _class_name="FluxPipeline"), "is of a FluxPipeline; expected"),
        (lambda folder: _change_index(folder, text_encoder=[None, None]), "lists no text_encoder"),
        (
            lambda folder: _change_index(folder, text_encoder=["my_code", "MyEncoder"]),
            r"text_encoder is \['my_code', 'MyEncoder'\]; expected one of transformers' CLIPTextModel",
        ),
    ],
)
def test_damaged_folders_are_named(
    copied: Callable[[str], Path], damage: Callable[[Path], object], message: str
) -> None:
    folder = copied("sd21")
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_text_encoder(folder, device=CPU).encode(TEXTS)


def test_an_absent_t5_needs_the_width_of_its_zeros(copied: Callable[[str], Path]) -> None:
    folder = copied("sd3 without T5")
    shutil.rmtree(folder / "transformer")
    with pytest.raises(UserError, match=r"transformer/config\.json not found"):
        load_text_encoder(folder, device=CPU)


def test_a_missing_library_names_the_extra(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def require(module: str, *, extra: str) -> None:
        raise MissingExtraError(f"{module} [{extra}]")

    monkeypatch.setattr(text_encoders, "require", require)
    with pytest.raises(MissingExtraError, match=r"transformers \[texts\]"):
        load_text_encoder(folders["sd21"], device=CPU)


def test_no_text_is_a_mistake(folders: dict[str, Path]) -> None:
    encoder: TextEncoder = load_text_encoder(folders["sd21"], device=CPU)
    with pytest.raises(ValueError, match="no text"):
        encoder.encode([])
