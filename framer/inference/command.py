"""The command ``framer upscale``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from framer.errors import UserError

if TYPE_CHECKING:
    from framer.inference.jobs import Job
    from framer.inference.load import RestoringModel
    from framer.inference.restore import Prompt
    from framer.inference.upscale import Upscaler

HELP = "Upscale images with a trained model."

EXIT_SOME_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="image files, and folders of them")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the results; for a single image also its file"
    )
    parser.add_argument(
        "--model",
        default="base",
        help="a run's export; 'base', the default, is the bundled small model",
    )
    parser.add_argument("--scale", type=int, help="factor; by default the one that the model was trained for")
    parser.add_argument("--steps", type=int, help="sampling steps; by default those of the model's own evaluation")
    parser.add_argument("--tile", type=int, help="height and width of a tile in pixels; by default as in training")
    parser.add_argument(
        "--tile-overlap", type=float, default=0.25, help="part of a tile that its neighbour covers too, default 0.25"
    )
    parser.add_argument("--tile-batch", type=int, default=4, help="tiles that the model sees at once, default 4")
    parser.add_argument(
        "--vae-tile", type=int, default=1024, help="tile that the autoencoder encodes, in pixels, default 1024"
    )
    parser.add_argument(
        "--vae-decoder-tile", type=int, default=224, help="tile that it decodes, in latent pixels, default 224"
    )
    parser.add_argument(
        "--vae-shared-statistics",
        action="store_true",
        help="normalise the autoencoder's tiles alike, so that they differ less in tone; takes it twice the time",
    )
    parser.add_argument("--vae", metavar="FOLDER", help="the autoencoder, where it is not where it was in training")
    parser.add_argument(
        "--pretrained", metavar="FOLDER", help="the model that a ControlNet was trained beside, likewise"
    )
    parser.add_argument("--text-embeddings", metavar="FILE", help="the text embeddings of training, likewise")
    parser.add_argument("--text-encoder", type=Path, metavar="FOLDER", help="diffusers pipeline that encodes prompts")
    parser.add_argument("--prompt", help="text that all images are restored with")
    parser.add_argument(
        "--prompts", type=Path, metavar="FOLDER", help="texts by name: FOLDER/a/b.txt for the image a/b.png"
    )
    parser.add_argument("--negative-prompt", default="", help="what images should not be like, default the empty text")
    parser.add_argument(
        "--guidance-scale", type=float, default=1.0, help="classifier-free guidance; 1, the default, is without"
    )
    parser.add_argument(
        "--start", choices=("lr", "noise"), help="what sampling starts from: noise (the default), or the image under it"
    )
    parser.add_argument("--strength", type=float, default=1.0, help="with --start lr: how much noise, above 0, up to 1")
    parser.add_argument(
        "--colour-fix",
        choices=("adain", "wavelet", "none"),
        default="none",
        help="keep the input's colours, default none",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the initial noise, default 0")
    parser.add_argument("--device", help="for example cpu or cuda:1; by default a GPU where there is one")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="of all models; by default fp32, and the autoencoder's as in training",
    )
    parser.add_argument(
        "--format", choices=("png", "jpg", "webp", "bmp", "tif"), help="of the results; by default each input's own"
    )
    parser.add_argument("--overwrite", action="store_true", help="make results that are there already once more")


def run(arguments: argparse.Namespace) -> int:
    """Upscales the images; the exit status is 1 where some could not be."""
    from framer.inference.jobs import plan_jobs

    if arguments.seed < 0:
        raise UserError(f"--seed must not be negative, got {arguments.seed}")
    _check_texts(arguments)
    suffix = None if arguments.format is None else f".{arguments.format}"
    output = arguments.output.expanduser()
    jobs = plan_jobs([path.expanduser() for path in arguments.inputs], output, suffix=suffix)
    pending = [job for job in jobs if arguments.overwrite or not job.output.exists()]
    failures = upscale_jobs(pending, arguments) if pending else []
    _report(len(jobs), len(pending), failures)
    return EXIT_SOME_FAILED if failures else 0


def _check_texts(arguments: argparse.Namespace) -> None:
    """Refuses options of texts that have no effect, before anything is loaded."""
    texts = [arguments.prompt, arguments.prompts]
    if None not in texts:
        raise UserError("--prompt and --prompts: give one of them")
    if any(text is not None for text in texts):
        if arguments.text_encoder is None:
            raise UserError("a prompt must be encoded: give --text-encoder, a diffusers pipeline's folder")
        return
    for option, unused in (("guidance_scale", 1.0), ("negative_prompt", ""), ("text_encoder", None)):
        if getattr(arguments, option) != unused:
            raise UserError(f"--{option.replace('_', '-')} has no effect without --prompt or --prompts")


def upscale_jobs(jobs: Sequence[Job], arguments: argparse.Namespace) -> list[str]:
    """Upscales files one by one; what could not be, with its reason."""
    from framer.data.images import ImageError
    from framer.inference.pictures import read_size
    from framer.inference.progress import Progress

    model = _load(arguments)
    upscaler = _upscaler(model, arguments)
    prompt_of = _prompts(model, jobs, arguments)
    for folder in {job.output.parent for job in jobs}:
        _make_folder(folder)
    steps, tiles = upscaler.restorer.num_inference_steps, {}
    for job in jobs:
        try:
            tiles[job] = upscaler.tiles(*read_size(job.source)) * steps
        except ImageError:
            tiles[job] = 0  # found again, and told, in its turn
    progress, failures = Progress(len(jobs), sum(tiles.values())), []
    for job in jobs:
        try:
            line = _upscale(job, upscaler, prompt_of, seed=arguments.seed, on_tiles=progress.add_tiles)
        except _FileError as error:
            failures.append(str(error))
            line = f"failed: {error}"
        progress.finish_image(line, tiles=tiles[job])
    return failures


class _FileError(UserError):
    """One file cannot be upscaled; the others can."""


def _upscale(
    job: Job,
    upscaler: Upscaler,
    prompt_of: Callable[[Job], Prompt | None],
    *,
    seed: int,
    on_tiles: Callable[[int], None],
) -> str:
    """Reads, upscales and writes a file; a line about it."""
    import torch

    from framer.inference.pictures import check_format, read_picture, write_picture

    try:
        picture = read_picture(job.source)
    except UserError as error:
        raise _FileError(str(error)) from error
    height, width = (side * upscaler.scale for side in picture.colour.shape[:2])
    try:
        check_format((height, width), job.output.suffix)
        larger = upscaler.picture(picture, seed=seed, prompt=prompt_of(job), on_tiles=on_tiles)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{job.source}: out of memory on the GPU; lower --tile-batch, --vae-tile and --vae-decoder-tile, or take "
            "--precision bf16"
        ) from error
    except UserError as error:
        raise _FileError(f"{job.source}: {error}") from error
    notes = [*larger.notes, *write_picture(job.output, larger)]
    return f"{job.output}: {width}x{height}" + "".join(f" ({note})" for note in notes)


def _load(arguments: argparse.Namespace) -> RestoringModel:
    from framer.inference.load import load_restoring_model

    return load_restoring_model(
        arguments.model,
        device=_device(arguments.device),
        precision=arguments.precision,
        vae=arguments.vae,
        text_embeddings=arguments.text_embeddings,
        pretrained=arguments.pretrained,
    )


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used: {error}") from None
    return name


def _upscaler(model: RestoringModel, arguments: argparse.Namespace) -> Upscaler:
    from framer.inference.tiled_latents import AutoencoderTiles
    from framer.inference.upscale import Upscaler
    from framer.objectives import OneStep

    one_step = isinstance(model.objective, OneStep)
    if one_step and arguments.start == "noise":
        raise UserError("--start noise: the model restores in one step from the image; leave it out")
    if arguments.scale is not None and arguments.scale != model.scale:
        sys.stderr.write(f"note: the model was trained for a factor of {model.scale}, not {arguments.scale}\n")
    restorer = model.restorer(
        device=model.restoration.device,
        num_inference_steps=arguments.steps,
        tile=arguments.tile,
        tile_overlap=arguments.tile_overlap,
        tile_batch=arguments.tile_batch,
        autoencoder_tiles=AutoencoderTiles(
            arguments.vae_tile, arguments.vae_decoder_tile, shared_statistics=arguments.vae_shared_statistics
        ),
        start_from_image=arguments.start == "lr" and not one_step,
        strength=arguments.strength,
    )
    return Upscaler(
        restorer, model.scale if arguments.scale is None else arguments.scale, colour_fix=arguments.colour_fix
    )


def _prompts(
    model: RestoringModel, jobs: Sequence[Job], arguments: argparse.Namespace
) -> Callable[[Job], Prompt | None]:
    if arguments.text_encoder is None:
        return lambda job: None
    from framer.inference.prompts import Prompts, read_prompts
    from framer.models.text_encoders import load_text_encoder

    texts = None if arguments.prompts is None else read_prompts(arguments.prompts.expanduser(), jobs)
    encoder = load_text_encoder(
        arguments.text_encoder.expanduser(), device=model.restoration.device, precision=arguments.precision or "fp32"
    )
    prompts = Prompts(encoder.encode, model.text_sizes, arguments.guidance_scale, arguments.negative_prompt)
    prompts.of("")  # an encoder for another model is refused before the first image
    return lambda job: prompts.of(arguments.prompt if texts is None else texts[job.key])


def _make_folder(folder: Path) -> None:
    from framer.files import writing

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _report(images: int, pending: int, failures: Sequence[str]) -> None:
    done = f"{pending - len(failures)} images upscaled"
    there = f", {images - pending} were there already (--overwrite makes them again)" if images > pending else ""
    failed = f", {len(failures)} failed" if failures else ""
    sys.stdout.write(f"{done}{there}{failed}\n")
    for failure in failures:
        sys.stderr.write(f"failed: {failure}\n")
