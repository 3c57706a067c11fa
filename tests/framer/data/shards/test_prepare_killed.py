"""``framer prepare`` killed at any time: run again, it gives every byte of a run that nothing happened to."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from family_folders import autoencoder
from shard_cases import contents

from framer.cli import main
from framer.data.images import write_png
from framer.data.shards.manifest import UNFINISHED_FILE, read_manifest

KILLS = 10
_COMMAND = [sys.executable, "-c", "import sys; from framer.cli import main; sys.exit(main())"]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for number in range(4):
        write_png(tmp_path / "photos" / f"{number}.png", rng.integers(0, 256, (96, 96 + 32 * number, 3), np.uint8))
    data = {"train": str(tmp_path / "photos"), "crop_size": 64, "buckets": [[64, 64], [48, 80]]}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"output_dir": "unused", "data": data}))
    vae = autoencoder(tmp_path / "vae")
    options = ["--samples", "60", "--shard-size", "200KB", "--workers", "1", "--vae", str(vae)]
    return ["prepare", "--config", str(config), *options, "--output"]


def _killed(arguments: list[str], folder: Path, delay: float) -> bool:
    """Starts the command and kills it some time after it began to write; whether it was still at work."""
    process = subprocess.Popen([*_COMMAND, *arguments, str(folder)], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (folder / UNFINISHED_FILE).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -9), errors.decode()
    return process.returncode == -9


@pytest.mark.slow
def test_killed_at_random_times(tmp_path: Path, arguments: list[str]) -> None:
    clean = tmp_path / "clean"
    begin = time.monotonic()
    assert main([*arguments, str(clean)]) == 0
    duration = time.monotonic() - begin
    assert len(read_manifest(clean).shards) >= 8
    expected = contents(clean)
    found_shards, killed_at_work = set(), 0
    for number, part in enumerate(np.random.default_rng(1).random(KILLS)):
        folder = tmp_path / f"killed{number}"
        killed_at_work += _killed(arguments, folder, part * duration)
        found_shards.add(len(list(folder.glob("*.tar"))))
        # Of what is there already, nothing is half a file.
        for path in folder.glob("[0-9]*.tar"):
            assert path.read_bytes() == expected[path.name]
        assert main([*arguments, str(folder)]) == 0
        assert contents(folder) == expected
    # Kills that hit nothing would show nothing.
    assert killed_at_work >= KILLS // 2
    assert len(found_shards) >= 3


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, arguments: list[str]) -> None:
    clean, folder = tmp_path / "clean", tmp_path / "killed"
    assert main([*arguments, str(clean)]) == 0
    for delay in np.random.default_rng(2).uniform(0.05, 0.6, 4):
        _killed(arguments, folder, float(delay))
    assert main([*arguments, str(folder)]) == 0
    assert contents(folder) == contents(clean)
