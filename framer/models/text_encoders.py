"""The text encoders of Stable Diffusion's families, as their pipelines of diffusers use them."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from framer.errors import UserError
from framer.extras import require
from framer.models.text import TextEmbeddings, TextSizes
from framer.models.transformers_folders import (
    EXTRA,
    Precision,
    digest_of_folder,
    load_model,
    load_part,
    read_json,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CLIP_TOKENS: Final = 77
SD3_TOKENS: Final = 2 * CLIP_TOKENS
"""Tokens of SD3's families if none are given: CLIP's, and as many of T5, as DiT4SR has."""

_INDEX: Final = "model_index.json"
_ENCODERS: Final = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"})
_TOKENIZERS: Final = frozenset({"CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast"})


class TextEncoder(ABC):
    """Embeds texts as one family of models sees them."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What the embeddings depend on beside the text, whatever folder it lies in."""

    @property
    @abstractmethod
    def sizes(self) -> TextSizes:
        """Channels of the embeddings."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """T, the same for every text."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        """Embeddings ``[B, T, D]`` and, where the family has them, pooled ``[B, P]``; float32, on the CPU."""

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts of which the encoder, or one of several, sees the beginning alone."""
        return []


class PipelineTextEncoder(TextEncoder):
    """The text part of a pipeline of diffusers, whose ``encode_prompt`` it calls.

    The weights are loaded when the first text is encoded.

    Args:
        folder: The pipeline's; only its text encoders and tokenizers are read.
        index: Its ``model_index.json``.
        device: Where the encoders run.
        precision: Of their weights and computation.

    Raises:
        UserError: A part is missing, damaged or of an unknown class.
    """

    encoders: tuple[str, ...]
    """Names of the text encoders in ``model_index.json``."""

    def __init__(self, folder: Path, index: dict[str, Any], *, device: torch.device, precision: Precision) -> None:
        self._folder = folder
        self._device = device
        self._precision: Precision = precision
        self._classes = {name: _class_of(index, name, _ENCODERS, folder) for name in self.encoders}
        self._configs = {name: read_json(folder / name / "config.json") for name in self.encoders}
        self._tokenizers: dict[str, Any] = {}
        for name in self.encoders:
            tokenizer = name.replace("text_encoder", "tokenizer")
            self._tokenizers[tokenizer] = load_part(
                _class_of(index, tokenizer, _TOKENIZERS, folder), folder / tokenizer
            )

    @property
    @abstractmethod
    def family(self) -> str:
        """Name of the family, for messages and the identity."""

    @abstractmethod
    def limits(self) -> dict[str, int]:
        """How many tokens of a text are seen, by the tokenizer's name."""

    @abstractmethod
    def build_pipeline(self, parts: dict[str, Any]) -> DiffusionPipeline:
        """The pipeline of the text encoders and tokenizers alone."""

    @abstractmethod
    def encode_prompt(self, pipeline: Any, texts: list[str]) -> TextEmbeddings:
        """Calls the pipeline's ``encode_prompt``."""

    @property
    def settings(self) -> dict[str, object]:
        """What changes the embeddings beside the folder's files."""
        return {"family": self.family, "tokens": self.tokens, "precision": self._precision}

    @functools.cached_property
    def identity(self) -> str:
        """Family, tokens, precision, and a hash of them, of the weights and of the tokenizers."""
        digests = {name: digest_of_folder(self._folder / name, with_weights=True) for name in self.encoders}
        digests |= {name: digest_of_folder(self._folder / name, with_weights=False) for name in self._tokenizers}
        content = json.dumps([self.settings, digests], sort_keys=True).encode()
        return f"{self.family}, {self.tokens} tokens, {self._precision}, SHA-256 {hashlib.sha256(content).hexdigest()}"

    @functools.cached_property
    def _pipeline(self) -> DiffusionPipeline:
        transformers = require("transformers", extra=EXTRA)
        models = {
            name: load_model(
                getattr(transformers, self._classes[name]),
                self._folder / name,
                precision=self._precision,
                device=self._device,
            )
            for name in self.encoders
        }
        return self.build_pipeline({**models, **self._tokenizers})

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        """Embeddings of texts, see :class:`TextEncoder`.

        Raises:
            UserError: The weights are missing or damaged, or do not fit the configuration.
            ValueError: There is no text.
        """
        if not texts:
            raise ValueError("there is no text to encode")
        pipeline = self._pipeline  # diffusers sets the level of its messages when it is first imported
        with torch.no_grad(), _truncation_unreported():
            found = self.encode_prompt(pipeline, list(texts))
        prompt = found.prompt.float().cpu()
        pooled = None if found.pooled is None else found.pooled.float().cpu()
        shapes = [list(prompt.shape), None if pooled is None else list(pooled.shape)]
        expected = [
            [len(texts), self.tokens, self.sizes.prompt],
            None if self.sizes.pooled is None else [len(texts), self.sizes.pooled],
        ]
        if shapes != expected:
            raise UserError(
                f"{self._folder}: the text encoders gave embeddings of shapes {shapes}; expected {expected} from their "
                "config.json"
            )
        return TextEmbeddings(prompt, pooled)

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that have more tokens than one of the encoders sees."""
        cut: set[int] = set()
        with _truncation_unreported():
            for name, limit in self.limits().items():
                tokens = self._tokenizers[name](list(texts)).input_ids
                cut |= {place for place, each in enumerate(tokens) if len(each) > limit}
        return [texts[place] for place in sorted(cut)]

    def size_in(self, name: str, key: str) -> int:
        """A number in an encoder's ``config.json``.

        Raises:
            UserError: It is missing.
        """
        value = self._configs[name].get(key)
        if type(value) is not int:
            raise UserError(f"{self._folder / name / 'config.json'}: {key} is {value!r}; expected a number")
        return value


class StableDiffusionTextEncoder(PipelineTextEncoder):
    """Stable Diffusion 1 and 2: the last hidden states of CLIP."""

    encoders = ("text_encoder",)
    family = "StableDiffusion"

    @functools.cached_property
    def sizes(self) -> TextSizes:
        """CLIP's width."""
        return TextSizes(self.size_in("text_encoder", "hidden_size"), None)

    @property
    def tokens(self) -> int:
        """CLIP's."""
        return int(self._tokenizers["tokenizer"].model_max_length)

    def limits(self) -> dict[str, int]:
        """CLIP's tokens."""
        return {"tokenizer": self.tokens}

    def build_pipeline(self, parts: dict[str, Any]) -> DiffusionPipeline:
        """See :class:`PipelineTextEncoder`."""
        from diffusers import StableDiffusionPipeline

        rest = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
        return StableDiffusionPipeline(**parts, **rest, requires_safety_checker=False)

    def encode_prompt(self, pipeline: Any, texts: list[str]) -> TextEmbeddings:
        """See :class:`PipelineTextEncoder`."""
        prompt, _ = pipeline.encode_prompt(
            texts, device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return TextEmbeddings(prompt, None)


class StableDiffusionXLTextEncoder(PipelineTextEncoder):
    """Stable Diffusion XL: the last hidden states but one of two CLIPs side by side, and the second one's pooled text.

    The empty text is zeros where ``force_zeros_for_empty_prompt`` of ``model_index.json`` says so, as in SDXL's own
    unconditional pass.
    """

    encoders = ("text_encoder", "text_encoder_2")
    family = "StableDiffusionXL"

    def __init__(self, folder: Path, index: dict[str, Any], *, device: torch.device, precision: Precision) -> None:
        super().__init__(folder, index, device=device, precision=precision)
        self._empty_is_zero = bool(index.get("force_zeros_for_empty_prompt", True))

    @property
    def settings(self) -> dict[str, object]:
        """What changes the embeddings beside the folder's files."""
        return super().settings | {"force_zeros_for_empty_prompt": self._empty_is_zero}

    @functools.cached_property
    def sizes(self) -> TextSizes:
        """Both widths together, and the second one's projection."""
        width = sum(self.size_in(name, "hidden_size") for name in self.encoders)
        return TextSizes(width, self.size_in("text_encoder_2", "projection_dim"))

    @property
    def tokens(self) -> int:
        """CLIP's."""
        return int(self._tokenizers["tokenizer"].model_max_length)

    def limits(self) -> dict[str, int]:
        """CLIP's tokens."""
        return dict.fromkeys(("tokenizer", "tokenizer_2"), self.tokens)

    def build_pipeline(self, parts: dict[str, Any]) -> DiffusionPipeline:
        """See :class:`PipelineTextEncoder`."""
        from diffusers import StableDiffusionXLPipeline

        rest = dict.fromkeys(("vae", "unet", "scheduler"))
        return StableDiffusionXLPipeline(**parts, **rest, add_watermarker=False)

    def encode_prompt(self, pipeline: Any, texts: list[str]) -> TextEmbeddings:
        """See :class:`PipelineTextEncoder`."""
        prompt, _, pooled, _ = pipeline.encode_prompt(texts, device=self._device, do_classifier_free_guidance=False)
        if self._empty_is_zero:
            empty = torch.tensor([text == "" for text in texts], device=prompt.device)
            prompt, pooled = _zeros_where(empty, prompt), _zeros_where(empty, pooled)
        return TextEmbeddings(prompt, pooled)


class StableDiffusion3TextEncoder(PipelineTextEncoder):
    """Stable Diffusion 3 and 3.5: two CLIPs, padded to T5's width, then T5; both CLIPs' pooled texts side by side.

    T5 may be absent, as null in ``model_index.json``: its tokens are zeros then.

    Args:
        folder: The pipeline's.
        index: Its ``model_index.json``.
        device: Where the encoders run.
        precision: Of their weights and computation.
        tokens: CLIP's and T5's together.

    Raises:
        UserError: A part is missing or damaged; or there are too few tokens for T5, or CLIP's are wider than T5's.
    """

    family = "StableDiffusion3"

    def __init__(
        self, folder: Path, index: dict[str, Any], *, device: torch.device, precision: Precision, tokens: int
    ) -> None:
        self._has_t5 = _is_given(index, "text_encoder_3")
        self.encoders = ("text_encoder", "text_encoder_2", *(("text_encoder_3",) if self._has_t5 else ()))
        super().__init__(folder, index, device=device, precision=precision)
        self._clip_tokens = int(self._tokenizers["tokenizer"].model_max_length)
        self._t5_tokens = tokens - self._clip_tokens
        if self._t5_tokens < 1:
            raise UserError(
                f"{tokens} text tokens are too few: the first {self._clip_tokens} are CLIP's, and T5 needs at least one"
            )
        if (clip := sum(self.size_in(name, "hidden_size") for name in self.encoders[:2])) > self.sizes.prompt:
            raise UserError(f"{folder}: the CLIPs' {clip} channels do not fit into T5's {self.sizes.prompt}")

    @property
    def settings(self) -> dict[str, object]:
        """What changes the embeddings beside the folder's files."""
        return super().settings | {"width": self.sizes.prompt}

    @functools.cached_property
    def sizes(self) -> TextSizes:
        """T5's width, and both CLIPs' projections.

        Raises:
            UserError: The folder has no T5, and its transformer does not say how wide the text is.
        """
        pooled = sum(self.size_in(name, "projection_dim") for name in ("text_encoder", "text_encoder_2"))
        if self._has_t5:
            return TextSizes(self.size_in("text_encoder_3", "d_model"), pooled)
        path = self._folder / "transformer" / "config.json"
        width = read_json(path).get("joint_attention_dim")
        if type(width) is not int:
            raise UserError(f"{path}: joint_attention_dim is {width!r}; expected the width of the zeros in T5's place")
        return TextSizes(width, pooled)

    @property
    def tokens(self) -> int:
        """CLIP's and T5's."""
        return self._clip_tokens + self._t5_tokens

    def limits(self) -> dict[str, int]:
        """CLIP's tokens, and T5's."""
        limits = dict.fromkeys(("tokenizer", "tokenizer_2"), self._clip_tokens)
        return limits | ({"tokenizer_3": self._t5_tokens} if self._has_t5 else {})

    def build_pipeline(self, parts: dict[str, Any]) -> DiffusionPipeline:
        """See :class:`PipelineTextEncoder`."""
        from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

        transformer = None
        if not self._has_t5:
            # The pipeline takes the width of T5's zeros from it, and no more.
            with torch.device("meta"):
                transformer = SD3Transformer2DModel(num_layers=1, joint_attention_dim=self.sizes.prompt)
            parts |= {"text_encoder_3": None, "tokenizer_3": None}
        return StableDiffusion3Pipeline(**parts, transformer=transformer, vae=None, scheduler=None)

    def encode_prompt(self, pipeline: Any, texts: list[str]) -> TextEmbeddings:
        """See :class:`PipelineTextEncoder`."""
        prompt, _, pooled, _ = pipeline.encode_prompt(
            texts,
            None,
            None,
            device=self._device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._t5_tokens,
        )
        return TextEmbeddings(prompt, pooled)


def load_text_encoder(
    folder: Path, *, device: torch.device, precision: Precision = "fp32", tokens: int | None = None
) -> TextEncoder:
    """Opens the text encoders of a diffusers pipeline's folder; no network, no code of its own, no pickles.

    Args:
        folder: With ``model_index.json`` of Stable Diffusion 1, 2, XL, 3 or 3.5 and the subfolders ``tokenizer*`` and
            ``text_encoder*``; it need not hold the other parts.
        device: Where the encoders run.
        precision: Of their weights and computation.
        tokens: T. For SD 3 and 3.5 CLIP's 77 and those of T5 together, :data:`SD3_TOKENS` by default; others have 77.

    Returns:
        The encoder, whose weights are loaded when the first text is encoded.

    Raises:
        MissingExtraError: transformers is not installed.
        UserError: The folder is missing or damaged, or of another family, or the family has other tokens.
    """
    require("transformers", extra=EXTRA)
    index = read_json(folder / _INDEX)
    pipeline = str(index.get("_class_name"))
    if pipeline.startswith("StableDiffusion3"):
        return StableDiffusion3TextEncoder(
            folder, index, device=device, precision=precision, tokens=SD3_TOKENS if tokens is None else tokens
        )
    if pipeline.startswith("StableDiffusion"):
        cls = StableDiffusionXLTextEncoder if "text_encoder_2" in index else StableDiffusionTextEncoder
        encoder = cls(folder, index, device=device, precision=precision)
        if tokens not in (None, encoder.tokens):
            raise UserError(
                f"{folder}: {encoder.family} has {encoder.tokens} text tokens, {tokens} were asked for, as many as the "
                "model is trained with (model.text_tokens); give the encoder of the model's own family"
            )
        return encoder
    raise UserError(f"{folder / _INDEX} is of a {pipeline}; expected a pipeline of Stable Diffusion 1, 2, XL, 3 or 3.5")


def _is_given(index: dict[str, Any], name: str) -> bool:
    return bool(index.get(name)) and index[name] != [None, None]


def _class_of(index: dict[str, Any], name: str, known: frozenset[str], folder: Path) -> str:
    if not _is_given(index, name):
        raise UserError(f"{folder / _INDEX} lists no {name}")
    cls = index[name][-1] if isinstance(index[name], list) else None
    if cls not in known:
        raise UserError(
            f"{folder / _INDEX}: {name} is {index[name]}; expected one of transformers' {', '.join(sorted(known))}"
        )
    return str(cls)


def _zeros_where(empty: Tensor, embeddings: Tensor) -> Tensor:
    return embeddings.masked_fill(empty.view(-1, *[1] * (embeddings.ndim - 1)), 0.0)


@contextmanager
def _truncation_unreported() -> Iterator[None]:
    """Silences a warning of diffusers and transformers for each text that is cut: `too_long` tells which are."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
