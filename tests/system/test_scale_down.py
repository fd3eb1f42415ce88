"""How replicas leave: unlinked, dead, hung, drained, replaced; and that nothing else is touched by it."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from typing import Any

from examples.simulated import EngineKind, Role
from gateway_sidecar.supervision.loops import cancelled
from tests.system.clients import ask, pipe, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of, states_of

SHORT_HEALTH = {"interval_s": 0.5, "timeout_s": 0.3, "failures": 3}


def none_ready(workers: list[dict[str, Any]]) -> bool:
    """No new request goes to any worker."""
    return all(worker["status"] != "ready" for worker in workers)


async def test_unlinked_socket_is_out_at_once(gateway: Gateway, engine: StartEngine) -> None:
    """A socket that is gone is positive evidence: no request goes there any more, at once."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    gateway.socket("r1").unlink()
    await gateway.until_workers(none_ready)
    await gateway.until_states({})


async def test_streams_on_an_unlinked_replica_and_on_its_neighbours_finish(
    gateway: Gateway, engine: StartEngine
) -> None:
    """Streams in flight go on to their end, on the replica that leaves and on every other."""
    leaving = await engine(gateway.socket("r1"), token_interval_s=0.05)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 2000, started))
    await started.wait()
    await engine(gateway.socket("r2"))
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    gateway.socket("r1").unlink()
    status = await gateway.until_state("r1", "draining")
    assert "r2" in await ask(gateway, "tiny", stream=False)
    leaving.behave(token_interval_s=0.0)
    assert (await stream).split()[-1] == "1999"
    status = await gateway.until_states({"r2": "serving"})
    assert leaving.ledger.aborted == 0
    assert status["bridge_ports"]["leased"] == 1


async def test_dead_listener_is_out_long_before_it_is_asked_for_its_health(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """The socket file stays and nobody listens: out after refused connects."""
    gateway = make_gateway()
    gateway.settings["services"][0]["health"] = {"interval_s": 3600.0}
    await gateway.start()
    for name, kind in (("h", EngineKind.SGLANG_HTTP), ("g", EngineKind.VLLM_GRPC), ("x", EngineKind.OPENAI_HTTP)):
        dying = await engine(gateway.socket(name), kind)
        await gateway.until_state(name, "serving")
        await dying.kill()
        status = await gateway.until_state(name, "unreachable")
        assert replica_of(status, name)["reason"] == "connection refused"
        await gateway.until_workers(none_ready)
        gateway.socket(name).unlink()
        await gateway.until_states({})


async def test_hung_engine_is_out_after_the_evidence_and_back_when_it_answers(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Silence is not death: it takes the configured evidence. One good answer brings the replica back."""
    gateway = make_gateway()
    gateway.settings["services"][0]["health"] = SHORT_HEALTH
    await gateway.start()
    hanging = await engine(gateway.socket("r1"))
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    hanging.behave(hang=True)
    status = await gateway.until_states({"r1": "unreachable"})
    assert "no answer" in replica_of(status, "r1")["reason"]
    # A busy machine may have been silent for as long before.
    assert {ejected["failures"] for ejected in gateway.events("replica.ejected")} == {3}
    hanging.behave(hang=False)
    after = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert after["bridge"] == before["bridge"], "an unchanged replica keeps its port"
    assert "r1" in await ask(gateway, "tiny", stream=False)


async def test_engine_that_was_silent_once_stays(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Busy is not dead: a failed probe or two change nothing."""
    gateway = make_gateway()
    # A busy machine answers in two seconds, too: only what hangs is silent.
    gateway.settings["services"][0]["health"] = {"interval_s": 2.0, "timeout_s": 2.0, "failures": 3}
    await gateway.start()
    busy = await engine(gateway.socket("r1"))
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    asked = busy.ledger.calls.total()
    busy.behave(hang=True)
    # For its health, or for its names, which it is asked for now and then instead.
    await busy.until(lambda seen: seen.calls.total() > asked)
    busy.behave(hang=False)
    checked = busy.ledger.calls["/health"]
    await busy.until(lambda seen: seen.calls["/health"] > checked + 1)
    after = replica_of(await gateway.status(), "r1")
    assert (after["state"], after["worker_id"]) == ("serving", before["worker_id"])
    assert gateway.events("replica.ejected") == []


async def test_engine_that_answers_requests_stays_however_long_its_health_takes(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Traffic is evidence: whom nginx's events show to have answered is busy. Without traffic its silence counts."""
    gateway = make_gateway()
    # An answer counts for an interval: also on a busy machine there are many in two seconds.
    gateway.settings["services"][0]["health"] = SHORT_HEALTH | {"interval_s": 2.0}
    await gateway.start()
    busy = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    answered = asyncio.Event()

    async def ask_on() -> None:
        while True:
            await ask(gateway, "tiny", stream=False)
            answered.set()

    asking = [asyncio.create_task(ask_on()) for _ in range(8)]
    await answered.wait()
    busy.behave(slow_s=0.8)  # Longer than the time-out of a question for health.
    asked = busy.ledger.calls["/health"]
    await busy.until(lambda seen: seen.calls["/health"] >= asked + 4, within_s=90)
    assert gateway.events("replica.ejected") == []
    await cancelled(*asking)
    await gateway.until_states({"r1": "unreachable"})


async def test_engine_that_streams_and_cannot_say_how_it_is_stays(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Bytes that flow are evidence too, though no request ends. When they end, silence counts."""
    gateway = make_gateway()
    gateway.settings["services"][0]["health"] = SHORT_HEALTH | {"timeout_s": 1.0}
    await gateway.start()
    busy = await engine(gateway.socket("r1"), token_interval_s=0.05)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 10_000, started))
    await started.wait()
    busy.behave(slow_s=60)
    asked = busy.ledger.calls["/health"]
    await busy.until(lambda seen: seen.calls["/health"] >= asked + 6, within_s=90)
    assert gateway.events("replica.ejected") == []
    await cancelled(stream)
    await gateway.until_states({"r1": "unreachable"})


async def test_other_role_behind_the_same_socket_is_another_worker(gateway: Gateway, engine: StartEngine) -> None:
    """The occupant, not the address: the old worker goes, a new one with the right role comes."""
    first = await engine(gateway.socket("r1"))
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    await first.stop()
    await engine(gateway.socket("r1"), role=Role.PREFILL, bootstrap_port=9001)
    status = await gateway.until(
        lambda s: [r["worker_type"] for r in service_of(s)["replicas"] if r["state"] == "serving"] == ["prefill"]
    )
    rows = [row for row in service_of(status)["replicas"] if row["state"] == "serving"]
    assert rows[0]["bridge"] != before["bridge"], "a port is not reused while anyone may still hold it"
    await gateway.until_states({"r1": "serving"})
    [worker] = [w for w in await gateway.workers() if w["status"] == "ready"]
    assert (worker["worker_type"], worker["bootstrap_port"]) == ("prefill", 9001)


async def test_other_engine_behind_the_same_forward_is_another_worker(gateway: Gateway, engine: StartEngine) -> None:
    """The socket is a forward's and stays; what it leads to is another engine now: replaced, with the right role."""
    far = gateway.directory / "far.sock"
    first = await engine(far)
    forward = await asyncio.start_unix_server(
        lambda r, w: asyncio.ensure_future(pipe(r, w, far)), str(gateway.socket("r1"))
    )
    async with forward:
        before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
        assert "far" in await ask(gateway, "tiny", stream=False)
        await first.kill()
        await engine(far, EngineKind.VLLM_GRPC, model="other")
        status = await gateway.until(
            lambda s: [(r["model"], r["state"]) for r in service_of(s)["replicas"]] == [("other", "serving")]
        )
        after = replica_of(status, "r1")
        assert (after["runtime_type"], after["connection_mode"]) == ("vllm", "grpc")
        assert after["bridge"] != before["bridge"]
        assert [w["url"] for w in await gateway.workers()] == [f"grpc://{after['bridge']}"]
        assert "far" in await ask(gateway, "other", stream=False)


async def test_drain_returns_when_it_is_safe_to_stop(gateway: Gateway, engine: StartEngine) -> None:
    """Out of rotation at once, wait for what is in flight, and no request after the drain."""
    draining = await engine(gateway.socket("r1"), token_interval_s=0.05)
    await engine(gateway.socket("r2"))
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    streams: list[asyncio.Task[str]] = []
    while draining.ledger.in_flight == 0:
        started = asyncio.Event()
        streams.append(asyncio.create_task(stream_chat(gateway, 40, started)))
        await started.wait()
    code, out, err = await gateway.cli("drain", "chat", "r1")
    assert (code, err) == (0, "")
    assert "safe to stop" in out
    assert draining.ledger.in_flight == 0
    received = draining.ledger.received
    for text in await asyncio.gather(*streams):
        assert text.split()[-1] == "39"
    for _ in range(10):
        assert "r2" in await ask(gateway, "tiny", stream=False)
    assert draining.ledger.received == received
    assert replica_of(await gateway.status(), "r1")["reason"] == "drain requested; drained, safe to stop"
    await draining.stop()
    await gateway.until_states({"r2": "serving"})


async def test_drain_is_meant_for_who_is_there_now(gateway: Gateway, engine: StartEngine) -> None:
    """An engine that has just taken a drained one's place is drained, and not its predecessor once more."""
    places = [gateway.socket(f"r{number}") for number in range(8)]
    before = [await engine(place) for place in places]
    await gateway.until_states({place.stem: "serving" for place in places})

    async def drain(replica: str) -> int:
        url = f"http://daemon/v1/services/chat/replicas/{replica}/drain"
        async with gateway.session.post(url) as response:
            return response.status

    assert set(await asyncio.gather(*(drain(place.stem) for place in places))) == {200}
    after = []
    for place, old in zip(places, before, strict=True):
        await old.stop(unlink=True)
        after.append(await engine(place))
        assert await drain(place.stem) == 200
        assert replica_of(await gateway.status(), place.stem)["state"] == "draining"
    await engine(gateway.socket("late"))
    await gateway.until_states({place.stem: "draining" for place in places} | {"late": "serving"})
    assert "late" in await ask(gateway, "tiny", stream=False)
    assert [one.ledger.received for one in after] == [0] * len(places)


async def test_drain_gives_up_in_words_and_resume_takes_back(gateway: Gateway, engine: StartEngine) -> None:
    """A drain that takes too long says what is still in flight; a drained replica can be taken back."""
    slow = await engine(gateway.socket("r1"), token_interval_s=0.05)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 20, started))
    await started.wait()
    slow.behave(hang=True)  # The stream goes on when the drain has given up, however slow the machine is.
    code, _, err = await gateway.cli("drain", "chat", "r1", "--timeout", "1.5")
    slow.behave(hang=False)
    assert code == 1
    # The router keeps a connection that it had used before for 3 s: there may be more than the stream's own.
    assert re.search(r"[1-9]\d* connections? in flight", err)
    assert (await stream).split()[-1] == "19"
    assert slow.ledger.aborted == 0
    assert (await gateway.cli("drain", "chat", "r1"))[0] == 0
    assert (await gateway.cli("resume", "chat", "r1"))[0] == 0
    await gateway.until_states({"r1": "serving"})
    assert "r1" in await ask(gateway, "tiny", stream=False)


async def test_what_a_drain_means_is_said_before_it_waits(gateway: Gateway, engine: StartEngine) -> None:
    """Whoever drains the last replica may yet start another: it is said at once, and again with the result."""
    slow = await engine(gateway.socket("r1"), token_interval_s=0.05)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 20, started))
    await started.wait()
    slow.behave(hang=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway_sidecar", "drain", "chat", "r1", "--config", str(gateway.config_path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    warning = "no replica would serve model tiny without r1: it is the model's only replica\n"
    async with asyncio.timeout(60):
        assert (await process.stderr.readline()).decode() == warning
    assert slow.ledger.in_flight == 1, "it waits for this one yet"
    slow.behave(hang=False)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.decode().startswith(f"{warning}r1 is drained after ")
    assert (await stream).split()[-1] == "19"


async def test_unchanged_replica_keeps_port_and_worker_while_neighbours_come_and_go(
    gateway: Gateway, engine: StartEngine
) -> None:
    """An unchanged replica keeps its port, its worker id and so its prefix cache."""
    await engine(gateway.socket("steady"))
    before = replica_of(await gateway.until_states({"steady": "serving"}), "steady")
    for _ in range(3):
        neighbours = [await engine(gateway.socket(f"n{i}")) for i in range(10)]
        await gateway.until(lambda s: list(states_of(s).values()).count("serving") == 11)
        for neighbour in neighbours:
            await neighbour.stop()
        await gateway.until_states({"steady": "serving"})
    after = replica_of(await gateway.status(), "steady")
    assert (after["bridge"], after["worker_id"]) == (before["bridge"], before["worker_id"])
    assert (await gateway.status())["nginx"]["reloads"] == 0


async def test_last_of_its_protocol_leaves_without_a_second_of_503(gateway: Gateway, engine: StartEngine) -> None:
    """SMG decides for HTTP or gRPC before it sees that all of the one drain; so they may drain for a moment only."""
    engines = {"h": await engine(gateway.socket("h"), EngineKind.VLLM_HTTP)}
    engines["g"] = await engine(gateway.socket("g"), EngineKind.SGLANG_GRPC)
    await gateway.until_states({"h": "serving", "g": "serving"})
    for leaving in ("g", "h"):
        outcomes: Counter[str] = Counter()
        out = asyncio.create_task(gateway.cli("drain", "chat", leaving))
        while not out.done() or outcomes.total() < 25:
            try:
                outcomes[(await stream_chat(gateway, 2)).split()[0]] += 1
            except AssertionError as error:
                outcomes[str(error)] += 1
        assert (await out)[0] == 0
        answered = outcomes.pop("h", 0) + outcomes.pop("g", 0)
        assert answered > 20
        assert outcomes.total() <= 2, outcomes
        assert (await gateway.cli("resume", "chat", leaving))[0] == 0
        await gateway.until_states({"h": "serving", "g": "serving"})
