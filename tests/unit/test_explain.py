"""`explain`: a replica's chain names the step that holds it up, by which evidence, and what would change that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway_sidecar.api.answers import Refused
from gateway_sidecar.api.explain_text import render_explained
from gateway_sidecar.api.explained import explained
from gateway_sidecar.domain.explain import (
    Bridging,
    Leaving,
    Probing,
    Record,
    Routing,
    Seen,
    Socket,
    Step,
    StepState,
    Worker,
    explain,
    explain_missing,
)
from gateway_sidecar.domain.lifecycle import Against, Evidence
from gateway_sidecar.domain.model import (
    ConnectionMode,
    Dead,
    EngineFacts,
    Foreign,
    Loading,
    ProbeResult,
    Ready,
    Registered,
    ReplicaId,
    ReplicaState,
    Unknown,
    WorkerStatus,
    WorkerType,
)
from gateway_sidecar.domain.planning import Why
from gateway_sidecar.domain.similar import near
from tests.unit.fake_time import in_fake_time
from tests.unit.test_api_models import check, daemon_of
from tests.unit.world import World, Worlds

FACTS = EngineFacts("sglang", ConnectionMode.HTTP, model="tiny")
URL = "http://127.0.0.1:24001"


def registered(status: WorkerStatus, note: str | None = None) -> Registered:
    return Registered("w1", URL, status, WorkerType.REGULAR, ConnectionMode.HTTP, "sglang", model_id="tiny", note=note)


SERVING = Record(
    state=ReplicaState.SERVING,
    state_age_s=60.0,
    seen=Seen("sockets", 90.0),
    socket=Socket("/run/r1.sock"),
    probe=Probing(Ready(FACTS), FACTS, asked_age_s=3.0, next_s=7.0, answered_age_s=0.2),
    bridge=Bridging("127.0.0.1:24001", linked=True, leads_to="/run/r1.sock"),
    router=Routing("smg", True, "up", "", True, 1.5, (Worker(URL, None, registered(WorkerStatus.READY)),)),
)


def with_result(result: ProbeResult | None, **said: object) -> Record:
    """One that has not been identified."""
    probe = replace(SERVING.probe, result=result, facts=None, **{"asked_age_s": 3.0, **said})  # type: ignore[arg-type]
    router = replace(SERVING.router, workers=())
    return replace(SERVING, state=ReplicaState.LOADING, probe=probe, bridge=Bridging(None, linked=False), router=router)


def with_worker(worker: Worker) -> Record:
    return replace(SERVING, state=ReplicaState.REGISTERING, router=replace(SERVING.router, workers=(worker,)))


CASES: dict[str, tuple[Record, str]] = {
    "it serves": (SERVING, "it serves: every step is well"),
    "it serves, with a lack": (replace(SERVING, reason="not routed yet: lora"), "it serves; but not routed yet: lora"),
    "its tunnel is down": (
        replace(with_result(None), socket=Socket("/t/1.sock", "8000 at gpu:22", "auth failed: denied")),
        "socket: tunnel: auth failed: denied",
    ),
    "no right": (replace(with_result(None), socket=Socket("/r", problem="permission denied")), "socket: permission"),
    "bad notes": (replace(with_result(None), socket=Socket("/r", notes_problem="r.yaml:1: no")), "socket: its notes"),
    "not read": (replace(with_result(None), socket=Socket("/r", notes_read=False)), "socket: its notes have not"),
    "not asked": (with_result(None), "probe: not asked yet"),
    "being asked": (with_result(None, asking=True), "probe: being asked now"),
    "it loads": (with_result(Loading("/health answers 503")), "probe: /health answers 503"),
    "nobody listens": (with_result(Loading("connection refused", refused=True)), "probe: connection refused"),
    "it sleeps": (with_result(Loading("it sleeps", asleep=True)), "probe: it sleeps"),
    "it is no engine": (with_result(Foreign("HTTP, but no OpenAI API")), "probe: HTTP, but no"),
    "it is silent": (with_result(Unknown("no answer")), "probe: no answer"),
    "our trouble": (with_result(Unknown("no descriptors", ours=True)), "probe: no descriptors"),
    "it takes its time": (with_result(Unknown("no answer to /server_info", begun=True)), "probe: no answer to /ser"),
    "it is dead": (
        replace(
            SERVING,
            state=ReplicaState.DEAD,
            probe=replace(SERVING.probe, result=Dead("it hangs"), ejected=Against.DEAD, ejected_age_s=4.0),
            router=replace(SERVING.router, workers=(Worker(URL, None, None),)),
        ),
        "probe: it hangs",
    ),
    "no port": (
        replace(SERVING, bridge=Bridging(None, linked=False, problem="no free bridge port")),
        "bridge: no free",
    ),
    "port to come": (replace(SERVING, bridge=Bridging(None, linked=False)), "bridge: it has no port"),
    "no key": (
        replace(SERVING, bridge=replace(SERVING.bridge, key_problem="its nginx does not start")),
        "bridge: its nginx does not start",
    ),
    "no address": (
        replace(SERVING, bridge=replace(SERVING.bridge, peer="10.0.0.1:8000", peer_problem="no right")),
        "bridge: no right",
    ),
    "no link": (replace(SERVING, bridge=Bridging("127.0.0.1:24001", linked=False)), "bridge: 127.0.0.1:24001 leads no"),
    "router down": (
        replace(SERVING, router=Routing("smg", False, "backing_off", "exit code 1")),
        "router: smg is backing_off: exit code 1",
    ),
    "router refuses": (replace(SERVING, router=Routing("smg", False, "refused", "exit code 2")), "router: smg is ref"),
    "router starts": (replace(SERVING, router=Routing("smg", False, "starting")), "router: smg is starting"),
    "no list": (replace(SERVING, router=Routing("smg", True, "up")), "router: smg has not listed"),
    "to be told": (with_worker(Worker(URL, None, None)), "router: not registered yet"),
    "being told": (with_worker(Worker(URL, None, None, busy=True)), "router: the router is being told"),
    "refused": (with_worker(Worker(URL, None, None, held_s=4.0, trouble="400: no")), "router: 400: no"),
    "pending": (with_worker(Worker(URL, "lora", registered(WorkerStatus.PENDING))), "router: accepted by the router"),
    "given up": (with_worker(Worker(URL, None, registered(WorkerStatus.FAILED, "timeout"))), "router: the router says"),
    "superseded": (replace(SERVING, seen=Seen("api", 9.0, superseded=True)), "seen: its replica has moved"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_chain_names_what_holds_it_up(case: str) -> None:
    """The first step that is not well; each such step says what would change it, and no time runs backwards."""
    record, why = CASES[case]
    found = explain(record)
    assert found.why.startswith(why)
    assert [step.name for step in found.steps] == ["seen", "socket", "probe", "bridge", "router"]
    for step in found.steps:
        assert step.says
        if step.state is StepState.FAILED:
            assert step.change, step
    assert "-" not in " ".join(each for step in found.steps for each in step.evidence if " ago" in each)


LEAVING: dict[str, tuple[Leaving, Routing, str, StepState]] = {
    "a router lists it": (Leaving(False), SERVING.router, "a router lists it still", StepState.WAITING),
    "not counted": (
        Leaving(False, None, 1.0),
        replace(SERVING.router, workers=()),
        "its connections have not been counted yet",
        StepState.WAITING,
    ),
    "in flight": (
        Leaving(False, 2, 1.0, 290.0),
        replace(SERVING.router, workers=()),
        "2 connections in flight",
        StepState.WAITING,
    ),
    "quiet": (
        Leaving(False, 0, 1.0),
        replace(SERVING.router, workers=()),
        "nothing is in flight; its",
        StepState.WAITING,
    ),
    "done": (Leaving(True, 0, 9.0), replace(SERVING.router, workers=()), "nothing is in flight: safe", StepState.OK),
}


@pytest.mark.parametrize("gone", [None, Why.SOCKET_GONE, Why.REPLACED])
@pytest.mark.parametrize("case", LEAVING)
def test_what_leaves_says_how_far_it_is(case: str, gone: Why | None) -> None:
    """And what is waited for; only a drained replica can be taken back."""
    leaving, router, says, state = LEAVING[case]
    record = replace(
        SERVING, state=ReplicaState.DRAINING, leaving=leaving, router=router, command="chat r1",
        seen=replace(SERVING.seen, gone=gone), bridge=replace(SERVING.bridge, linked=gone is None),
        probe=replace(SERVING.probe, drained=gone is None),
    )  # fmt: skip
    found = explain(record)
    drain = found.steps[-1]
    assert (drain.name, drain.state) == ("drain", state)
    assert drain.says.startswith(says)
    assert found.why == f"drain: {drain.says}"
    if state is StepState.OK or drain.says.startswith("2 "):
        assert ("resume chat r1" in drain.change) is (gone is None)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Against.REFUSED, "2 failures in a row over 0.3 s (refused); 3 over 0.5 s take it out of rotation"),
        (Against.NOT_READY, "2 failures in a row over 0.3 s (not ready); 3 take it out of rotation"),
        (Against.SILENT, "2 failures in a row over 0.3 s (silent); 3 over 10 s take it out of rotation"),
    ],
)
def test_evidence_says_how_much_more_it_takes(kind: Against, words: str) -> None:
    """By the thresholds that are in force."""
    probe = replace(SERVING.probe, result=Loading("no"), evidence=Evidence(kind, 2, 0.0), evidence_age_s=0.3)
    assert words in explain(replace(SERVING, probe=probe)).steps[2].evidence


def test_a_replica_without_an_occupant_has_a_chain_too() -> None:
    """What comes before is well, and what comes after is not reached."""
    found = explain_missing("absent", Step("socket", StepState.FAILED, "there is no socket /r"))
    assert [step.state for step in found.steps] == ["ok", "failed", "not reached", "not reached", "not reached"]
    assert found.why == "socket: there is no socket /r"


def test_names_near_an_unknown_one_come_first() -> None:
    """Of a thousand the ten shown are those that were meant."""
    names = [f"gpu{number:04}" for number in range(1000)]
    text = near("gpu-0417", names)
    assert text.startswith("did you mean 'gpu0417'? there are: gpu0417, ")
    assert text.endswith(", and 990 more")
    assert near("x", []) == "there are: none"


def answer_of(world: World, replica: str, known: Any = None) -> str:
    """What `explain` prints; the answer is as the API describes it."""
    answer = explained(daemon_of(world, known or {}), world.service, ReplicaId(replica))
    check(answer, "Explained")
    return render_explained(answer, 80)


@in_fake_time
async def test_the_chain_of_a_service_that_runs(worlds: Worlds) -> None:
    """From the records of the daemon's own parts, in each state that a replica comes through; no line is too long."""
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2", Loading("/health answers 503"))
        await world.until(lambda: world.states() == {"r1": "serving", "r2": "loading"})
        assert answer_of(world, "r1").startswith("chat/r1 is serving for ")
        text = answer_of(world, "r2")
        assert "chat/r2 is loading for" in text
        assert text.split("\n")[0].endswith(", because of probe")
        assert max(map(len, text.splitlines())) <= 80
        world.answer("r1", Loading("connection refused", refused=True))
        await world.until(lambda: world.states()["r1"] == "unreachable")
        text = answer_of(world, "r1")
        assert "  FAILED  probe   connection refused" in text
        assert "taken out of rotation" in text
        world.vanish("r2")
        await world.until(lambda: "r2" not in world.states())
        absent = answer_of(world, "r3", {ReplicaId("r3"): {"socket": "/run/r3.sock"}})
        assert "chat/r3 is absent" in absent
        with pytest.raises(Refused) as unknown:
            answer_of(world, "r11")
        assert "did you mean 'r1'?" in unknown.value.body["error"]


@pytest.mark.parametrize("width", [40, 80, None])
def test_text_fits_the_terminal(width: int | None, tmp_path: Path) -> None:
    """What is long goes on in the next line, and nothing is left out."""
    record = replace(with_result(Loading("the engine says " + "a word " * 30)), socket=Socket(str(tmp_path)))
    it = explain(record)
    names = ("name", "state", "says", "evidence", "change")
    steps = [{name: getattr(step, name) for name in names} for step in it.steps]
    stay = {"state": "loading", "state_age_s": 3.0, "why": it.why, "steps": steps}
    event = {"timestamp": "2027-01-31T12:00:00Z", "level": "warning", "event": "replica.seen", "x": "y" * 60}
    answer: Any = {"service": "chat", "replica": "r1", "stays": [stay], "events": [event]}
    shown = render_explained(answer, width)
    assert " ".join(shown.split()).count("a word") == 30
    if width is not None:
        assert [line for line in shown.splitlines() if len(line) > width] == []
