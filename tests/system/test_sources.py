"""Sockets as they really are: directories that come and go, odd names, files that are no sockets, notes beside them."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from examples.simulated import EngineKind, Lie
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of, states_of


async def test_directory_may_come_late_and_be_replaced(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A directory that does not exist is waited for; one that is replaced is looked at anew."""
    gateway = make_gateway()
    shutil.rmtree(gateway.sockets().parent)
    await gateway.start()
    gateway.sockets().mkdir(parents=True)
    first = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    gateway.sockets().rename(gateway.sockets().with_name("old"))
    await gateway.until_states({})
    gateway.sockets().mkdir()
    await engine(gateway.socket("r2"))
    await gateway.until_states({"r2": "serving"})
    await first.stop(grace_s=0)


@pytest.mark.own_users
async def test_unreadable_directory_keeps_every_worker(gateway: Gateway, engine: StartEngine) -> None:
    """Unknown is not empty."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    mode = gateway.sockets().stat().st_mode
    gateway.sockets().chmod(0)
    try:
        status = await gateway.until(lambda s: service_of(s)["source"]["blind"] is not None)
        assert states_of(status) == {"r1": "serving"}
        assert "Permission denied" in service_of(status)["source"]["blind"]
    finally:
        gateway.sockets().chmod(mode)
    await gateway.until(lambda s: service_of(s)["source"]["blind"] is None)
    assert "r1" in await ask(gateway, "tiny", stream=False)


async def test_directory_that_cannot_be_listed_keeps_every_worker(gateway: Gateway, engine: StartEngine) -> None:
    """Unknown is not empty, for root too: a loop of links cannot be listed.

    Nobody can connect through it either, so nothing is asked of the engine meanwhile.
    """
    await engine(gateway.socket("r1"))
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    aside = gateway.sockets().with_name("aside")
    # The swap is one step, so that at no time the directory is simply not there.
    loop = gateway.sockets().with_name("loop")
    loop.symlink_to(gateway.sockets())
    exchange(gateway.sockets(), loop)
    loop.rename(aside)
    status = await gateway.until(lambda s: service_of(s)["source"]["blind"] is not None)
    assert replica_of(status, "r1")["worker_id"] == before["worker_id"]
    exchange(gateway.sockets(), aside)
    status = await gateway.until(lambda s: service_of(s)["source"]["blind"] is None)
    assert replica_of(status, "r1")["worker_id"] == before["worker_id"]
    assert "r1" in await ask(gateway, "tiny", stream=False)


def exchange(one: Path, other: Path) -> None:
    """Swaps two names in one step (renameat2 with RENAME_EXCHANGE)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, bytes(one), -100, bytes(other), 2) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


async def test_odd_names_are_served_or_refused_by_name(gateway: Gateway, engine: StartEngine) -> None:
    """Spaces, unicode and 200 characters work; control characters, other bytes and non-sockets are refused."""
    good = ["with space", "größe-模型", "x" * 200, "-dash", "dot.dot", "a'b\"c$(d)"]
    for name in good:
        await engine(gateway.socket(name))
    directory = os.fsencode(gateway.sockets())
    for raw in (b"line\nbreak.sock", b"\xff\xfe.sock"):
        with socket.socket(socket.AF_UNIX) as odd:
            odd.bind(directory + b"/" + raw)
    gateway.socket("plain-file").write_text("not a socket")
    await gateway.until(lambda s: len(service_of(s)["source"]["refused"]) == 3)
    status = await gateway.until_states(dict.fromkeys(good, "serving"))
    refused = service_of(status)["source"]["refused"]
    assert "control characters" in refused["line\\nbreak"]
    assert "not valid UTF-8" in refused["\\udcff\\udcfe"]
    assert "not a socket" in refused["plain-file"]
    assert len(gateway.events("replica.refused")) == 3, "said once, not at every look"
    code, out, _ = await gateway.cli("drain", "chat", "größe-模型")
    assert (code, "safe to stop" in out) == (0, True)


async def test_touched_socket_is_the_same_replica(gateway: Gateway, engine: StartEngine) -> None:
    """A cleaner or an operator that touches it, or changes its mode, begins no other replica."""
    path = gateway.socket("r1")
    await engine(path)
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    path.touch()
    path.chmod(0o600)
    await engine(gateway.socket("r2"))  # Which a later look than this shows.
    after = replica_of(await gateway.until_states({"r1": "serving", "r2": "serving"}), "r1")
    assert after["worker_id"] == before["worker_id"]
    assert len(gateway.events("replica.seen")) == 2


async def test_replica_as_a_directory_of_the_pattern(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """`{replica}` may be a directory: /run/replicas/{replica}/replica.sock."""
    gateway = make_gateway()
    gateway.settings["services"][0]["replicas"]["sockets"] = f"{gateway.sockets()}/{{replica}}/replica.sock"
    await gateway.start()
    for name in ("r1", "r2"):
        (gateway.sockets() / name).mkdir()
        await engine(gateway.sockets() / name / "replica.sock", name=name)
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    shutil.rmtree(gateway.sockets() / "r1")
    await gateway.until_states({"r2": "serving"})


async def test_notes_beside_the_socket(gateway: Gateway, engine: StartEngine) -> None:
    """`<replica>.yaml` adds labels, a key, a role, priority and cost; a broken one is named and holds the replica."""
    (gateway.sockets() / "r1.key").write_text("sekrit\n")
    (gateway.sockets() / "r1.key").chmod(0o600)
    notes = gateway.sockets() / "r1.yaml"
    notes.write_text("labels: {rack: b7}\nworker_typ: decode\n")
    await engine(gateway.socket("r1"), require_key="sekrit")
    status = await gateway.until(lambda s: "did you mean" in str(replica_or_empty(s).get("reason")))
    assert "worker_type" in replica_of(status, "r1")["reason"]
    notes.write_text("labels: {rack: b7}\nworker_type: decode\npriority: 7\ncost: 2.5\napi_key_file: r1.key\n")
    status = await gateway.until_states({"r1": "serving"})
    assert replica_of(status, "r1")["worker_type"] == "decode"
    [worker] = await gateway.workers()
    assert worker["labels"]["rack"] == "b7"
    assert (worker["worker_type"], worker["priority"], worker["cost"]) == ("decode", 7, 2.5)
    assert "sekrit" not in gateway.log() + str(await gateway.status())
    notes.write_text("labels: {rack: b8}\napi_key_file: r1.key\n")
    await gateway.until(lambda s: replica_of(s, "r1")["worker_type"] == "regular")
    await gateway.until_workers(lambda workers: any(w["labels"].get("rack") == "b8" for w in workers))
    await gateway.until_states({"r1": "serving"})


def replica_or_empty(status: dict[str, object]) -> dict[str, object]:
    rows = service_of(status)["replicas"]
    return dict(rows[0]) if rows else {}


async def test_liars_neither_serve_nor_hold_anybody_up(gateway: Gateway, engine: StartEngine) -> None:
    """Answers are limited in size and time and their types are checked; the neighbour serves meanwhile."""
    # Wrong types in fields that do not matter prove nothing against an engine: it may serve.
    lies = [Lie.HUGE, Lie.GARBAGE, Lie.TYPES, Lie.TRUNCATED, Lie.NOT_AN_ENGINE, Lie.SLOW_DRIP]
    liars = {lie.name.lower(): await engine(gateway.socket(lie.name.lower()), lie=lie) for lie in lies}
    await engine(gateway.socket("honest"), EngineKind.VLLM_HTTP)
    await gateway.until(lambda s: states_of(s).get("honest") == "serving" and liars.keys() < states_of(s).keys())
    for name in liars.keys() - {"types"}:
        status = await gateway.until_state(name, "foreign", "unreachable", "loading")
        assert replica_of(status, name)["reason"]
    for liar in liars.values():
        liar.behave(lie=None)
    await gateway.until_states(dict.fromkeys([*liars, "honest"], "serving"))


async def test_accepting_and_closing_is_loading(gateway: Gateway, engine: StartEngine) -> None:
    """The near end of an SSH forward whose far end does not listen yet: Loading, and cheap."""
    far = await engine(gateway.socket("r1"), accept_close=True)
    await gateway.until_states({"r1": "loading"})
    # In its first instant nobody listens at all.
    await gateway.until(lambda status: "closed" in replica_of(status, "r1")["reason"])
    far.behave(accept_close=False)
    await gateway.until_states({"r1": "serving"})
    far.behave(accept_close=True)
    await gateway.until_states({"r1": "unreachable"})
