"""Comparing shards with the hashes of their manifest."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from framer.data.manifests import file_problem, verify_all
from framer.data.shards.manifest import ShardManifest, ShardRecord, read_manifest


def is_intact(folder: Path, shard: ShardRecord) -> bool:
    """Whether a shard and its index are there and have the right hashes."""
    return problem_of(folder, shard) is None


def problem_of(folder: Path, shard: ShardRecord) -> str | None:
    """What is wrong with a shard or its index, in words; None if they are as they were written."""
    return file_problem(folder / shard.file, size=shard.bytes, sha256=shard.sha256) or file_problem(
        folder / shard.index_file, size=shard.index_bytes, sha256=shard.index_sha256
    )


def verify_shards(folder: Path) -> ShardManifest:
    """Reads every byte of a folder of shards and compares the hashes.

    Returns:
        The manifest.

    Raises:
        UserError: The manifest is missing or damaged, or files are missing or changed; names each.
    """
    manifest = read_manifest(folder)
    verify_all(
        manifest.shards,
        partial(problem_of, folder),
        what="shards",
        again="run the same 'framer prepare' command again",
    )
    return manifest
