"""A checkpoint of one number of ranks, loaded by another: through DeepSpeed's universal checkpoints."""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from framer.errors import UserError
from framer.training.ranks import on_rank_zero, raise_on_all_ranks

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_FOLDER = ".unfinished-universal"


def load_universal(engine: DeepSpeedEngine, checkpoint: Path, scratch: Path) -> None:
    """Restores model and optimizer from a ZeRO checkpoint of another number of ranks; every rank must call it.

    Rank 0 converts it first, which takes about the checkpoint's size on disk twice over, and removes the conversion in
    the end.

    Args:
        engine: Freshly started, of the same ZeRO stage.
        checkpoint: A verified checkpoint.
        scratch: Folder for the conversion, on a disk that all ranks see.

    Raises:
        UserError: The optimizer state lives on NVMe, or the checkpoint cannot be converted or loaded.
    """
    if engine.zero_nvme_offload_optimizer():
        raise UserError(f"{checkpoint}: optimizer state on NVMe needs the number of ranks that saved it")
    parent = scratch / _FOLDER
    try:
        on_rank_zero(lambda: convert_to_universal(checkpoint, parent / checkpoint.name))
        failure: str | None = None
        wanted = engine._config.load_universal_checkpoint
        engine._config.load_universal_checkpoint = True
        try:
            path, _ = engine.load_checkpoint(str(parent), tag=checkpoint.name)
            failure = None if path is not None else "files are missing"
        except Exception as error:  # whatever DeepSpeed does not find or understand
            failure = f"{type(error).__name__}: {error}"
        finally:
            engine._config.load_universal_checkpoint = wanted
        raise_on_all_ranks(failure, f"cannot load {checkpoint} with another number of ranks")
    finally:
        on_rank_zero(lambda: shutil.rmtree(parent, ignore_errors=True))


def convert_to_universal(checkpoint: Path, folder: Path) -> None:
    """Writes a ZeRO checkpoint parameter by parameter, as DeepSpeed's universal checkpoints are.

    Args:
        checkpoint: Of any ZeRO stage but 0.
        folder: Made; DeepSpeed also writes a file into its parent.

    Raises:
        UserError: DeepSpeed cannot convert it, or the disk is full.
    """
    from deepspeed.checkpoint import ds_to_universal

    arguments = Namespace(
        input_folder=str(checkpoint),
        output_folder=str(folder),
        # In this process: worker processes would be forked from one that has joined the others.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(arguments)
    except Exception as error:  # whatever DeepSpeed does not find or understand
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"cannot convert {checkpoint} for another number of ranks: {error}") from error
