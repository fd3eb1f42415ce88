"""One service from a replica's coming to its going, in fake time: what the control loop promises, whatever happens."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from gateway_sidecar.control.replicas.bridging import Bridging
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.routers import replacement as router_slots
from gateway_sidecar.domain.model import Foreign, Loading, Ready, ReplicaId, ReplicaState, Unknown, WorkerStatus
from gateway_sidecar.domain.planning import Missing
from gateway_sidecar.sources.listing import Listing
from gateway_sidecar.supervision import awake
from tests.unit.fake_time import in_fake_time
from tests.unit.world import FACTS, READY, REFUSED, Worlds

# -- coming


@in_fake_time
async def test_replica_comes_to_serve_within_a_moment(worlds: Worlds) -> None:
    """Seen, asked, bridged, registered, ready: and only then are requests let in."""
    async with worlds() as world:
        began = awake.monotonic()
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        assert awake.monotonic() - began < 0.2
        port = world.tenure("r1").bridge.port
        assert port is not None
        assert world.links.led == {port: world.directory / "r1.sock"}
        assert world.router.calls == [("register", f"http://127.0.0.1:{port}")]
        await world.until(lambda: not world.links.closed)
        await world.at_rest()


@in_fake_time
async def test_nothing_leads_to_what_is_not_ready(worlds: Worlds) -> None:
    """It is asked often at first and then less, and has neither a port nor a worker."""
    async with worlds() as world:
        world.appear("r1", Loading("503: loading"))
        await asyncio.sleep(600)
        assert world.states() == {"r1": ReplicaState.LOADING}
        assert (world.links.led, world.leases.leased, world.router.calls) == ({}, {}, [])
        asked = len(world.probe.asked)
        assert asked < 1000
        world.answer("r1", READY)
        await world.until(lambda: world.serves("r1"), within_s=3)


@in_fake_time
async def test_what_is_no_engine_is_never_bridged(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1", Foreign("it speaks Redis"))
        await asyncio.sleep(60)
        assert world.states() == {"r1": ReplicaState.FOREIGN}
        assert (world.links.led, world.leases.leased, world.router.calls) == ({}, {}, [])


@in_fake_time
async def test_engine_is_identified_once_and_then_asked_for_its_health(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        await asyncio.sleep(100)
        kinds = [kind for kind, _ in world.probe.asked]
        assert kinds.count("identify") == 1
        assert 5 <= kinds.count("health") <= 100
        assert len(world.router.calls) == 1


@in_fake_time
async def test_replicas_beyond_the_ports_wait_and_get_theirs(worlds: Worlds) -> None:
    """Twenty ports: the twenty-first replica says why it is not served, and serves once another has left."""
    async with worlds() as world:
        names = [f"r{number:02}" for number in range(21)]
        for name in names:
            world.appear(name)
        await world.until(lambda: list(world.states().values()).count(ReplicaState.SERVING) == 20)
        (waiting,) = [t for t in world.service.tenures.values() if t.bridge.port is None]
        assert "no free bridge port" in (waiting.bridge.problem or "")
        left = next(name for name in names if name != waiting.replica)
        world.vanish(left)
        await world.until(lambda: world.serves(*(set(names) - {left})))


# -- going


@in_fake_time
async def test_socket_that_is_gone_takes_its_worker_with_it(worlds: Worlds) -> None:
    """The router first, the bridge at once, the port when nobody holds a connection any more."""
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.serves("r1", "r2"))
        tenure = world.tenure("r1")
        port, url = tenure.bridge.port, tenure.url
        assert port is not None
        world.connections[port] = 3
        world.vanish("r1")
        await world.until(lambda: ("deregister", str(url)) in world.router.calls, within_s=0.1)
        await world.until(lambda: port not in world.links.led, within_s=0.1)
        await asyncio.sleep(60)
        assert world.leases.port_of(tenure.owner) == port, "somebody is connected"
        world.connections[port] = 0
        await world.until(lambda: world.leases.port_of(tenure.owner) is None)
        assert world.serves("r2")
        await world.at_rest()


@in_fake_time
async def test_connection_to_an_engine_that_is_gone_is_waited_for_no_longer_than_a_drain(worlds: Worlds) -> None:
    """Then it is shown no more; its port rests for as long as somebody is connected, and nobody else gets it."""
    async with worlds(drain={"timeout_s": 60}) as world:
        port = await world.in_use("r1")
        world.vanish("r1")
        await asyncio.sleep(55)
        assert [str(t.replica) for t in world.service.tenures.values()] == ["r1"]
        await asyncio.sleep(10)
        assert not world.service.tenures
        await asyncio.sleep(200)
        assert world.leases.quarantined == {port}
        world.connections[port] = 0
        await world.at_rest()


@in_fake_time
async def test_replaced_router_is_ended_after_its_time(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that never ends does not keep it for ever; how long drains wait is another matter."""
    async with worlds(router={"retire_timeout_s": 100}, drain={"timeout_s": 5}) as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        monkeypatch.setattr(router_slots, "open_connections", lambda ports: Counter(dict.fromkeys(ports, 1)))
        await world.service.slots.replace()
        await asyncio.sleep(90)
        assert len(world.service.routers) == 2
        await asyncio.sleep(20)
        assert len(world.service.routers) == 1


@in_fake_time
async def test_last_replica_that_leaves_closes_the_gate_first(worlds: Worlds) -> None:
    """Scale to zero: requests wait from before the router is told."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1") and not world.links.closed)
        world.vanish("r1")
        await world.until(lambda: "deregister" in dict(world.router.calls))
        assert world.links.closed
        await world.until(lambda: world.service.hold.missing is Missing.REPLICA)
        world.appear("r1")
        await world.until(lambda: not world.links.closed)


@in_fake_time
async def test_source_that_is_blind_changes_nothing(worlds: Worlds) -> None:
    """Unknown is not empty."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        world.source.trouble = "the directory cannot be read"
        (world.directory / "r1.sock").unlink()
        await asyncio.sleep(900)
        assert world.serves("r1")
        world.source.trouble = None
        await world.until(lambda: world.states() == {})


@in_fake_time
async def test_a_place_that_was_not_seen_whole_has_not_been_looked_at(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before everything was seen once, a worker may be somebody's who was not seen yet."""
    async with worlds() as world:
        await world.restart()
        look = world.source.look

        async def look_past_the_inventory() -> Listing:
            return replace(await look(), unseen={"inventory": "it cannot be read"})

        monkeypatch.setattr(world.source, "look", look_past_the_inventory)
        await world.restart()
        await world.service.look_again()
        assert not world.service.has_looked
        monkeypatch.setattr(world.source, "look", look)
        await world.service.look_again()
        assert world.service.has_looked


@in_fake_time
async def test_looking_again_waits_for_a_look_that_began_later(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was under way may have passed the place already. A source that hangs is not waited for."""
    async with worlds() as world:
        look, took_s = world.source.look, [0.4]

        async def look_slowly() -> Listing:
            seen = await look()
            await asyncio.sleep(took_s[-1])
            return seen

        monkeypatch.setattr(world.source, "look", look_slowly)
        world.source.hint()
        await asyncio.sleep(0.2)
        world.appear("r1")
        await world.service.look_again()
        assert world.service.current(ReplicaId("r1")) is not None
        took_s.append(1000.0)
        began = awake.monotonic()
        await world.service.look_again()
        assert awake.monotonic() - began == pytest.approx(1.0, abs=0.1)


@in_fake_time
async def test_drain_waits_for_what_is_in_flight_and_resume_takes_back(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.serves("r1", "r2"))
        tenure = world.tenure("r1")
        port = tenure.bridge.port
        assert port is not None
        world.connections[port] = 1
        draining = asyncio.create_task(world.service.drains.drain(ReplicaId("r1"), 100.0))
        await asyncio.sleep(50)
        assert not draining.done()
        assert tenure.url not in world.router.workers
        world.connections[port] = 0
        report = await draining
        assert (report.drained, report.in_flight) == (True, 0)
        await asyncio.sleep(60)
        assert world.states() == {"r1": ReplicaState.DRAINING, "r2": ReplicaState.SERVING}
        world.service.drains.resume(ReplicaId("r1"))
        await world.until(lambda: world.serves("r1", "r2"))
        assert world.tenure("r1").bridge.port == port


@in_fake_time
async def test_drain_that_gives_up_says_what_is_in_flight(worlds: Worlds) -> None:
    async with worlds() as world:
        await world.in_use("r1", 2)
        report = await world.service.drains.drain(ReplicaId("r1"), 10.0)
        assert (report.drained, report.in_flight) == (False, 2)
        assert report.took_s == pytest.approx(10.0)


# -- what engines do


@in_fake_time
async def test_engine_that_refuses_is_taken_out_and_comes_back_to_its_port(worlds: Worlds) -> None:
    """Grow before shrink: its port, its URL and so the router's prefix cache stay."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        url = world.tenure("r1").url
        world.answer("r1", REFUSED)
        await world.until(lambda: world.states() == {"r1": ReplicaState.UNREACHABLE})
        await world.until(lambda: world.router.workers == {})
        world.answer("r1", READY)
        await world.until(lambda: world.serves("r1"))
        assert world.tenure("r1").url == url
        assert [call for call, _ in world.router.calls] == ["register", "deregister", "register"]


@in_fake_time
async def test_one_failed_question_takes_nobody_out(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        world.answer("r1", Unknown("no answer"))
        asked = len(world.probe.asked)
        await world.until(lambda: len(world.probe.asked) > asked)
        world.answer("r1", READY)
        await asyncio.sleep(60)
        assert world.serves("r1")
        assert len(world.router.calls) == 1


@in_fake_time
async def test_another_socket_at_the_same_path_is_another_worker(worlds: Worlds) -> None:
    """The occupant, not the address: the old one's port rests, the new one has its own."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        before = world.tenure("r1").bridge.port
        world.appear("r1")
        await world.until(lambda: world.serves("r1") and world.tenure("r1").bridge.port != before)
        await world.until(lambda: len(world.router.workers) == 1)
        await world.at_rest()
        assert len(world.leases.leased) == 1


@in_fake_time
async def test_another_engine_behind_the_same_socket_is_another_worker(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1", Ready(replace(FACTS, instance="one")))
        await world.until(lambda: world.serves("r1"))
        before = world.tenure("r1").url
        world.answer("r1", REFUSED)
        await asyncio.sleep(0.5)
        world.answer("r1", Ready(replace(FACTS, model="other", instance="two")))
        await world.until(lambda: world.serves("r1") and world.tenure("r1").url != before)
        await world.at_rest()
        assert [row.model_id for row in world.router.workers.values()] == ["other"]


@in_fake_time
async def test_an_engine_that_takes_the_place_of_another_and_loads_first_is_another_worker(worlds: Worlds) -> None:
    """While it loads it says already who it is: what it answers then proves nothing of the engine before."""
    async with worlds() as world:
        other = replace(FACTS, instance="two")
        world.appear("r1", Ready(replace(FACTS, instance="one")))
        await world.until(lambda: world.serves("r1"))
        before = world.tenure("r1").url
        world.answer("r1", REFUSED)
        await asyncio.sleep(0.2)
        world.answer("r1", Loading("/health answers 503", other))
        await world.until(lambda: world.states() == {"r1": "dead"})
        world.answer("r1", Ready(other))
        await world.until(lambda: world.serves("r1"))
        assert world.tenure("r1").url != before
        assert world.tenure("r1").probe.facts == other


@in_fake_time
async def test_notes_beside_a_socket_are_told_and_a_bad_file_changes_nothing(worlds: Worlds) -> None:
    async with worlds() as world:
        (world.directory / "r1.yaml").write_text("named")
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        assert [row.model_id for row in world.router.workers.values()] == ["named"]
        (world.directory / "r1.yaml").write_text("bad")
        world.source.hint()
        await world.until(lambda: world.tenure("r1").notes.problem is not None)
        await asyncio.sleep(60)
        assert [row.model_id for row in world.router.workers.values()] == ["named"]


# -- what routers do


@in_fake_time
async def test_router_that_is_killed_gets_everybody_back_before_requests_go_on(worlds: Worlds) -> None:
    async with worlds() as world:
        for name in ("r1", "r2", "r3"):
            world.appear(name)
        await world.until(lambda: world.serves("r1", "r2", "r3") and not world.links.closed)
        urls = world.router.ready()
        world.process.end()
        await world.until(lambda: world.links.closed)
        await world.until(lambda: not world.links.closed)
        assert world.router.ready() == urls, "the same ports, and all of them"


@in_fake_time
async def test_router_that_is_silent_is_replaced(worlds: Worlds) -> None:
    """First requests wait, then it is ended: nobody is deregistered for it."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1") and not world.links.closed)
        silent = world.router
        silent.silent = True
        await world.until(lambda: world.links.closed)
        await world.until(lambda: world.router is not silent and world.serves("r1") and not world.links.closed)
        assert world.router.ready() == {str(world.tenure("r1").url)}


@in_fake_time
async def test_replacement_is_given_every_worker_before_it_takes_over(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.serves("r1", "r2"))
        old, slot = world.router, world.links.slot
        urls = old.ready()
        await world.service.slots.replace()
        assert world.router is not old
        assert world.links.slot != slot
        assert world.router.ready() == urls
        await world.until(lambda: len(world.service.routers) == 1)
        await world.at_rest()


@in_fake_time
async def test_worker_that_nobody_knows_is_taken_out(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        orphan = replace(next(iter(world.router.workers.values())), worker_id="w99", url="http://127.0.0.1:24020")
        world.router.workers[orphan.url] = orphan
        await world.until(lambda: orphan.url not in world.router.workers)
        assert world.serves("r1")


@in_fake_time
async def test_worker_that_the_router_lost_is_registered_again(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        world.router.workers.clear()
        await world.until(lambda: not world.serves("r1"))
        await world.until(lambda: world.serves("r1"))
        assert [call for call, _ in world.router.calls] == ["register", "register"]


@in_fake_time
async def test_worker_that_failed_is_taken_out_and_tried_again(worlds: Worlds) -> None:
    async with worlds() as world:
        world.router.ready_after_s = 1000.0
        world.appear("r1")
        await world.until(lambda: len(world.router.workers) == 1)
        url, row = next(iter(world.router.workers.items()))
        world.router.workers[url] = replace(row, status=WorkerStatus.FAILED)
        world.router.ready_after_s = 0.02
        await world.until(lambda: world.serves("r1"))
        assert world.tenure("r1").url == url


# -- restarts of the daemon


@in_fake_time
async def test_next_daemon_takes_up_what_runs(worlds: Worlds) -> None:
    """The same port, nobody is registered again, and nobody is asked again what it is."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1") and not world.links.closed)
        url, calls = world.tenure("r1").url, list(world.router.calls)
        world.probe.asked.clear()
        await world.restart()
        await asyncio.sleep(60)
        assert world.serves("r1")
        assert world.tenure("r1").url == url
        assert world.router.calls == calls
        assert {kind for kind, _ in world.probe.asked} == {"health"}
        assert not world.links.closed


@in_fake_time
async def test_what_came_and_went_while_no_daemon_ran_is_put_right(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.serves("r1", "r2"))
        url = world.tenure("r1").url
        (world.directory / "r2.sock").unlink()
        world.probe.answers["r3"] = READY
        (world.directory / "r3.sock").touch()
        await world.restart()
        await world.until(lambda: world.serves("r1", "r3"))
        assert world.tenure("r1").url == url
        await world.at_rest()


# -- faults of our own


@in_fake_time
async def test_fault_in_a_probe_is_survived_and_the_replica_asked_again(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1", ZeroDivisionError("a fault of the probe's"))
        world.appear("r2")
        await world.until(lambda: world.states().get("r2") is ReplicaState.SERVING)
        await world.until(lambda: world.faults() >= 3)
        assert world.faults() <= 10, "with a pause after each"
        world.answer("r1", READY)
        await world.until(lambda: world.serves("r1", "r2"), within_s=5)


@in_fake_time
@pytest.mark.parametrize("part", ["_answers_requests", "_trust_since"])
async def test_fault_when_the_next_question_is_due_is_survived_and_the_question_asked(
    part: str, worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer begins the question, not the loop."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        await world.at_rest()
        before, faults = len(world.probe.asked), [ZeroDivisionError("once")]
        real = getattr(world.service.prober, part)

        def stumble(*args: object) -> object:
            if faults:
                raise faults.pop()
            return real(*args)

        monkeypatch.setattr(world.service.prober, part, stumble)
        await world.until(lambda: world.faults() == 1)
        await world.until(lambda: len(world.probe.asked) > before + 2)
        assert [(it["loop"], it["service"]) for it in world.log if it["event"] == "loop.failed"]
        assert world.serves("r1")


@in_fake_time
async def test_fault_when_a_liveness_connection_ends_is_survived_and_the_engine_asked(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worlds() as world:
        monkeypatch.setattr(world.service.liveness, "_ended", lambda *_: 1 // 0)
        world.appear("r1")
        await world.until(lambda: world.serves("r1") and bool(world.liveness_connections))
        world.answer("r1", REFUSED)
        await world.until(lambda: world.faults() == 1)
        await world.until(lambda: world.states() == {"r1": ReplicaState.UNREACHABLE}, within_s=5)


@in_fake_time
async def test_fault_with_one_replica_is_no_other_replicas(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a fault each time it is looked at is looked at again each second; whoever comes meanwhile is served."""
    async with worlds() as world:
        keep_up = Bridging.keep_up

        def keep_up_or_fail(self: Bridging, tenure: Tenure) -> None:
            if tenure.replica == "r1":
                raise ZeroDivisionError("a fault of the loop's")
            keep_up(self, tenure)

        monkeypatch.setattr(Bridging, "keep_up", keep_up_or_fail)
        world.appear("r1")
        world.appear("r2")
        began = awake.monotonic()
        await world.until(lambda: world.states().get("r2") is ReplicaState.SERVING)
        assert awake.monotonic() - began < 0.2
        await asyncio.sleep(10)
        assert 8 <= world.faults() <= 20
        monkeypatch.setattr(Bridging, "keep_up", keep_up)
        await world.until(lambda: world.serves("r1", "r2"), within_s=3)


@in_fake_time
async def test_fault_in_a_worker_operation_is_survived_and_tried_again(worlds: Worlds) -> None:
    async with worlds() as world:
        world.router.faults = [ZeroDivisionError("a fault of the client's")] * 3
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        assert world.faults() == 3
        assert awake.monotonic() < 10, "its pauses grow as after a refusal"


@in_fake_time
async def test_fault_while_a_router_is_replaced_leaves_the_old_one(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        old = world.router

        def fault(service: str, slot: str) -> None:
            raise ZeroDivisionError(service, slot)

        monkeypatch.setattr(world.service.slots, "_point", fault)
        with pytest.raises(ZeroDivisionError):
            await world.service.slots.replace()
        assert world.router is old
        assert len(world.service.routers) == 1
        monkeypatch.setattr(world.service.slots, "_point", world.links.point)
        await world.service.slots.replace()
        assert world.router is not old


@in_fake_time
async def test_fault_while_a_router_retires_does_not_keep_it(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        old, faults = world.process, [ZeroDivisionError("once")]
        stop = old.stop

        async def stop_in_the_end(grace_s: float) -> None:
            if faults:
                raise faults.pop()
            await stop(grace_s)

        monkeypatch.setattr(old, "stop", stop_in_the_end)
        await world.service.slots.replace()
        await world.until(lambda: len(world.service.routers) == 1)
        assert world.faults() == 1
        await world.service.slots.replace()


@in_fake_time
async def test_fault_while_a_router_is_doubted_does_not_close_the_gate_for_ever(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request was refused by the router; the task that asks whether it accepts has a fault."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1") and not world.links.closed)
        faults = [ZeroDivisionError("once")]

        async def accepts() -> bool:
            if faults:
                raise faults.pop()
            return True

        monkeypatch.setattr(world.process, "accepts_connections", accepts)
        world.service.hold._begin_to_doubt(0.05)
        assert world.links.closed
        await world.until(lambda: not world.links.closed)
        assert world.faults() == 1


@in_fake_time
async def test_an_engine_that_serves_one_connection_is_waited_for_in_line_once(worlds: Worlds) -> None:
    """While it is busy, one place in its queue is ours and no more; and its end is noticed at once all the same."""
    async with worlds() as world:
        world.appear("r1", Ready(replace(FACTS, runtime_type="external")))
        await world.until(lambda: world.serves("r1"))
        lines = world.liveness_connections["r1"]
        await asyncio.sleep(60)
        assert len(lines) == 1, "it has taken none yet"
        for taken in range(1, 4):
            lines[-1].close()
            await asyncio.sleep(0.2)
            assert len(lines) == taken, "not again and again in a moment"
            await world.until(lambda taken=taken: len(lines) == taken + 1, within_s=1)  # type: ignore[misc]
        assert world.serves("r1")
        world.answer("r1", REFUSED)
        await world.until(lambda: not world.serves("r1"), within_s=3)


@in_fake_time
async def test_names_that_an_engine_gets_and_loses_are_workers_that_come_and_go(worlds: Worlds) -> None:
    """It stays the engine that it was, with its port and its first worker, and the next daemon knows all of them."""

    def called(*names: str) -> Ready:
        return Ready(FACTS.listing(FACTS.model, names))

    async with worlds() as world:
        world.appear("r1", called("sql", "org/x"))
        await world.until(lambda: world.serves("r1"))
        port = world.tenure("r1").bridge.port
        base = f"http://127.0.0.1:{port}"
        await world.until(lambda: world.router.ready() == {base, f"{base}/=sql", f"{base}/=org%2Fx"})
        assert {row.model_id for row in world.router.workers.values()} == {FACTS.model, "sql", "org/x"}
        await world.restart()
        await world.at_rest()
        assert [kind for kind, _ in world.router.calls] == ["register"] * 3
        world.answer("r1", called("sql", "new"))
        await world.until(lambda: world.router.ready() == {base, f"{base}/=sql", f"{base}/=new"}, within_s=90)
        assert world.tenure("r1").bridge.port == port
        assert world.router.calls.count(("deregister", base)) == 0
        await world.service.drains.drain(ReplicaId("r1"), 30.0)
        assert world.router.workers == {}
        await world.at_rest()


@in_fake_time
async def test_a_name_that_has_no_worker_is_said(worlds: Worlds) -> None:
    """In the replica's reason, until the router has it."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        world.router.ready_after_s = 5.0
        world.answer("r1", Ready(FACTS.listing(FACTS.model, ["sql"])))
        await world.until(lambda: world.tenure("r1").status.reason == "not routed yet: sql", within_s=90)
        await world.until(lambda: world.tenure("r1").status.reason == "", within_s=30)
        assert world.serves("r1")
