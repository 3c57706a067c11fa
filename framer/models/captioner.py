"""Models that describe a photograph in words."""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from framer.errors import UserError
from framer.extras import require
from framer.models.transformers_folders import (
    DTYPES,
    EXTRA,
    Precision,
    digest_of_folder,
    load_model,
    load_part,
    read_json,
)

CHAT_PROMPT: Final = "Describe this image in detail."
"""What a chat model such as LLaVA is asked, if nothing else is."""


class Captioner(ABC):
    """Describes photographs, one at a time."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What its captions depend on, whatever folder it lies in."""

    @abstractmethod
    def caption(self, image: npt.NDArray[np.uint8]) -> str:
        """The description of a photograph ``uint8 [H, W, 3]``."""


class ImageTextCaptioner(Captioner):
    """A model of transformers that reads an image and writes a text, such as BLIP and LLaVA.

    Decoding is greedy, and every photograph is a batch of its own: captions depend on the photograph and the identity
    alone, as far as the device computes alike. The weights are loaded when the first caption is asked for.

    Args:
        folder: As ``save_pretrained`` of model and processor write it.
        device: Where the model runs.
        precision: Of weights and computation.
        prompt: For a model whose processor has a chat template, what it is asked; for others, how the caption begins.
            None: :data:`CHAT_PROMPT`, or nothing.
        max_new_tokens: Length of a caption at most.

    Raises:
        MissingExtraError: transformers is not installed.
        UserError: The folder is missing or damaged, or holds a model of another kind.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        precision: Precision = "fp32",
        prompt: str | None = None,
        max_new_tokens: int = 256,
    ) -> None:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        read_json(folder / "config.json")
        self._folder = folder
        self._device = device
        self._precision: Precision = precision
        self._processor = load_part("AutoProcessor", folder)
        if not hasattr(self._processor, "tokenizer") or not hasattr(self._processor, "image_processor"):
            raise UserError(
                f"{folder} holds no model that describes images: its processor is a {type(self._processor).__name__}, "
                "and one that reads images and texts is needed, such as those of BLIP and LLaVA"
            )
        self._chats = getattr(self._processor, "chat_template", None) is not None
        self._prompt = CHAT_PROMPT if prompt is None and self._chats else prompt
        self._max_new_tokens = max_new_tokens

    @functools.cached_property
    def identity(self) -> str:
        """Hashes of the folder and what it is told."""
        files = digest_of_folder(self._folder, with_weights=True)
        parts = [files, self._precision, self._prompt, self._max_new_tokens]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @functools.cached_property
    def _model(self) -> Any:
        auto = require("transformers", extra=EXTRA).AutoModelForImageTextToText
        return load_model(auto, self._folder, precision=self._precision, device=self._device)

    @torch.no_grad()
    def caption(self, image: npt.NDArray[np.uint8]) -> str:
        """The description of a photograph ``uint8 [H, W, 3]``, without surrounding white space."""
        inputs = self._inputs(require("PIL.Image", extra="train").fromarray(image))
        written = self._model.generate(
            **inputs, do_sample=False, num_beams=1, num_return_sequences=1, max_new_tokens=self._max_new_tokens
        )[0]
        if self._chats:  # the question comes first
            written = written[inputs["input_ids"].shape[1] :]
        text: str = self._processor.tokenizer.decode(written, skip_special_tokens=True)
        return text.strip()

    def _inputs(self, image: Any) -> Any:
        if self._chats:
            question = [{"type": "image", "image": image}, {"type": "text", "text": self._prompt}]
            inputs = self._processor.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            text = {} if self._prompt is None else {"text": [self._prompt]}
            inputs = self._processor(images=[image], return_tensors="pt", **text)
        return inputs.to(self._device, DTYPES[self._precision])
