"""Comparing shards with the hashes of their manifest."""

from __future__ import annotations

from pathlib import Path

from framer.data.shards.manifest import ShardManifest, ShardRecord, read_manifest
from framer.errors import UserError
from framer.extras import require
from framer.files import file_sha256


def is_intact(folder: Path, shard: ShardRecord) -> bool:
    """Whether a shard and its index are there and have the right hashes."""
    return problem_of(folder, shard) is None


def problem_of(folder: Path, shard: ShardRecord) -> str | None:
    """What is wrong with a shard or its index, in words; None if they are as they were written."""
    files = ((shard.file, shard.bytes, shard.sha256), (shard.index_file, shard.index_bytes, shard.index_sha256))
    for name, size, sha256 in files:
        path = folder / name
        try:
            if (found := path.stat().st_size) != size:
                return f"{path}: {found} bytes instead of the {size} of the manifest"
            if file_sha256(path) != sha256:
                return f"{path}: the content is not what was written: its SHA-256 is not that of the manifest"
        except OSError as error:
            return f"{path}: {error.strerror or error}"
    return None


def verify_shards(folder: Path) -> ShardManifest:
    """Reads every byte of a folder of shards and compares the hashes.

    Returns:
        The manifest.

    Raises:
        UserError: The manifest is missing or damaged, or files are missing or changed; names each.
    """
    manifest = read_manifest(folder)
    shards = require("tqdm", extra="train").tqdm(manifest.shards, desc="verify", unit="shard")
    problems = [problem for shard in shards if (problem := problem_of(folder, shard)) is not None]
    if problems:
        listing = "\n  ".join(problems)
        raise UserError(
            f"{len(problems)} of {len(manifest.shards)} shards are damaged; run the same 'framer prepare' command "
            f"again to make them anew:\n  {listing}"
        )
    return manifest
