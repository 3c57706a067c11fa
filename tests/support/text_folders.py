"""Tiny pipelines' folders with text encoders and tokenizers alone, and captioning models; random weights."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


def _clip_tokenizer(folder: Path, pad: str) -> None:
    """Of single characters; ``pad`` differs between SD 1 and the second encoder of SDXL, as in the real folders."""
    folder.mkdir(parents=True)
    marks = ["<|startoftext|>", "<|endoftext|>"]
    words = [*_CHARACTERS, *(f"{each}</w>" for each in _CHARACTERS), *marks]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "pad_token": pad,
        "bos_token": marks[0],
        "eos_token": marks[1],
        "unk_token": marks[1],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _t5_tokenizer(folder: Path) -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    pieces += [(each, -2.0) for each in _CHARACTERS]
    T5TokenizerFast(vocab=pieces, extra_ids=0).save_pretrained(folder)


def _clip(cls: Any, folder: Path, *, width: int, seed: int, projection: int = 8) -> None:
    tokens = 2 * len(_CHARACTERS)
    config = CLIPTextConfig(
        vocab_size=tokens + 2,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=tokens,
        eos_token_id=tokens + 1,
        pad_token_id=tokens + 1,
    )
    _save(cls, config, folder, seed)


def _save(cls: Any, config: Any, folder: Path, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
        with torch.no_grad():  # the initial weights are so small that all texts look alike
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)


def _index(folder: Path, name: str, **parts: Any) -> Path:
    content = {"_class_name": name, "_diffusers_version": "0.42.1", **parts, "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(content))
    return folder


def sd21_texts(folder: Path) -> Path:
    """As SD 1 and 2."""
    _clip_tokenizer(folder / "tokenizer", "<|endoftext|>")
    _clip(CLIPTextModel, folder / "text_encoder", width=8, seed=1)
    return _index(
        folder,
        "StableDiffusionPipeline",
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
    )


def sdxl_texts(folder: Path) -> Path:
    """Two CLIPs of different widths."""
    _clip_tokenizer(folder / "tokenizer", "<|endoftext|>")
    _clip_tokenizer(folder / "tokenizer_2", "!")
    _clip(CLIPTextModel, folder / "text_encoder", width=8, seed=1)
    _clip(CLIPTextModelWithProjection, folder / "text_encoder_2", width=12, seed=2, projection=10)
    return _index(
        folder,
        "StableDiffusionXLPipeline",
        text_encoder=["transformers", "CLIPTextModel"],
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        tokenizer=["transformers", "CLIPTokenizer"],
        tokenizer_2=["transformers", "CLIPTokenizer"],
        force_zeros_for_empty_prompt=True,
    )


def sd3_texts(folder: Path, *, t5: bool = True) -> Path:
    """Two CLIPs and T5, or, without it, the configuration of the transformer, which tells T5's width."""
    _clip_tokenizer(folder / "tokenizer", "<|endoftext|>")
    _clip_tokenizer(folder / "tokenizer_2", "!")
    _clip(CLIPTextModelWithProjection, folder / "text_encoder", width=8, seed=1)
    _clip(CLIPTextModelWithProjection, folder / "text_encoder_2", width=12, seed=2, projection=10)
    if t5:
        _t5_tokenizer(folder / "tokenizer_3")
        config = T5Config(
            vocab_size=4 + len(_CHARACTERS), d_model=24, d_kv=4, d_ff=16, num_layers=2, num_heads=2, is_gated_act=True
        )
        _save(T5EncoderModel, config, folder / "text_encoder_3", 3)
    else:
        (folder / "transformer").mkdir()
        (folder / "transformer" / "config.json").write_text(json.dumps({"joint_attention_dim": 24}))
    return _index(
        folder,
        "StableDiffusion3Pipeline",
        text_encoder=["transformers", "CLIPTextModelWithProjection"],
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        text_encoder_3=["transformers", "T5EncoderModel"] if t5 else [None, None],
        tokenizer=["transformers", "CLIPTokenizer"],
        tokenizer_2=["transformers", "CLIPTokenizer"],
        tokenizer_3=["transformers", "T5TokenizerFast"] if t5 else [None, None],
    )


def blip(folder: Path) -> Path:
    """A captioner that is not asked anything."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{each}" for each in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = BertTokenizerFast(
        vocab={word: number for number, word in enumerate(words)}, additional_special_tokens=["[DEC]"]
    )
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 16,
            "encoder_hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "bos_token_id": 5,
            "eos_token_id": 2,
            "sep_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config=vision | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    _save(BlipForConditionalGeneration, config, folder, 4)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    """A chat model that is asked about the image."""
    marks = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    words = [*marks, "USER:", "ASSISTANT:", *"abcdefghijklmnopqrstuvwxyz"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=marks.index("<image>"),
        vision_feature_layer=-1,
    )
    _save(LlavaForConditionalGeneration, config, folder, 5)
    template = (
        "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    size = {"height": 32, "width": 32}
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder
