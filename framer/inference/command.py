"""The command ``framer upscale``."""

from __future__ import annotations

import argparse
import errno
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from framer.errors import UserError

if TYPE_CHECKING:
    from framer.inference.jobs import Job
    from framer.inference.load import RestoringModel
    from framer.inference.records import MadeFrom, Records
    from framer.inference.restore import Prompt
    from framer.inference.tiled_latents import AutoencoderTiles
    from framer.inference.upscale import Upscaler

HELP = "Upscale images with a trained model."

EXIT_SOME_FAILED = 1

_ENDS_THE_BATCH: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of writing a file that all further files would have too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("inputs", nargs="+", type=_path, metavar="INPUT", help="image files, and folders of them")
    parser.add_argument(
        "-o", "--output", type=_path, required=True, help="folder of the results; for a single image also its file"
    )
    parser.add_argument(
        "--model",
        type=_name,
        default="base",
        help="a run's export; 'base', the default, is the bundled small model",
    )
    parser.add_argument("--scale", type=int, help="factor; by default the one that the model was trained for")
    parser.add_argument(
        "--steps", type=int, help="sampling steps; by default those of the model's own evaluation, or its only one"
    )
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
    parser.add_argument(
        "--vae", type=_name, metavar="FOLDER", help="the autoencoder, where it is not where it was in training"
    )
    parser.add_argument(
        "--pretrained", type=_name, metavar="FOLDER", help="the model that a ControlNet was trained beside, likewise"
    )
    parser.add_argument(
        "--text-embeddings", type=_name, metavar="FILE", help="the text embeddings of training, likewise"
    )
    parser.add_argument(
        "--negative-text-embeddings",
        type=_path,
        metavar="FILE",
        help="for guidance without a prompt: text embeddings that the model is guided away from, towards those of "
        "training; an export's null_text.safetensors for example",
    )
    parser.add_argument("--text-encoder", type=_path, metavar="FOLDER", help="diffusers pipeline that encodes prompts")
    parser.add_argument("--prompt", help="text that all images are restored with")
    parser.add_argument(
        "--prompts", type=_path, metavar="FOLDER", help="texts by name: FOLDER/a/b.txt for the image a/b.png"
    )
    parser.add_argument(
        "--negative-prompt",
        default="",
        help="with a prompt and guidance: what images should not be like, default the empty text",
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        default=1.0,
        help="classifier-free guidance, with a prompt or --negative-text-embeddings; 1, the default, is without",
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
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="make results that are there already once more, and replace other files of their names",
    )


def _name(text: str) -> str:
    """What is left empty, such as by a variable of a shell that is not set, would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def _path(text: str) -> Path:
    return Path(_name(text))


def run(arguments: argparse.Namespace) -> int:
    """Upscales the images; the exit status is 1 where some could not be."""
    from framer.inference.jobs import plan_jobs

    if arguments.seed < 0:
        raise UserError(f"--seed must not be negative, got {arguments.seed}")
    _check_texts(arguments)
    suffix = None if arguments.format is None else f".{arguments.format}"
    output = arguments.output.expanduser()
    jobs = plan_jobs([path.expanduser() for path in arguments.inputs], output, suffix=suffix)
    pending, failures = upscale_jobs(jobs, arguments)
    _report(len(jobs), pending, failures)
    return EXIT_SOME_FAILED if failures else 0


def _check_texts(arguments: argparse.Namespace) -> None:
    """Refuses options of texts that have no effect, before anything is loaded."""
    if not math.isfinite(arguments.guidance_scale):
        raise UserError(f"--guidance-scale {arguments.guidance_scale}: expected a finite number")
    texts = [arguments.prompt, arguments.prompts]
    if None not in texts:
        raise UserError("--prompt and --prompts: give one of them")
    if any(text is not None for text in texts):
        if arguments.text_encoder is None:
            raise UserError("a prompt must be encoded: give --text-encoder, a diffusers pipeline's folder")
        if arguments.negative_text_embeddings is not None:
            raise UserError("--negative-text-embeddings is for guidance without a prompt; give --negative-prompt")
        if arguments.negative_prompt and arguments.guidance_scale == 1:
            raise UserError("--negative-prompt has no effect without a --guidance-scale other than 1")
        return
    if (arguments.guidance_scale != 1) != (arguments.negative_text_embeddings is not None):
        raise UserError(
            "guidance needs something to guide away from: without --prompt or --prompts, give --guidance-scale other "
            "than 1 and --negative-text-embeddings together, or neither"
        )
    for option, unused in (("negative_prompt", ""), ("text_encoder", None)):
        if getattr(arguments, option) != unused:
            raise UserError(f"--{option.replace('_', '-')} has no effect without --prompt or --prompts")


def upscale_jobs(jobs: Sequence[Job], arguments: argparse.Namespace) -> tuple[int, list[str]]:
    """Upscales files one by one.

    Returns:
        How many were not there yet; and which of them could not be upscaled, with the reason.
    """
    from framer.inference.pictures import read_size
    from framer.inference.progress import Progress
    from framer.inference.records import Records
    from framer.inference.tiled_latents import AutoencoderTiles

    autoencoder_tiles = AutoencoderTiles(
        arguments.vae_tile, arguments.vae_decoder_tile, shared_statistics=arguments.vae_shared_statistics
    )
    model = _load(arguments)
    upscaler = _upscaler(model, autoencoder_tiles, arguments)
    texts = _texts(model, jobs, arguments)
    making = _Making(upscaler, texts, Records(), model.fingerprint(), _settings(upscaler, arguments), arguments.seed)
    jobs = list(jobs) if arguments.overwrite else _pending(jobs, making)
    for folder in {job.output.parent for job in jobs}:
        _make_folder(folder)
    steps, tiles = upscaler.restorer.num_inference_steps, {}
    for job in jobs:
        try:
            size = read_size(job.source)
            _check_size(job, size, upscaler)
            tiles[job] = upscaler.tiles(*size) * steps
        except UserError:
            tiles[job] = 0  # found again, and told, in its turn
    progress, failures = Progress(len(jobs), sum(tiles.values())), []
    for job in jobs:
        try:
            line = _upscale(job, making, on_tiles=progress.add_tiles)
        except _FileError as error:
            failures.append(str(error))
            line = f"failed: {error}"
        progress.finish_image(line, tiles=tiles[job])
    return len(jobs), failures


class _FileError(UserError):
    """One file cannot be upscaled; the others can."""


class _Texts(NamedTuple):
    """The texts that images are restored with."""

    prompt_of: Callable[[Job], Prompt | None]
    settings_of: Callable[[Job], dict[str, Any]]
    """What the result depends on of them, by the names of the options."""


class _Making(NamedTuple):
    """What results are made with."""

    upscaler: Upscaler
    texts: _Texts
    records: Records
    model: str
    """The model's fingerprint."""
    settings: dict[str, Any]
    seed: int

    def made_from(self, job: Job) -> MadeFrom:
        """What a job's result depends on.

        Raises:
            OSError: The image cannot be read.
        """
        from framer.files import file_sha256
        from framer.inference.records import MadeFrom

        return MadeFrom(file_sha256(job.source), self.model, {**self.settings, **self.texts.settings_of(job)})


def _settings(upscaler: Upscaler, arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings that change a result, by the names of their options; how many tiles are seen at once does not."""
    restorer = upscaler.restorer
    autoencoder = {
        "vae-tile": arguments.vae_tile,
        "vae-decoder-tile": arguments.vae_decoder_tile,
        "vae-shared-statistics": arguments.vae_shared_statistics,
    }
    return {
        **({} if restorer.latents.vae is None else autoencoder),
        "scale": upscaler.scale,
        "steps": restorer.num_inference_steps,
        "tile": restorer.tile * restorer.latents.shape.downscale,
        "tile-overlap": restorer.tile_overlap,
        "start": "lr" if restorer.start_from_image else "noise",
        "strength": arguments.strength,
        "colour-fix": upscaler.colour_fix,
        "seed": arguments.seed,
        "precision": arguments.precision,
    }


def _pending(jobs: Sequence[Job], making: _Making) -> list[Job]:
    """Jobs whose result is not there.

    Raises:
        UserError: Other files are where results should be.
    """
    from framer.listing import some_of

    pending, problems = [], []
    for job in jobs:
        if not job.output.exists():
            pending.append(job)
            continue
        try:
            problem = making.records.problem(job.output, making.made_from(job))
        except OSError as error:
            problem = f"cannot be compared: {error}"
        if problem is not None:
            problems.append(f"{job.output} ({problem})")
    if problems:
        raise UserError(
            f"{len(problems)} files are there that are not these results; give another output, or --overwrite: "
            f"{some_of(problems, separator='; ')}"
        )
    return pending


def _check_size(job: Job, size: tuple[int, int], upscaler: Upscaler) -> None:
    """Refuses a result that the format cannot hold or that memory has no room for."""
    from framer.inference.memory import available_memory
    from framer.inference.pictures import check_format

    height, width = (side * upscaler.scale for side in size)
    check_format((height, width), job.output.suffix)
    needed, available = upscaler.memory(*size), available_memory()
    if needed > available:
        raise UserError(
            f"{width}x{height} pixels need about {needed / 2**30:.3g} GiB of memory, and {available / 2**30:.3g} are "
            "available; take a smaller --scale, or cut the image"
        )


def _upscale(job: Job, making: _Making, *, on_tiles: Callable[[int], None]) -> str:
    """Reads, upscales and writes a file; a line about it."""
    import torch

    from framer.files import write_bytes
    from framer.inference.memory import is_out_of_memory
    from framer.inference.pictures import encode_picture, read_picture

    upscaler = making.upscaler
    try:
        made_from, picture = making.made_from(job), read_picture(job.source)
    except OSError as error:
        raise _FileError(f"{job.source}: cannot be read: {error.strerror or error}") from error
    except UserError as error:
        raise _FileError(str(error)) from error
    except MemoryError as error:
        raise _FileError(f"{job.source}: there is not enough memory to read it") from error
    height, width = (side * upscaler.scale for side in picture.colour.shape[:2])
    try:
        _check_size(job, (picture.colour.shape[0], picture.colour.shape[1]), upscaler)
        larger = upscaler.picture(picture, seed=making.seed, prompt=making.texts.prompt_of(job), on_tiles=on_tiles)
        content, notes = encode_picture(larger, job.output.suffix)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{job.source}: out of memory on the GPU; lower --tile-batch, --vae-tile and --vae-decoder-tile, or take "
            "--precision bf16"
        ) from error
    except UserError as error:
        raise _FileError(f"{job.source}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise _FileError(f"{job.source}: there is not enough memory for {width}x{height} pixels") from error
    try:
        making.records.add(job.output, content, made_from)
        write_bytes(job.output, content)
    except UserError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _ENDS_THE_BATCH:
            raise
        raise _FileError(str(error)) from error
    return f"{job.output}: {width}x{height}" + "".join(f" ({note})" for note in [*larger.notes, *notes])


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
        torch.zeros(1, device=name).item()  # which meta, that computes nothing, cannot tell
    except (RuntimeError, AssertionError, ImportError) as error:
        why = str(error).splitlines()[0].split(". ")[0]  # torch goes on with lists of backends
        raise UserError(f"--device {name} cannot be used: {why}") from None
    return name


def _upscaler(model: RestoringModel, autoencoder_tiles: AutoencoderTiles, arguments: argparse.Namespace) -> Upscaler:
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
        autoencoder_tiles=autoencoder_tiles,
        start_from_image=arguments.start == "lr" and not one_step,
        strength=arguments.strength,
    )
    return Upscaler(
        restorer, model.scale if arguments.scale is None else arguments.scale, colour_fix=arguments.colour_fix
    )


def _texts(model: RestoringModel, jobs: Sequence[Job], arguments: argparse.Namespace) -> _Texts:
    if arguments.text_encoder is None:
        return _Texts(*_without_prompt(model, arguments))
    from framer.inference.prompts import Prompts, read_prompts
    from framer.models.text_encoders import load_text_encoder

    texts = None if arguments.prompts is None else read_prompts(arguments.prompts.expanduser(), jobs)
    encoder = load_text_encoder(
        arguments.text_encoder.expanduser(),
        device=model.restoration.device,
        precision=arguments.precision or "fp32",
        tokens=model.text_tokens,
    )
    prompts = Prompts(
        encoder.encode, model.text_sizes, model.text_tokens, arguments.guidance_scale, arguments.negative_prompt
    )
    prompts.of("")  # an encoder for another model is refused before the first image
    common = {"text-encoder": encoder.identity, "guidance-scale": arguments.guidance_scale}
    if arguments.guidance_scale != 1:
        common["negative-prompt"] = arguments.negative_prompt

    def text_of(job: Job) -> str:
        text: str = arguments.prompt if texts is None else texts[job.key]
        return text

    return _Texts(lambda job: prompts.of(text_of(job)), lambda job: {**common, "prompt": text_of(job)})


def _without_prompt(
    model: RestoringModel, arguments: argparse.Namespace
) -> tuple[Callable[[Job], Prompt | None], Callable[[Job], dict[str, Any]]]:
    """All images have the text of training, guided away from the one of a file where one is given."""
    from framer.files import file_sha256
    from framer.inference.restore import Prompt

    if arguments.negative_text_embeddings is None:
        return lambda job: None, lambda job: {"guidance-scale": 1.0}
    file = arguments.negative_text_embeddings.expanduser()
    own = Prompt(model.restoration.text, model.negative_text(file), arguments.guidance_scale)
    settings = {"guidance-scale": arguments.guidance_scale, "negative-text-embeddings": file_sha256(file)}
    return lambda job: own, lambda job: settings


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
