"""Sockets at which nothing listens are touched in between, and only those."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest

from gateway_sidecar.control.replicas import refused_sockets
from gateway_sidecar.control.replicas.refused_sockets import RefusedSockets, is_refused
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.domain.model import Loading, Ready
from gateway_sidecar.supervision import awake
from tests.unit.engines import FACTS, PlayedProbe, prober_of, tenure_of
from tests.unit.fake_time import in_fake_time


@in_fake_time
async def test_an_engine_that_listens_at_last_is_found_however_long_nobody_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody is touched while nobody refuses; who refuses then is touched again and again."""
    touched: list[str] = []
    refuses = {"/proc/self/fd/99"}

    def touch(address: str) -> bool:
        touched.append(address)
        return address in refuses

    monkeypatch.setattr(refused_sockets, "is_refused", touch)
    tenure = tenure_of("r1")
    prober = prober_of([tenure], PlayedProbe())
    touching = asyncio.create_task(RefusedSockets(cast("Registry", [tenure]), prober).touch())
    for _ in range(2):
        await asyncio.sleep(3600)
        assert touched == []
        prober._learn(tenure, Loading("connection refused", refused=True), identified=False)
        tenure.probe.due = awake.now() + 60
        await asyncio.sleep(1.1)
        assert len(touched) >= 2
        refuses.clear()
        await asyncio.sleep(0.5)
        assert tenure.probe.due == 0.0  # It is asked now.
        tenure.probe.result = Ready(FACTS)
        await asyncio.sleep(1)
        touched.clear()
        refuses.add("/proc/self/fd/99")
    touching.cancel()


class PlayedSocket:
    """Answers a `connect` with a fault, or with nothing."""

    fault: OSError | None = None

    def __init__(self, *_: object) -> None:
        return

    def __enter__(self) -> PlayedSocket:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def connect(self, address: str) -> None:
        if self.fault is not None:
            raise self.fault


@pytest.mark.parametrize(
    ("fault", "refused"),
    [
        (ConnectionRefusedError(), True),
        (BlockingIOError(), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (None, False),
    ],
)
def test_only_a_refusal_proves_that_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, fault: OSError | None, *, refused: bool
) -> None:
    """A full backlog does not: busy is not dead."""
    monkeypatch.setattr(PlayedSocket, "fault", fault)
    monkeypatch.setattr(socket, "socket", PlayedSocket)
    assert is_refused("/r1.sock") is refused
