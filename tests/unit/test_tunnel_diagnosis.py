"""What OpenSSH's client says, as it was recorded from 9.2, and what it means."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from gateway_sidecar.domain.tunnels import PathState, PathStatus, SshRoute, SshServer
from gateway_sidecar.tunnels.asyncssh_backend import AsyncSsh
from gateway_sidecar.tunnels.base import TunnelFault
from gateway_sidecar.tunnels.connection import SshConnection
from gateway_sidecar.tunnels.logins import Logins
from gateway_sidecar.tunnels.openssh import OpenSsh, diagnose

EVIL = "\x1b[2J\u202e\u2028" * 1000

CHANGED = [
    "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@",
    "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
    "IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!",
    "Host key for [127.0.0.1]:42222 has changed and you have requested strict checking.",
    "Host key verification failed.",
]
UNKNOWN = [
    "No ED25519 host key is known for [127.0.0.1]:42222 and you have requested strict checking.",
    "Host key verification failed.",
]
CLOSED_BELOW = [
    "kex_exchange_identification: Connection closed by remote host",
    "Connection closed by UNKNOWN port 65535",
]


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (CHANGED, PathState.HOST_KEY_CHANGED),
        (UNKNOWN, PathState.HOST_KEY_UNKNOWN),
        (["ssh: Could not resolve hostname nowhere.invalid: Name or service not known"], PathState.NAME_UNKNOWN),
        (["ssh: connect to host 127.0.0.1 port 1: Connection refused"], PathState.REFUSED),
        (["ssh: connect to host 10.9.9.9 port 22: Connection timed out"], PathState.UNREACHABLE),
        (["ssh: connect to host 10.9.9.9 port 22: No route to host"], PathState.UNREACHABLE),
        (
            ["Connection timed out during banner exchange", "Connection to 10.9.9.9 port 22 timed out"],
            PathState.UNREACHABLE,
        ),
        (["root@127.0.0.1: Permission denied (publickey)."], PathState.AUTH_FAILED),
        (["Timeout, server 127.0.0.1 not responding."], PathState.DEAD_PATH),
        (["Connection to 127.0.0.1 closed by remote host."], PathState.CLOSED),
        (["Received disconnect from 10.0.0.1 port 22:11: Connection refused, as it timed out"], PathState.CLOSED),
        (["Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures"], PathState.AUTH_FAILED),
        (["client_loop: send disconnect: Broken pipe"], PathState.CLOSED),
        (["Bad configuration option: nonsense"], PathState.FAILED),
        ([], PathState.FAILED),
    ],
)
def test_of_the_target_itself(said: list[str], state: PathState) -> None:
    """The worst that was said counts, as a changed key makes ssh say several things."""
    assert diagnose(SshRoute((SshServer("gpu"),)), [said]).state is state


@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        (["root@127.0.0.1: Permission denied (publickey)."], PathState.AUTH_FAILED),
        (CHANGED, PathState.HOST_KEY_CHANGED),
        (["Connection closed by 10.0.0.1 port 22"], PathState.CLOSED),
        (CLOSED_BELOW, None),
        (["ssh: connect to host 10.0.0.1 port 22: Connection refused"], None),
    ],
)
def test_what_a_server_takes_for_a_failed_login(said: list[str], refusal: PathState | None) -> None:
    """PAM closes on an account that is locked; a server that has too many connections closes before it greets."""
    assert diagnose(SshRoute((SshServer("gpu"),)), [said]).refusal is refusal
    over = diagnose(SshRoute((SshServer("gate"), SshServer("gpu"))), [said, CLOSED_BELOW])
    assert (over.entered, over.refusal) == (0, refusal)


ROUTE = SshRoute((SshServer("gate"), SshServer("inner", 2222), SshServer("gpu")))


@pytest.mark.parametrize(
    ("said", "state", "reason"),
    [
        (
            [["root@gate: Permission denied (publickey)."], [], CLOSED_BELOW],
            PathState.JUMP_FAILED,
            "jump 1 (gate:22): auth failed: root@gate: Permission denied (publickey); it does not accept",
        ),
        (
            [
                ["channel 0: open failed: connect failed: Connection refused", "stdio forwarding failed"],
                CLOSED_BELOW,
                CLOSED_BELOW,
            ],
            PathState.JUMP_FAILED,
            "jump 2 (inner:2222): connection refused: channel 0: open failed: connect failed: Connection refused",
        ),
        (
            [[], ["channel 0: open failed: connect failed: No route to host", "stdio forwarding failed"], CLOSED_BELOW],
            PathState.UNREACHABLE,
            "as seen from inner:2222: channel 0: open failed: connect failed: No route to host",
        ),
        (
            [
                ["channel 0: open failed: administratively prohibited: open failed", "stdio forwarding failed"],
                [],
                CLOSED_BELOW,
            ],
            PathState.JUMP_FAILED,
            "jump 1 (gate:22): forwarding forbidden: channel 0: open failed: administratively prohibited: open failed",
        ),
        (
            [["Timeout, server gate not responding."], CLOSED_BELOW, CLOSED_BELOW],
            PathState.DEAD_PATH,
            "Timeout, server gate",
        ),
        ([[], [], UNKNOWN], PathState.HOST_KEY_UNKNOWN, "No ED25519 host key is known"),
    ],
)
def test_over_jumps_the_nearest_fault_counts(said: list[list[str]], state: PathState, reason: str) -> None:
    """All behind it only see a connection that closes; what a jump cannot reach is the next one's fault."""
    found = diagnose(ROUTE, said)
    assert found.state is state
    assert found.reason.startswith(reason) or reason in found.reason


def test_what_a_server_says_is_searched_in_no_time_and_can_be_shown(tmp_path: Path) -> None:
    """A banner may have any length, and words that a pattern begins with again and again."""
    route = SshRoute((SshServer("h"),))
    for name in ("l.log", "l.said"):
        (tmp_path / name).write_bytes(
            b"Host key for \x1b[2J" * 20000 + "\u202e\u2028 closed".encode() + b"\n\x1b[2J last"
        )
    for engine in (OpenSsh(Path("ssh"), tmp_path), AsyncSsh(tmp_path)):
        began = time.thread_time()
        reason = engine.why_ended("l", route).reason
        assert time.thread_time() - began < 0.2
        assert reason.isprintable()
    (tmp_path / "l.log").write_text(json.dumps(asdict(PathStatus(PathState.FAILED, "\x1b[2J" * 200))))
    reason = AsyncSsh(tmp_path).why_ended("l", route).reason
    assert reason.isprintable()
    assert len(reason) < 2000


async def test_what_the_far_end_says_of_a_connection_that_is_up_can_be_shown(tmp_path: Path) -> None:
    """What it forbids stands in the log of the connection; why it does not forward is said by the process itself."""
    route, backend = SshRoute((SshServer("h"),)), OpenSsh(Path("ssh"), tmp_path)
    link = SshConnection(route, backend, tmp_path, Logins(), adopted=None, on_change=lambda: None)
    await link._read_log()
    (tmp_path / f"{link.name}.said").write_text(f"channel 1: open failed: administratively prohibited: {EVIL}\n")
    await link._read_log()
    assert link._forbidden.isprintable()
    assert 0 < len(link._forbidden) < 2000

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"{}\n")
        await reader.readline()
        writer.write(json.dumps({"ok": False, "reason": EVIL}).encode() + b"\n")
        writer.close()

    async with await asyncio.start_unix_server(refuse, tmp_path / "l.ctl"):
        with pytest.raises(TunnelFault) as refused:
            await AsyncSsh(tmp_path).forward("l", "r1.sock", "127.0.0.1:8000")
    assert refused.value.status.reason.isprintable()
    assert 0 < len(refused.value.status.reason) < 2000
