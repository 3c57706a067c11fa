"""What ``data.train`` names: photographs, or shards made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from framer.config.data import DataConfig
from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.data.dataset import RealISRDataset
from framer.data.images import find_images
from framer.data.photographs import bundled_photographs
from framer.data.shards.manifest import MANIFEST_FILE, is_shard_folder, read_manifest
from framer.data.shards.reader import ShardDataset
from framer.data.stream import SampleSource
from framer.errors import ConfigError, UserError

BUNDLED: Final = "bundled"
# What is done to a photograph before it is degraded, so that a stored pair cannot follow; and files are not skipped.
_WITHOUT_EFFECT_ON_SHARDS: Final = ("rescale", "colour_jitter", "on_broken")


def open_source(data: DataConfig, *, seed: int) -> SampleSource:
    """Opens the photographs or shards of ``data.train``.

    Raises:
        UserError: The folder is missing or empty; photographs are broken or smaller than the crop; or shards are
            missing or damaged.
    """
    folder = shard_folder(data)
    if folder is None:
        return open_photographs(data, seed=seed)
    return ShardDataset(
        folder,
        read_manifest(folder),
        seed=seed,
        horizontal_flip=data.horizontal_flip,
        quarter_turns=data.quarter_turns,
    )


def open_photographs(data: DataConfig, *, seed: int) -> RealISRDataset:
    """Opens the photographs of ``data.train``.

    Raises:
        UserError: The folder is missing or empty, or holds shards, or photographs are broken or smaller than the crop.
    """
    return RealISRDataset(
        photograph_files(data),
        crop_size=data.crop_size,
        buckets=[(height, width) for height, width in data.buckets],
        scale=data.scale,
        degradation=data.degradation,
        seed=seed,
        horizontal_flip=data.horizontal_flip,
        quarter_turns=data.quarter_turns,
        rescale=data.rescale,
        colour_jitter=data.colour_jitter,
        on_broken=data.on_broken,
    )


def photograph_files(data: DataConfig) -> list[Path]:
    """Lists the photographs of ``data.train``, unopened.

    Raises:
        UserError: The folder is missing or empty, or holds shards.
    """
    folder = shard_folder(data)
    if folder is not None:
        raise UserError(f"data.train: {folder} holds shards; give the photographs that they were made of")
    return bundled_photographs("train") if data.train == BUNDLED else find_images(Path(data.train).expanduser())


def shard_folder(data: DataConfig) -> Path | None:
    """The folder of shards that ``data.train`` names, or None."""
    folder = Path(data.train).expanduser()
    return folder if data.train != BUNDLED and is_shard_folder(folder) else None


def with_shard_settings(config: TrainConfig) -> TrainConfig:
    """Takes crop sizes, scale, degradation and fingerprint from the manifest, where ``data.train`` names shards.

    Args:
        config: The configuration as the user gave it.

    Returns:
        The same configuration with the shards' own values where none were given; ``config`` itself without shards.

    Raises:
        ConfigError: Values were given that contradict the manifest, or that shards cannot follow; names each by its
            path. Or the completed configuration is not valid.
        UserError: The manifest is missing or damaged.
    """
    folder = shard_folder(config.data)
    if folder is None:
        if config.data.shards_fingerprint is not None:
            raise ConfigError(
                f"data.shards_fingerprint is given, but data.train={config.data.train} holds no shards; give their "
                "folder, or remove the fingerprint"
            )
        return config
    manifest = read_manifest(folder)
    own: dict[str, Any] = {
        "crop_size": manifest.crop_size,
        "buckets": manifest.config_buckets,
        "scale": manifest.scale,
        "degradation": manifest.degradation,
        "shards_fingerprint": manifest.fingerprint,
    }
    given = config.data.model_fields_set - ({"shards_fingerprint"} if config.data.shards_fingerprint is None else set())
    problems = [
        f"data.{name}={getattr(config.data, name)} (the shards have {value})"
        for name, value in own.items()
        if name in given and getattr(config.data, name) != value
    ]
    problems += [
        f"data.{name}={getattr(config.data, name)} (has no effect on shards; it belongs to the command that makes them)"
        for name in _WITHOUT_EFFECT_ON_SHARDS
        if getattr(config.data, name) != DataConfig.model_fields[name].default
    ]
    if problems:
        raise ConfigError(f"{folder / MANIFEST_FILE} contradicts the configuration: {'; '.join(problems)}")
    content = config.model_dump()
    content["data"] |= own
    return build_config(TrainConfig, content, source=f"with the settings of {folder / MANIFEST_FILE}")
