"""The restoring model as a diffusers pipeline."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from framer.config.architecture import SD3Architecture, UNetArchitecture
from framer.errors import UserError
from framer.files import write_text, writing
from framer.inference.colour import ColourFix
from framer.inference.load import Precision, load_restoring_model, parse_settings, restoring_model
from framer.inference.pictures import Picture, image_of, picture_of
from framer.inference.prompts import Prompts
from framer.inference.restore import Prompt
from framer.inference.tiled_latents import AutoencoderTiles
from framer.inference.upscale import Upscaler
from framer.models.backbones import backbone_for
from framer.models.controlled import ControlledModel
from framer.models.latents import VaeLatents
from framer.models.restoration import RESTORATION_FILE
from framer.models.restoration_model import RestorationModel
from framer.models.text import POOLED, PROMPT, TextEmbeddings, TextSizes, check_tokens
from framer.models.text_encoders import TextEncoder, load_text_encoder
from framer.objectives import OneStep

ImageInput = Image.Image | npt.NDArray[Any] | Tensor
OutputType = Literal["pil", "np", "pt"]

_MODEL, _PRETRAINED, _VAE, _TEXT_FILE = "model", "pretrained", "vae", "text_embeddings.safetensors"


class FramerUpscalePipeline(DiffusionPipeline):
    """Upscales images; what ``framer upscale`` does, in memory.

    Args:
        model: The model that a run exported, or a ControlNet with its frozen model.
        vae: The autoencoder, where the model diffuses its latents.
        settings: As the export's ``restoration.json`` has them; needed.
        text: The text embeddings that the model sees where there is no prompt; zeros by default.
        text_encoder: Encodes prompts; where there is none, prompts come as embeddings.

    Raises:
        UserError: The settings are missing or do not fit.
    """

    model_cpu_offload_seq = "model->vae"
    _optional_components = ["vae"]  # noqa: RUF012 (as diffusers declares it)

    def __init__(
        self,
        model: nn.Module,
        vae: nn.Module | None = None,
        settings: Mapping[str, Any] | None = None,
        text: TextEmbeddings | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        if settings is None:
            raise UserError(f"the settings of the export's {RESTORATION_FILE} are needed; load it with from_export")
        if settings.get("latents") == "vae" and vae is None:
            raise UserError("the model diffuses the latents of an autoencoder; give vae")
        self.register_modules(model=model, vae=vae)
        self.register_to_config(settings=dict(settings))
        # Folders by name only: nothing is read from them again.
        parsed = parse_settings({**settings, "text_embeddings": None, "null_text": None}, Path(_MODEL), moved={})
        own = model.module if isinstance(model, ControlledModel) else model
        architecture = UNetArchitecture() if isinstance(own, UNet2DConditionModel) else SD3Architecture()
        config = parsed.model.model_copy(update={"pretrained": None, "architecture": architecture})
        latents = None if vae is None else backbone_for(config).latents_seen(VaeLatents(vae))
        restoration = RestorationModel(model, config, self.device, latents=latents)
        if text is not None:
            restoration.text = text
        self._restoring = restoring_model(restoration, settings, parsed)
        self._text_encoder = text_encoder

    @classmethod
    def from_export(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        precision: Precision | None = None,
        text_encoder: str | os.PathLike[str] | None = None,
        vae: str | None = None,
        text_embeddings: str | None = None,
        pretrained: str | None = None,
    ) -> Self:
        """Loads what a run exported.

        Args:
            folder: The export, or ``base``: the bundled model.
            device: Where the model goes.
            precision: Of model and autoencoder; by default float32, and the autoencoder's as in training.
            text_encoder: A diffusers pipeline's folder, to encode prompts.
            vae: The autoencoder's folder, where it is no longer where it was in training.
            text_embeddings: The file of text embeddings, likewise.
            pretrained: The folder of the model that a ControlNet was trained beside, likewise.

        Raises:
            UserError: A file is missing, damaged or does not fit.
        """
        loaded = load_restoring_model(
            os.fspath(folder),
            device=device,
            precision=precision,
            vae=vae,
            text_embeddings=text_embeddings,
            pretrained=pretrained,
        )
        encoder = None
        if text_encoder is not None:
            encoder = load_text_encoder(
                Path(text_encoder).expanduser(),
                device=torch.device(device),
                precision=precision or "fp32",
                tokens=loaded.text_tokens,
            )
        restoration = loaded.restoration
        return cls(restoration.model, restoration.latents.vae, loaded.settings, restoration.text, encoder)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Loads what :meth:`save_pretrained` wrote, or an export; nothing is downloaded.

        Args:
            pretrained_model_name_or_path: The folder.
            options: As :meth:`from_export` takes them; also ``torch_dtype``, float32 or bfloat16.

        Raises:
            UserError: A file is missing, damaged or does not fit.
        """
        folder = Path(pretrained_model_name_or_path).expanduser()
        dtype = options.pop("torch_dtype", None)
        if dtype is not None:
            names: dict[object, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16"}
            if dtype not in names:
                raise UserError(f"torch_dtype {dtype}: expected torch.float32 or torch.bfloat16")
            options["precision"] = names[dtype]
        if not (folder / _MODEL / RESTORATION_FILE).is_file():
            return cls.from_export(folder, **options)
        for name, part in (("vae", _VAE), ("text_embeddings", _TEXT_FILE), ("pretrained", _PRETRAINED)):
            if (folder / part).exists():
                options.setdefault(name, str(folder / part))
        return cls.from_export(folder / _MODEL, **options)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Writes a folder that :meth:`from_pretrained` loads, autoencoder and text embeddings included.

        Args:
            save_directory: The folder; its ``model`` is an export as a run writes it.
            options: For diffusers' ``save_pretrained`` of each part, such as ``max_shard_size``.

        Raises:
            UserError: The folder cannot be written to.
        """
        folder = Path(save_directory).expanduser()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(self.model, ControlledModel):
                self.model.controlnet.save_pretrained(folder / _MODEL, **options)
                self.model.module.save_pretrained(folder / _PRETRAINED, **options)
            else:
                self.model.save_pretrained(folder / _MODEL, **options)
            if self.vae is not None:
                self.vae.save_pretrained(folder / _VAE, **options)
            text = self._restoring.restoration.text
            tensors = {PROMPT: text.prompt, **({} if text.pooled is None else {POOLED: text.pooled})}
            save_file({name: value.contiguous() for name, value in tensors.items()}, folder / _TEXT_FILE)
            self.save_config(folder)
        write_text(folder / _MODEL / RESTORATION_FILE, json.dumps(self._restoring.settings, indent=2) + "\n")

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        *,
        num_inference_steps: int | None = None,
        scale: int | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str = "",
        guidance_scale: float = 1.0,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        seed: int = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        start: Literal["noise", "lr"] = "noise",
        strength: float = 1.0,
        colour_fix: ColourFix = "none",
        tile: int | None = None,
        tile_overlap: float = 0.25,
        tile_batch: int = 4,
        vae_tiles: AutoencoderTiles | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Upscales images one by one; they may differ in size.

        Args:
            image: One or several: of Pillow, 8 bits a sample; arrays ``[H, W]``, ``[H, W, 3]`` or ``[B, H, W, 3]``,
                uint8, or floats in [0, 1]; tensors ``[3, H, W]`` or ``[B, 3, H, W]``, likewise.
            num_inference_steps: By default those of the model's own evaluation; a model that restores in one step has
                no other.
            scale: Factor; by default the one that the model was trained for.
            prompt: One for all images, or one for each; needs a text encoder.
            negative_prompt: What images should not be like.
            guidance_scale: Classifier-free guidance; 1 is without.
            prompt_embeds: In the place of ``prompt``, for all images, ``[T, D]`` or ``[1, T, D]``.
            pooled_prompt_embeds: Likewise, ``[P]`` or ``[1, P]``.
            negative_prompt_embeds: In the place of ``negative_prompt``.
            negative_pooled_prompt_embeds: Likewise.
            seed: Of the initial noise, the same for each image: what it becomes does not depend on the others.
            generator: In the place of ``seed``: each image's seed is drawn from it, or from its own of a list.
            start: What sampling starts from: ``noise``, or ``lr``, the image under noise.
            strength: With ``lr``: how much noise, above 0, up to 1.
            colour_fix: ``adain``, ``wavelet`` or ``none``.
            tile: Height and width of a tile in pixels; by default what the model was trained at.
            tile_overlap: Part of a tile that its neighbour covers too.
            tile_batch: Tiles that the model sees at once.
            vae_tiles: How the autoencoder's images are cut.
            output_type: ``pil``, images with the transparency and the greyness that they had; ``np``, float32
                ``[B, H, W, 3]`` in [0, 1]; ``pt``, float32 ``[B, 3, H, W]``; of images that differ in size a list.
            return_dict: Whether an :class:`ImagePipelineOutput` is returned, or a tuple of the images.

        Raises:
            UserError: An argument is out of range, or does not fit the model or the images.
        """
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type {output_type!r}: expected pil, np or pt")
        if start not in ("noise", "lr"):
            raise UserError(f"start {start!r}: expected noise or lr")
        pictures = _pictures(image)
        seeds = _seeds(seed, generator, len(pictures))
        sizes, tokens = self._restoring.text_sizes, self._restoring.text_tokens
        embeddings = (
            _embeddings("", prompt_embeds, pooled_prompt_embeds, sizes, tokens),
            _embeddings("negative_", negative_prompt_embeds, negative_pooled_prompt_embeds, sizes, tokens),
        )
        prompts = self._prompts(prompt, negative_prompt, guidance_scale, embeddings, len(pictures))
        restorer = self._restoring.restorer(
            device=self._execution_device,
            num_inference_steps=num_inference_steps,
            tile=tile,
            tile_overlap=tile_overlap,
            tile_batch=tile_batch,
            autoencoder_tiles=vae_tiles or AutoencoderTiles(),
            start_from_image=start == "lr" and not isinstance(self._restoring.objective, OneStep),
            strength=strength,
        )
        upscaler = Upscaler(restorer, self._restoring.scale if scale is None else scale, colour_fix)
        tiles = sum(upscaler.tiles(*picture.colour.shape[:2]) for picture in pictures)
        with self.progress_bar(total=tiles * restorer.num_inference_steps) as bar:
            results = [
                upscaler.picture(picture, seed=own, prompt=text, on_tiles=bar.update)
                for picture, own, text in zip(pictures, seeds, prompts, strict=True)
            ]
        images = _as(output_type, results)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _prompts(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str,
        guidance_scale: float,
        embeddings: tuple[TextEmbeddings | None, TextEmbeddings | None],
        count: int,
    ) -> list[Prompt | None]:
        given, negative = embeddings
        if prompt is None:
            if negative_prompt:
                raise UserError("negative_prompt has no effect without prompt; give negative_prompt_embeds")
            if guidance_scale == 1 and negative is not None:
                raise UserError("negative_prompt_embeds has no effect without a guidance_scale other than 1")
            if given is None and guidance_scale == 1:
                return [None] * count
            own = Prompt(given or self._restoring.restoration.text, negative, guidance_scale)
            own.check()
            return [own] * count
        if given is not None or negative is not None:
            raise UserError("give prompt or prompt_embeds, not both")
        if guidance_scale == 1 and negative_prompt:
            raise UserError("negative_prompt has no effect without a guidance_scale other than 1")
        if self._text_encoder is None:
            raise UserError(
                "a prompt needs a text encoder; load the pipeline with text_encoder=FOLDER, or give prompt_embeds"
            )
        texts = [prompt] * count if isinstance(prompt, str) else list(prompt)
        if len(texts) != count:
            raise UserError(f"{len(texts)} prompts for {count} images; give one, or one for each")
        model = self._restoring
        prompts = Prompts(
            self._text_encoder.encode, model.text_sizes, model.text_tokens, guidance_scale, negative_prompt
        )
        return [prompts.of(text) for text in texts]


def _embeddings(
    prefix: str, prompt: Tensor | None, pooled: Tensor | None, sizes: TextSizes, tokens: int | None
) -> TextEmbeddings | None:
    """Of one text, as a model of these sizes and tokens takes them; ``prefix`` is of the arguments' names."""
    names = f"{prefix}prompt_embeds", f"{prefix}pooled_prompt_embeds"
    if prompt is None:
        if pooled is not None:
            raise UserError(f"{names[1]} has no effect without {names[0]}")
        return None
    if pooled is None and sizes.pooled is not None:
        raise UserError(f"{names[0]} without {names[1]}: the model takes both, the latter of {sizes.pooled} channels")
    for name, value, ndim, channels in ((names[0], prompt, 2, sizes.prompt), (names[1], pooled, 1, sizes.pooled)):
        if value is None or channels is None:
            continue
        one = value.ndim == ndim or (value.ndim == ndim + 1 and len(value) == 1)
        if not one or value.shape[-1] != channels or not value.numel():
            expected = f"[T, {channels}]" if ndim == 2 else f"[{channels}]"
            raise UserError(f"{name} of shape {list(value.shape)}: expected those of one text, {expected}")
    text = TextEmbeddings(prompt.reshape(prompt.shape[-2:]), None if pooled is None else pooled.reshape(-1))
    check_tokens(text, tokens, name=names[0])
    return text


def _seeds(seed: int, generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    if generator is None:
        if seed < 0:
            raise UserError(f"seed must not be negative, got {seed}")
        return [seed] * count
    generators = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != count:
        raise UserError(f"{len(generators)} generators for {count} images; give one, or one for each")
    return [int(torch.randint(2**31, (1,), generator=own, device=own.device)) for own in generators]


def _pictures(image: ImageInput | Sequence[ImageInput]) -> list[Picture]:
    given = [image] if isinstance(image, Image.Image | np.ndarray | Tensor) else list(image)
    if not given:
        raise UserError("there is no image to upscale")
    pictures = [picture for one in given for picture in _pictures_of(one)]
    if not pictures:
        raise UserError("there is no image to upscale")
    return pictures


def _pictures_of(image: ImageInput) -> list[Picture]:
    if isinstance(image, Image.Image):
        if not all(image.size):
            raise UserError(f"an image of {image.width}x{image.height} pixels: expected at least one")
        return [picture_of(image)]
    shape = list(image.shape)
    if isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3:
            raise UserError(f"an image tensor of shape {shape}: expected [3, H, W] or [B, 3, H, W]")
        image = image.detach().movedim(-3, -1).cpu()
        array: npt.NDArray[Any] = (image.float() if image.is_floating_point() else image).numpy()
    else:
        array = image
    if 0 in array.shape[-3 if array.ndim > 2 else 0 :]:
        raise UserError(f"an image of shape {shape} has no pixels: expected at least one a side")
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / np.float32(255)
    if array.dtype.kind != "f" or not bool(((array >= 0) & (array <= 1)).all()):
        raise UserError(f"an image of {array.dtype} samples: expected uint8, or floats in [0, 1]")
    array = array.astype(np.float32)
    if array.ndim == 2:
        return [Picture(np.repeat(array[..., None], 3, axis=2), grey=True)]
    if array.ndim not in (3, 4) or array.shape[-1] != 3:
        raise UserError(f"an image array of shape {list(array.shape)}: expected [H, W], [H, W, 3] or [B, H, W, 3]")
    return [Picture(np.ascontiguousarray(one)) for one in (array[None] if array.ndim == 3 else array)]


def _as(output_type: OutputType, pictures: Sequence[Picture]) -> Any:
    if output_type == "pil":
        return [image_of(picture) for picture in pictures]
    arrays: list[Any] = [picture.colour for picture in pictures]
    same = len({array.shape for array in arrays}) == 1
    if output_type == "np":
        return np.stack(arrays) if same else arrays
    tensors = [torch.from_numpy(array).permute(2, 0, 1).contiguous() for array in arrays]
    return torch.stack(tensors) if same else tensors
