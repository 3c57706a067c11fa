"""Learned metrics, of the optional library pyiqa; nothing is downloaded unasked."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from framer.errors import MissingExtraError
from framer.evaluation.protocols import Learned, Weights
from framer.evaluation.scoring import Task, encode_png, read_pair
from framer.extras import require
from framer.files import file_sha256

EXTRA: Final = "iqa"
MIN_PICTURES_FOR_FID: Final = 50
"""Pictures below which FID is refused."""
FID_FEATURES: Final = 2048
"""Length of the features whose covariance FID estimates: with fewer pictures, it depends on their number."""

_SEED = 0


class NotAvailableError(Exception):
    """A learned metric cannot be computed here; the message says why and what to do."""


class LearnedScorer:
    """A learned metric, ready to measure.

    Attributes:
        metric: Which one.
        library: The library and its version.
        weights: SHA-256 of each file of weights by its name; of Hugging Face's none.

    Args:
        metric: Which one.
        device: Where to compute.
        download: Whether missing weights may be fetched.

    Raises:
        NotAvailableError: pyiqa is not installed, or weights are not there and must not be fetched.
    """

    def __init__(self, metric: Learned, *, device: torch.device, download: bool) -> None:
        self.metric = metric
        self._may_connect = download
        with self._network():
            try:
                library = require("pyiqa", extra=EXTRA)
            except MissingExtraError as error:
                raise NotAvailableError(str(error)) from error
            # A torchvision built for another torch, for one, fails in its own ways.
            except Exception as error:
                raise NotAvailableError(f"pyiqa cannot be imported ({type(error).__name__}: {error})") from error
            missing = [str(path) for path in map(weights_path, metric.weights) if not path.exists()]
            if missing and not download:
                raise NotAvailableError(
                    f"weights are not at {', '.join(missing)} and nothing is downloaded unasked; run again with "
                    "--download"
                )
            try:
                # Weights are drawn before they are read; the draws must not depend on what ran before.
                with _seeded():
                    self._score: Callable[..., Any] = library.create_metric(metric.name, device=device)
            except Exception as error:
                raise NotAvailableError(
                    f"pyiqa could not make it ({type(error).__name__}: {error})"
                    + ("" if download else "; where weights are missing, run again with --download")
                ) from error
        self.library = f"pyiqa {version('pyiqa')}"
        paths = {weights.file: weights_path(weights) for weights in metric.weights}
        self.weights = {name: file_sha256(path) for name, path in paths.items() if path.is_file()}

    def _network(self) -> AbstractContextManager[None]:
        return nullcontext() if self._may_connect else offline()

    def measure(self, task: Task) -> float:
        """The value of one picture, against its original where the metric takes one."""
        pair = [_as_batch(picture) for picture in read_pair(task)]
        # Some releases draw crops at random.
        with self._network(), _seeded(), torch.no_grad():
            return float(self._score(*(pair if self.metric.needs_reference else pair[:1])))

    def measure_sets(self, tasks: Sequence[Task]) -> float:
        """The value of a whole set of pictures against the set of their originals.

        pyiqa takes folders, so the pictures are written out as they are measured: 8-bit RGB, without the border.
        """
        with tempfile.TemporaryDirectory(prefix="framer-evaluate-") as folder:
            sets = [Path(folder, name) for name in ("pictures", "originals")]
            for one in sets:
                one.mkdir()
            for number, task in enumerate(tasks):
                for one, picture in zip(sets, read_pair(task), strict=True):
                    (one / f"{number:06}.png").write_bytes(encode_png(picture))
            with self._network(), _seeded(), torch.no_grad():
                return float(self._score(str(sets[0]), str(sets[1]), num_workers=0, verbose=False))


def too_few_for_sets(metric: Learned, pictures: int) -> str:
    """Why a metric of sets is refused for that many pictures; empty where it is not."""
    if not metric.of_sets or pictures >= MIN_PICTURES_FOR_FID:
        return ""
    return (
        f"{pictures} pictures say nothing about the distribution of their {FID_FEATURES} features; it needs at least "
        f"{MIN_PICTURES_FOR_FID}, and thousands to be compared with other sets'"
    )


def weights_path(weights: Weights) -> Path:
    """Where pyiqa and what it is built on look for a file of weights."""
    hub = Path(torch.hub.get_dir())
    if weights.store == "torchvision":
        return hub / "checkpoints" / weights.file
    if weights.store != "huggingface":
        return hub / weights.store / weights.file
    cache = require("huggingface_hub.constants", extra=EXTRA).HF_HUB_CACHE
    return Path(cache) / f"models--{weights.file.replace('/', '--')}"


@contextmanager
def offline() -> Iterator[None]:
    """Refuses every connection to another machine, and tells Hugging Face's library to try none."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise OSError(f"no connection to {address}: nothing is downloaded without --download")
        connect(self, address)

    def look_up(host: Any, *_: Any, **__: Any) -> Any:
        raise OSError(f"no connection to {host}: nothing is downloaded without --download")

    with ExitStack() as stack:
        # The library reads its variable once, when it is imported.
        constants = require("huggingface_hub.constants", extra=EXTRA)
        for owner, name, value in (
            (constants, "HF_HUB_OFFLINE", True),
            (socket.socket, "connect", local_only),
            (socket, "getaddrinfo", look_up),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


@contextmanager
def _seeded() -> Iterator[None]:
    """Seeds torch's and NumPy's global generators, and puts them back."""
    state = np.random.get_state()  # noqa: NPY002 - the generator that pyiqa draws from
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        np.random.seed(_SEED)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def _as_batch(picture: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255
