"""Available memory, from folders of files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from framer.inference.memory import available_memory

MIB = 2**20
UNLIMITED = 9223372036854771712
"""What version 1 says where there is no limit."""


def system(root: Path, groups: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal:       8388608 kB\nMemFree: 100 kB\nMemAvailable:    1048576 kB\n")
    (root / "proc/self/cgroup").write_text(groups)


def second(folder: Path, limit: int | str, usage: int, *, active: int = 0, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 4096\nfile 1\nactive_file {active}\ninactive_file {inactive}\n")


def first(folder: Path, limit: int, usage: int, *, active: int = 0, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(
        f"active_file 7\ninactive_file 7\ntotal_active_file {active}\ntotal_inactive_file {inactive}\n"
    )


def test_without_control_groups_it_is_what_the_system_has(tmp_path: Path) -> None:
    system(tmp_path, "")
    assert available_memory(tmp_path) == 1024 * MIB
    (tmp_path / "proc/self/cgroup").unlink()
    assert available_memory(tmp_path) == 1024 * MIB


def test_the_system_this_runs_on_says_something() -> None:
    assert available_memory() > 0


@pytest.mark.parametrize(("own", "above", "left"), [(300, 900, 200), ("max", 400, 300), ("max", "max", 1024)])
def test_limits_of_the_second_version_are_of_the_group_and_those_above(
    own: int | str, above: int | str, left: int, tmp_path: Path
) -> None:
    system(tmp_path, "0::/slurm.slice/job_7\n")
    for folder, limit in (("slurm.slice", above), ("slurm.slice/job_7", own)):
        second(tmp_path / "sys/fs/cgroup" / folder, limit if limit == "max" else int(limit) * MIB, 100 * MIB)
    assert available_memory(tmp_path) == left * MIB


@pytest.mark.parametrize("path", ["/", "/docker/0123", "/../../docker/0123"])
def test_in_a_container_the_limit_is_at_the_root(path: str, tmp_path: Path) -> None:
    system(tmp_path, f"0::{path}\n")
    second(tmp_path / "sys/fs/cgroup", 512 * MIB, 500 * MIB, active=100 * MIB, inactive=300 * MIB)
    second(tmp_path / "docker/0123", 1, 0)
    assert available_memory(tmp_path) == 412 * MIB  # cached files give way


def test_limits_of_the_first_version(tmp_path: Path) -> None:
    system(tmp_path, "5:devices:/\n4:cpu,memory:/job:7\n1:name=systemd:/memory\n0::/\n")
    first(tmp_path / "sys/fs/cgroup/memory", UNLIMITED, 5000 * MIB)
    first(tmp_path / "sys/fs/cgroup/memory/job:7", 512 * MIB, 500 * MIB, active=50 * MIB, inactive=150 * MIB)
    assert available_memory(tmp_path) == 212 * MIB
    first(tmp_path / "sys/fs/cgroup/memory/job:7", 512 * MIB, 600 * MIB)
    assert available_memory(tmp_path) == 0
