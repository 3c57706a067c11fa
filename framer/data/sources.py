"""What ``data`` names: photographs, or shards made of them, and texts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from framer.config.data import DataConfig
from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.data.captioned import CaptionedPhotographs
from framer.data.dataset import RealISRDataset
from framer.data.images import find_images
from framer.data.photographs import bundled_photographs
from framer.data.shards.manifest import MANIFEST_FILE, TEXTS_FOLDER, is_shard_folder, read_manifest
from framer.data.shards.reader import ShardDataset
from framer.data.stream import SampleSource
from framer.errors import ConfigError, UserError
from framer.models.text import TextEmbeddings

if TYPE_CHECKING:
    from framer.data.texts.store import TextStore

BUNDLED: Final = "bundled"
# What is done to a photograph before it is degraded, so that a stored pair cannot follow; and files are not skipped.
_WITHOUT_EFFECT_ON_SHARDS: Final = ("rescale", "colour_jitter", "on_broken")
_CHANGES_OF_PAIRS: Final = ("horizontal_flip", "quarter_turns")


def open_source(data: DataConfig, *, seed: int) -> SampleSource:
    """Opens the photographs or shards of ``data.train``, with the texts that there are.

    Raises:
        ConfigError: Texts are to be dropped, and there are none.
        UserError: The folder is missing or empty; photographs are broken, smaller than the crop or without a text; or
            shards are missing or damaged.
    """
    folder, store = shard_folder(data), training_texts(data)
    if folder is None:
        photographs = open_photographs(data, seed=seed)
        if store is None:
            return photographs
        return CaptionedPhotographs(photographs, store, root=photograph_root(data))
    return ShardDataset(
        folder,
        read_manifest(folder),
        seed=seed,
        horizontal_flip=data.horizontal_flip,
        quarter_turns=data.quarter_turns,
    )


def text_folder(data: DataConfig) -> Path | None:
    """The text store of the training images, whether it is there or not; None where all images see one text."""
    if data.texts is not None:
        return Path(data.texts).expanduser()
    # The fingerprint tells that a run has texts, even where its shards are no longer there.
    if data.texts_fingerprint is None:
        shards = shard_folder(data)
        if shards is None or read_manifest(shards).texts is None:
            return None
    return Path(data.train).expanduser() / TEXTS_FOLDER


def open_texts(data: DataConfig) -> TextStore | None:
    """Opens the texts of the training images; None where all images see one text.

    Raises:
        UserError: The store is missing or damaged.
    """
    folder = text_folder(data)
    if folder is None:
        return None
    from framer.data.texts.store import TextStore

    return TextStore(folder)


def training_texts(data: DataConfig) -> TextStore | None:
    """As :func:`open_texts`, where training can follow ``data.null_text_probability``.

    Raises:
        ConfigError: Texts are to be dropped, and there are none.
        UserError: The store is missing or damaged.
    """
    store = open_texts(data)
    if store is None and data.null_text_probability:
        raise ConfigError(
            f"data.null_text_probability={data.null_text_probability}, but neither data.texts nor the shards of "
            "data.train give texts that could be dropped; name a text store in data.texts, prepare shards with "
            "texts, or set data.null_text_probability to 0"
        )
    return store


def null_text(data: DataConfig) -> TextEmbeddings | None:
    """The embeddings of the empty text, ``[T, D]`` and ``[P]``; None where all images see one text.

    Raises:
        UserError: The store is missing or damaged.
    """
    store = open_texts(data)
    if store is None:
        return None
    from framer.data.texts.store import NULL_ROW

    return store.embeddings(NULL_ROW)


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
    root = photograph_root(data)
    return bundled_photographs("train") if root is None else find_images(root)


def evaluation_files(data: DataConfig) -> list[Path]:
    """Lists the photographs of ``data.evaluation``, unopened.

    Raises:
        UserError: The folder is missing or empty.
    """
    root = evaluation_root(data)
    if root is None:
        return bundled_photographs("heldout" if data.evaluation == "heldout" else "validation")
    try:
        return find_images(root)
    except UserError as error:
        raise UserError(f"data.evaluation: {error}") from None


def evaluation_root(data: DataConfig) -> Path | None:
    """The folder that ``data.evaluation`` names and photographs are searched in; None for the bundled ones."""
    return None if data.evaluation in ("heldout", "validation") else Path(data.evaluation).expanduser()


def photograph_root(data: DataConfig) -> Path | None:
    """The folder that ``data.train`` names and photographs are searched in; None for the bundled ones."""
    return None if data.train == BUNDLED else Path(data.train).expanduser()


def shard_folder(data: DataConfig) -> Path | None:
    """The folder of shards that ``data.train`` names, or None."""
    folder = Path(data.train).expanduser()
    return folder if data.train != BUNDLED and is_shard_folder(folder) else None


def with_data_settings(config: TrainConfig) -> TrainConfig:
    """Completes ``data`` by the texts, shards or photographs that it names.

    After :func:`with_text_settings` and :func:`with_shard_settings`, it has the fingerprint of photographs too.

    Raises:
        ConfigError: Values were given that contradict what is there.
        UserError: Something is missing or damaged.
    """
    return _with_photograph_settings(with_shard_settings(with_text_settings(config)))


def _with_photograph_settings(config: TrainConfig) -> TrainConfig:
    data = config.data
    if shard_folder(data) is not None:
        if data.photographs_fingerprint is not None:
            raise ConfigError(
                f"data.photographs_fingerprint is given, but data.train={data.train} holds shards; remove the "
                "fingerprint, or give the folder of the photographs"
            )
        return config
    found = _photographs_fingerprint(data)
    if data.photographs_fingerprint not in (None, found):
        raise ConfigError(
            f"data.photographs_fingerprint={data.photographs_fingerprint}, but data.train={data.train} has {found}: "
            "photographs were added, removed, renamed or replaced; bring the former ones back, or, for a new run, "
            "remove the fingerprint"
        )
    return config.model_copy(update={"data": data.model_copy(update={"photographs_fingerprint": found})})


def _photographs_fingerprint(data: DataConfig) -> str:
    root, digest = photograph_root(data), hashlib.sha256()
    paths = photograph_files(data)
    for path in paths:
        # The content of bundled photographs is that of the installed releases, which may change.
        known = path.name if root is None else f"{path.relative_to(root).as_posix()}\0{_size_of(path)}"
        digest.update(f"{known}\n".encode(errors="surrogateescape"))
    return f"{len(paths)} files, SHA-256 {digest.hexdigest()}"


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # a broken link, which is named when it is opened
        return None


def with_shard_settings(config: TrainConfig) -> TrainConfig:
    """Takes crop sizes, scale, degradation and fingerprint from the manifest, where ``data.train`` names shards.

    Pairs that have latents are not mirrored or turned. Settings that only the making of shards follows are accepted
    where they are those that the shards were made with, so that one file can prepare and train.

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
        if getattr(config.data, name)
        not in (DataConfig.model_fields[name].default, manifest.made_from.get(f"data.{name}"))
    ]
    if manifest.latents is not None:
        problems += [
            f"data.{name}=true (the shards have latents, which can be neither mirrored nor turned; set it to false, or "
            "prepare shards without --vae)"
            for name in _CHANGES_OF_PAIRS
            if name in config.data.model_fields_set and getattr(config.data, name)
        ]
        own |= dict.fromkeys(_CHANGES_OF_PAIRS, False)
    if problems:
        raise ConfigError(f"{folder / MANIFEST_FILE} contradicts the configuration: {'; '.join(problems)}")
    content = config.model_dump()
    content["data"] |= own
    return build_config(TrainConfig, content, source=f"with the settings of {folder / MANIFEST_FILE}")


def with_text_settings(config: TrainConfig) -> TrainConfig:
    """Takes the number of tokens and the fingerprint from the text store, where images have texts of their own.

    Args:
        config: The configuration as the user gave it; not yet with :func:`with_shard_settings`, after which everything
            counts as given.

    Returns:
        The same configuration with the store's own values where none were given; ``config`` itself without texts.

    Raises:
        ConfigError: Values were given that contradict the store, or there is none that they could be of; names each by
            its path.
        UserError: The store is missing or damaged.
    """
    data, shards = config.data, shard_folder(config.data)
    if shards is not None and data.texts is not None:
        raise ConfigError(
            f"data.texts={data.texts}, but data.train={data.train} holds shards, whose texts are prepared with them; "
            "remove data.texts"
        )
    if shards is None and data.texts is None and data.texts_fingerprint is not None:
        raise ConfigError(
            "data.texts_fingerprint is given, but data.texts is not; name the text store, or remove the fingerprint"
        )
    store = open_texts(data)
    if store is None:
        return config
    problems: list[str] = []
    if "text_tokens" in config.model.model_fields_set and config.model.text_tokens != store.tokens:
        problems.append(f"model.text_tokens={config.model.text_tokens} (the texts have {store.tokens})")
    if data.texts_fingerprint not in (None, store.fingerprint):
        problems.append(f"data.texts_fingerprint={data.texts_fingerprint} (the texts have {store.fingerprint})")
    if problems:
        raise ConfigError(f"{store.folder} contradicts the configuration: {'; '.join(problems)}")
    content = config.model_dump(exclude_unset=True)
    content["model"] = {**content.get("model", {}), "text_tokens": store.tokens}
    content["data"] = {**content.get("data", {}), "texts_fingerprint": store.fingerprint}
    return build_config(TrainConfig, content, source=f"with the settings of {store.folder}")
