"""How large a router may grow where nobody says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway_sidecar.config.router import default_router
from gateway_sidecar.supervision import memory
from gateway_sidecar.supervision.memory import router_share_mb, usable_bytes, usable_cpus

GIB = 1 << 30
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def machine(root: Path, own: str, limits: dict[str, str], name: str = "memory.max") -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:cpu:/elsewhere\n0::{own}\n")
    for group, limit in limits.items():
        place = root / "sys/fs/cgroup" / group
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(limit + "\n")
    return root


@pytest.mark.parametrize(
    ("limits", "usable"),
    [
        ({}, MACHINE),
        ({"system.slice/a.service": "max"}, MACHINE),
        ({"system.slice/a.service": str(GIB)}, GIB),
        ({"system.slice/a.service": "max", "system.slice": str(GIB)}, GIB),
        ({"system.slice/a.service": str(1 << 50)}, MACHINE),
        ({"system.slice/other.service": str(GIB)}, MACHINE),
    ],
)
def test_what_there_is_is_the_least_of_all_limits(tmp_path: Path, limits: dict[str, str], usable: int) -> None:
    """The unit's MemoryMax, a slice's, a container's, the machine's."""
    assert usable_bytes(machine(tmp_path, "/system.slice/a.service", limits)) == usable


@pytest.mark.parametrize(
    ("quotas", "usable"),
    [
        ({}, 64),
        ({"a": "max 100000"}, 64),
        ({"a": "150000 100000"}, 2),
        ({"a/b": "10000 100000", "a": "400000 100000"}, 1),
    ],
)
def test_nginx_has_a_worker_for_each_cpu_that_there_is_time_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quotas: dict[str, str], usable: int
) -> None:
    """A container with two CPUs on a machine with 64 pays for two."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert usable_cpus(machine(tmp_path, "/a/b", quotas, "cpu.max")) == usable


def test_the_first_version_of_control_groups_counts_too(tmp_path: Path) -> None:
    """Each controller has a tree of its own there."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/pod\n3:cpu,cpuacct:/pod\n")
    for place, said in {
        "memory/pod/memory.limit_in_bytes": str(GIB),
        "cpu,cpuacct/pod/cpu.cfs_quota_us": "50000",
        "cpu,cpuacct/pod/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
    }.items():
        file = tmp_path / "sys/fs/cgroup" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(said)
    assert (usable_bytes(tmp_path), usable_cpus(tmp_path)) == (GIB, 1)


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    """Has its memory."""
    assert usable_bytes(tmp_path) == MACHINE


def test_a_router_may_have_a_quarter_and_not_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the default: an engine's answers must not take all there is, and nobody has to know that they might."""
    assert default_router().memory_limit_mb == "auto"
    for usable, share in ((8 * GIB, 2048), (GIB, 512)):
        monkeypatch.setattr(memory, "usable_bytes", lambda usable=usable: usable)
        router_share_mb.cache_clear()
        assert router_share_mb() == share
    router_share_mb.cache_clear()
