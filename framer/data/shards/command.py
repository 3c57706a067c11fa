"""The command ``framer shard``."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.errors import UserError

HELP = "Make training pairs beforehand, as shards that data.train takes; or verify them."

_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--config", help="YAML file of a training run, whose photographs and section data are used")
    parser.add_argument(
        "--output", type=Path, help="folder of the shards; run again with it, an interrupted command goes on"
    )
    parser.add_argument("--samples", type=int, help="how many samples of the run's stream to write")
    parser.add_argument("--shard-size", type=parse_size, default="256MB", help="size of a shard, default 256MB")
    parser.add_argument("--workers", type=int, help="processes that make samples; data.workers by default")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="compare the hashes of all shards in a folder")
    parser.add_argument(
        "--preview",
        type=Path,
        metavar="PNG",
        help="write a picture of what every degradation makes of some of the photographs, and nothing else",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.crop_size=512")


def run(arguments: argparse.Namespace) -> int:
    """Writes or verifies shards; the exit status."""
    if arguments.verify is not None:
        from framer.data.shards.verify import verify_shards

        folder = arguments.verify.expanduser()
        manifest = verify_shards(folder)
        sys.stdout.write(f"{folder}: {manifest.samples} samples in {len(manifest.shards)} shards are intact\n")
        return 0
    if arguments.preview is not None:
        if arguments.config is None:
            raise UserError("--preview needs --config, whose photographs, seed, data.crop_size and data.scale it uses")
        return _write_preview(
            arguments.preview.expanduser(), load_config(TrainConfig, arguments.config, arguments.overrides)
        )
    if arguments.config is None or arguments.output is None or arguments.samples is None:
        raise UserError("give --config, --output and --samples to write shards, or --verify to check them")
    if arguments.samples < 1:
        raise UserError(f"--samples must be at least 1, got {arguments.samples}")
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers must not be negative, got {arguments.workers}")
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    from framer.data.shards.writer import write_shards
    from framer.data.sources import open_photographs

    folder = arguments.output.expanduser()
    manifest = write_shards(
        open_photographs(config.data, seed=config.seed),
        folder,
        crop_size=config.data.crop_size,
        samples=arguments.samples,
        shard_size=arguments.shard_size,
        workers=config.data.workers if arguments.workers is None else arguments.workers,
    )
    size = sum(shard.bytes for shard in manifest.shards)
    sys.stdout.write(f"{folder}: {manifest.samples} samples in {len(manifest.shards)} shards, {size / 1e6:.1f} MB\n")
    return 0


def _write_preview(path: Path, config: TrainConfig) -> int:
    from framer.data.preview import write_preview
    from framer.data.sources import photograph_files

    shown = write_preview(
        path,
        photograph_files(config.data),
        crop_size=config.data.crop_size,
        scale=config.data.scale,
        seed=config.seed,
    )
    sys.stdout.write(f"{path}: {shown}\n")
    return 0


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
