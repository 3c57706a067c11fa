"""The command ``framer prepare``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from framer.arguments import given_path, given_text
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.data.layouts.options import add_layout_arguments, check_layout_arguments, layout_source, layout_workers
from framer.errors import UserError

if TYPE_CHECKING:
    import torch

    from framer.data.layouts.pairs import LayoutPairs
    from framer.data.shards.latents import LatentEncoder
    from framer.data.shards.manifest import ShardManifest

HELP = "Make training pairs beforehand, or convert pairs, to shards that data.train takes; or verify them."

_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SHARD_SIZE: Final = 256 * 10**6
_DEVICE: Final = "cpu"
_MODES: Final = ("--verify", "--preview", "--evaluation-pairs")
"""What the command does in the place of writing shards."""
_OF_WRITING: Final = {
    **dict.fromkeys(("--output", "--samples", "--workers", "--licence", "--captions", "--text-encoder", "--vae")),
    **dict.fromkeys(("--latents-dtype", "--from", "--layout", "--degradation")),
    **dict.fromkeys(("--no-content-check", "--keep-latents"), False),
    "--shard-size": _SHARD_SIZE,
    "--device": _DEVICE,
}
"""Options that only the writing of shards follows, with their defaults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--config", type=given_text, help="YAML file of a training run, whose photographs and section data are used"
    )
    parser.add_argument(
        "--output", type=given_path, help="folder of the shards; run again with it, an interrupted command goes on"
    )
    parser.add_argument("--samples", type=int, help="how many samples of the run's stream to write")
    parser.add_argument("--shard-size", type=parse_size, default=_SHARD_SIZE, help="size of a shard, default 256MB")
    parser.add_argument(
        "--workers", type=int, help="processes that make samples; data.workers by default, 1 with --from"
    )
    parser.add_argument("--licence", metavar="TEXT", help="licence of your photographs, for the manifest")
    parser.add_argument(
        "--captions",
        type=given_text,
        metavar="FOLDER|null|model:FOLDER",
        help="text of each photograph: a folder of text files, empty, or what a Hugging Face captioner says",
    )
    parser.add_argument(
        "--text-encoder",
        type=given_path,
        metavar="FOLDER",
        help="diffusers pipeline whose text encoders embed the captions",
    )
    parser.add_argument(
        "--vae",
        type=given_path,
        metavar="FOLDER",
        help="diffusers AutoencoderKL whose latents are stored with each sample",
    )
    parser.add_argument("--latents-dtype", choices=("fp32", "fp16"), help="how latents are stored, default fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=_DEVICE, help="where the models run, default cpu")
    parser.add_argument(
        "--verify", type=given_path, metavar="FOLDER", help="compare the hashes of all shards and texts in a folder"
    )
    parser.add_argument(
        "--preview",
        type=given_path,
        metavar="PNG",
        help="write a picture of what every degradation makes of some of the photographs, and nothing else",
    )
    parser.add_argument(
        "--evaluation-pairs",
        type=given_path,
        metavar="FOLDER",
        help="write whole photographs of data.evaluation to FOLDER/hr and degraded ones to FOLDER/lr, and nothing else",
    )
    add_layout_arguments(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.crop_size=512")


def run(arguments: argparse.Namespace) -> int:
    """Writes or verifies shards, or shows degradations; the exit status."""
    _check_mode(arguments)
    if arguments.verify is not None:
        return _verify(arguments.verify.expanduser())
    if arguments.preview is not None:
        return _preview(arguments)
    if arguments.evaluation_pairs is not None:
        return _evaluation_pairs(arguments)
    _check(arguments)
    config = None if arguments.config is None else load_config(TrainConfig, arguments.config, arguments.overrides)
    folder: Path = arguments.output.expanduser()
    from framer.data.outputs import sole_writer
    from framer.data.shards.licences import UNKNOWN_LICENCE, stated_licence
    from framer.data.shards.writer import check_output

    with sole_writer(folder):
        earlier = check_output(folder)
        noted = None if earlier is None else stated_licence(earlier.licences)
        device = _device(arguments.device)
        encoder = _latent_encoder(arguments, device)
        if config is None:
            manifest = _write_layout(arguments, folder, encoder, device, noted)
        else:
            manifest = _write(arguments, config, folder, encoder, device, noted)
    size = sum(shard.bytes for shard in manifest.shards)
    sys.stdout.write(f"{folder}: {manifest.samples} samples in {len(manifest.shards)} shards, {size / 1e6:.1f} MB\n")
    if any(licence.licence == UNKNOWN_LICENCE for licence in manifest.licences):
        sys.stdout.write("the licence of the photographs is noted as unknown; --licence says it\n")
    if arguments.licence is not None and noted not in (None, arguments.licence):
        sys.stdout.write(f"--licence {arguments.licence} replaces the licence noted before, {noted}\n")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    check_layout_arguments(arguments)
    if arguments.source is None:
        if arguments.config is None or arguments.output is None or arguments.samples is None:
            raise UserError("give --config, --output and --samples to write shards, or --verify to check them")
        if arguments.samples < 1:
            raise UserError(f"--samples must be at least 1, got {arguments.samples}")
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers must not be negative, got {arguments.workers}")
    if arguments.text_encoder is not None and arguments.captions is None and arguments.source is None:
        raise UserError("--text-encoder embeds captions; give --captions too ('null' for empty texts)")
    if arguments.latents_dtype is not None and arguments.vae is None:
        raise UserError("--latents-dtype is of the latents that --vae stores; give --vae too")
    if arguments.licence is not None and not arguments.licence.strip():
        raise UserError("--licence must not be empty; leave it out where the licence is unknown")


def _check_mode(arguments: argparse.Namespace) -> None:
    """Refuses two things to do at once, and options of another one than is done."""
    modes = [mode for mode in _MODES if getattr(arguments, _attribute(mode)) is not None]
    if not modes:
        return
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)}: one command does one of these; give one alone")
    unused = [option for option, default in _OF_WRITING.items() if getattr(arguments, _attribute(option)) != default]
    if modes == ["--verify"]:
        unused += [*([] if arguments.config is None else ["--config"]), *arguments.overrides]
    if unused:
        raise UserError(f"{', '.join(unused)}: without effect on {modes[0]}; leave it away")


def _attribute(option: str) -> str:
    return "source" if option == "--from" else option.removeprefix("--").replace("-", "_")


def _verify(folder: Path) -> int:
    from framer.data.shards.manifest import TEXTS_FOLDER
    from framer.data.shards.reader import open_shard_texts
    from framer.data.shards.verify import verify_shards

    manifest = verify_shards(folder)
    texts = ""
    if manifest.texts is not None:
        from framer.data.texts.store import verify_text_store

        verify_text_store(folder / TEXTS_FOLDER)
        texts = f", and {len(open_shard_texts(folder, manifest.texts))} texts,"
    shards = f"{manifest.samples} samples in {len(manifest.shards)} shards"
    sys.stdout.write(f"{folder}: {shards}{texts} are intact\n")
    return 0


def _preview(arguments: argparse.Namespace) -> int:
    if arguments.config is None:
        raise UserError("--preview needs --config, whose photographs, seed, data.crop_size and data.scale it uses")
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    from framer.data.outputs import lies_in
    from framer.data.preview import write_preview
    from framer.data.sources import photograph_files, photograph_root

    path: Path = arguments.preview.expanduser()
    data = config.data
    photographs, root = photograph_files(data), photograph_root(data)
    if path.suffix.lower() != ".png":
        raise UserError(f"--preview {path}: expected a name that ends in .png")
    if path.resolve() in {photograph.resolve() for photograph in photographs} or (root and lies_in(path, root)):
        raise UserError(f"--preview {path} is a photograph or lies in the folder of the photographs; give another path")
    shown = write_preview(
        path,
        photographs,
        crop_size=data.crop_size,
        scale=data.scale,
        seed=config.seed,
        on_broken=data.on_broken,
    )
    sys.stdout.write(f"{path}: {shown}\n")
    return 0


def _evaluation_pairs(arguments: argparse.Namespace) -> int:
    if arguments.config is None:
        raise UserError(
            "--evaluation-pairs needs --config, whose data.evaluation, data.scale, data.degradation and "
            "evaluation.seed it uses"
        )
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    from framer.data.evaluation_pairs import HR_FOLDER, LR_FOLDER, write_evaluation_pairs
    from framer.data.sources import evaluation_files, evaluation_root

    folder: Path = arguments.evaluation_pairs.expanduser()
    pairs = write_evaluation_pairs(
        evaluation_files(config.data),
        folder,
        root=evaluation_root(config.data),
        scale=config.data.scale,
        degradation=config.data.degradation,
        seed=config.evaluation.seed,
    )
    sys.stdout.write(f"{folder}: {pairs} photographs in {HR_FOLDER}, the same degraded in {LR_FOLDER}\n")
    return 0


def _device(name: str) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this installation of torch finds no CUDA GPU; use --device cpu")
    return torch.device(name)


def _latent_encoder(arguments: argparse.Namespace, device: torch.device) -> LatentEncoder | None:
    if arguments.vae is None or arguments.keep_latents:
        return None
    from framer.data.shards.latents import LatentEncoder

    return LatentEncoder(arguments.vae.expanduser(), dtype=arguments.latents_dtype or "fp32", device=device)


def _write(
    arguments: argparse.Namespace,
    config: TrainConfig,
    folder: Path,
    encoder: LatentEncoder | None,
    device: torch.device,
    noted: str | None,
) -> ShardManifest:
    from framer.data.evaluation_photographs import check_apart, check_crops
    from framer.data.shards.licences import licences_of
    from framer.data.shards.manifest import TEXTS_FOLDER
    from framer.data.shards.stream_pairs import PhotographTexts, StreamPairs
    from framer.data.shards.writer import check_earlier, write_shards
    from framer.data.sources import evaluation_root, open_photographs, photograph_root

    root = photograph_root(config.data)
    if evaluation_root(config.data) is not None:
        check_crops(config)
    check_apart(config)
    if root is not None and root.resolve() == folder.resolve():
        raise UserError(f"--output {folder} is the folder of the photographs; give another one")
    photographs = open_photographs(config.data, seed=config.seed)
    kept = noted if root is not None and arguments.licence is None else arguments.licence
    licences = licences_of(photographs.paths, bundled=root is None, stated=kept)
    source = StreamPairs(photographs, samples=arguments.samples, licences=licences)
    if arguments.captions is not None:
        from framer.data.texts.prepare import captions_kind, prepare_texts

        kind = captions_kind(arguments.captions)

        def check(captions: Mapping[str, str], unknown: Collection[str] = ("texts",)) -> None:
            check_earlier(
                source.with_texts(PhotographTexts(captions, None, root, kind)),
                folder,
                crop_size=config.data.crop_size,
                shard_size=arguments.shard_size,
                encoder=encoder,
                unknown=unknown,
                embedded=arguments.text_encoder is not None,
            )

        # Before anything is captioned or encoded: texts would be written beside shards that are then refused.
        check({}, ("captions", "texts"))
        prepared = prepare_texts(
            photographs.paths,
            root,
            folder / TEXTS_FOLDER,
            captions=arguments.captions,
            encoder_folder=arguments.text_encoder,
            device=device,
            tokens=config.model.text_tokens if "text_tokens" in config.model.model_fields_set else None,
            before_encoding=check,
        )
        source = source.with_texts(PhotographTexts(prepared.captions, prepared.store, root, kind))
    return write_shards(
        source,
        folder,
        crop_size=config.data.crop_size,
        shard_size=arguments.shard_size,
        workers=config.data.workers if arguments.workers is None else arguments.workers,
        encoder=encoder,
    )


def _write_layout(
    arguments: argparse.Namespace,
    folder: Path,
    encoder: LatentEncoder | None,
    device: torch.device,
    noted: str | None,
) -> ShardManifest:
    from framer.data.shards.writer import check_earlier, write_shards

    def check(pairs: LayoutPairs, *, unknown: Collection[str], embedded: bool) -> None:
        check_earlier(
            pairs,
            folder,
            crop_size=pairs.crop_size,
            shard_size=arguments.shard_size,
            encoder=encoder,
            unknown=unknown,
            embedded=embedded,
        )

    licence = noted if arguments.licence is None else arguments.licence
    source = layout_source(arguments, folder, device, check, licence=licence)
    return write_shards(
        source,
        folder,
        crop_size=source.crop_size,
        shard_size=arguments.shard_size,
        workers=layout_workers(arguments),
        encoder=encoder,
    )


def parse_size(text: str) -> int:
    """Bytes that a text such as ``256MB`` means; units are powers of 1000.

    Raises:
        argparse.ArgumentTypeError: The text is no size, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 256MB or 1.5GB, got {text!r}")
    return size
