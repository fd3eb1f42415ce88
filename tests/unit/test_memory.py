"""How large a router may grow where nobody says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway_sidecar.config.router import default_router
from gateway_sidecar.supervision import memory
from gateway_sidecar.supervision.memory import router_share_mb, usable_bytes

GIB = 1 << 30
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def machine(root: Path, own: str, limits: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:cpu:/elsewhere\n0::{own}\n")
    for group, limit in limits.items():
        place = root / "sys/fs/cgroup" / group
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.max").write_text(limit + "\n")
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
