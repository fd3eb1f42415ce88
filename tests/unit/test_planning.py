"""The planner against a small world: whatever is cut off, lost or unknown, it converges and breaks no law."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.model import (
    MOST_NAMES,
    ConnectionMode,
    EngineFacts,
    Overrides,
    Registered,
    WorkerStatus,
    WorkerType,
)
from gateway_sidecar.domain.planning import (
    Bridge,
    Deregister,
    Missing,
    OccupantAction,
    OccupantView,
    Register,
    Release,
    Unbridge,
    Why,
    WorkerAction,
    WorkerView,
    base_of,
    describe,
    differs,
    missing_role,
    plan_occupant,
    plan_orphans,
    plan_worker,
    worker_spec,
    worker_urls,
)

FACTS = EngineFacts("sglang", ConnectionMode.HTTP, model="tiny")
URL = "http://127.0.0.1:24001"
READY = Registered("w1", URL, WorkerStatus.READY, WorkerType.REGULAR, ConnectionMode.HTTP, "sglang")


def view(**changes: object) -> OccupantView:
    """A healthy, bridged occupant, changed as said."""
    healthy = OccupantView(
        facts=FACTS, wanted=True, leaving=None, gone=False, port=24001, linked=True, url=URL, in_flight=None
    )
    return replace(healthy, **changes)  # type: ignore[arg-type]


def seen(worker: Registered | None = None, **changes: object) -> WorkerView:
    """The router's list is known and shows this worker."""
    return replace(WorkerView(listed=True, worker=worker), **changes)  # type: ignore[arg-type]


def test_new_occupant_is_bridged_first() -> None:
    """Grow before shrink: bridge -> register -> Ready."""
    fresh = view(linked=False, port=None, url=None)
    assert plan_occupant(fresh, [seen()]) == Bridge()
    assert plan_worker(fresh, seen()) is None, "nothing is registered that cannot be reached"


@pytest.mark.parametrize("leaving", [None, Why.UNREACHABLE, Why.ADDRESS])
def test_nothing_leads_to_what_is_not_known_to_be_an_engine(leaving: Why | None) -> None:
    """Before it was found ready, and once it is not any more, nobody gets a bridge; one that is there stays."""
    for facts in (None, FACTS):
        unready = view(linked=False, port=None, url=None, facts=facts, wanted=False, leaving=leaving)
        assert plan_occupant(unready, [seen()]) is None
        assert plan_worker(unready, seen()) is None
        assert plan_occupant(replace(unready, linked=True, port=24001), [seen(READY)]) is None, "ill, or adopted"


def test_an_address_that_does_not_lead_to_it_yet_is_waited_for() -> None:
    """The router is told of an advertised address when it leads somewhere; a worker that is there stays."""
    waiting = view(reachable=False)
    assert plan_worker(waiting, seen()) is None
    assert plan_worker(waiting, seen(READY)) is None
    assert isinstance(plan_worker(view(leaving=Why.MOVED, reachable=False), seen(READY)), Deregister)


def test_ready_engine_is_registered_as_what_it_is() -> None:
    """All that the engine said reaches the router; what the notes say stands above it."""
    facts = replace(FACTS, worker_type=WorkerType.PREFILL, bootstrap_port=8998, kv_role="kv_producer")
    overrides = Overrides(labels={"rack": "b7"}, worker_type=WorkerType.DECODE, priority=3, cost=2.0, api_key="k")
    action = plan_worker(view(facts=facts, overrides=overrides), seen())
    assert isinstance(action, Register)
    spec = action.spec
    assert (spec.url, spec.worker_type, spec.bootstrap_port, spec.kv_role) == (
        URL, WorkerType.DECODE, 8998, "kv_producer",
    )  # fmt: skip
    assert (dict(spec.labels), spec.priority, spec.cost, spec.api_key) == ({"rack": "b7"}, 3, 2.0, "k")


@pytest.mark.parametrize("status", list(WorkerStatus))
def test_unknown_removes_nothing(status: WorkerStatus) -> None:
    """A list that is not known, an operation under way, an engine that was silent once: nothing happens."""
    worker = replace(READY, status=status)
    for leaving in (None, *Why):
        assert plan_worker(view(leaving=leaving, wanted=False), seen(worker, listed=False)) is None
        assert plan_worker(view(leaving=leaving, wanted=False), seen(worker, busy=True)) is None
    assert plan_worker(view(wanted=False), seen(worker)) is None


@pytest.mark.parametrize("why", [Why.SOCKET_GONE, Why.DRAIN, Why.UNREACHABLE, Why.REPLACED])
@pytest.mark.parametrize(
    "status", [WorkerStatus.READY, WorkerStatus.NOT_READY, WorkerStatus.PENDING, WorkerStatus.FAILED]
)
def test_positive_evidence_removes(why: Why, status: WorkerStatus) -> None:
    """Gone, drained, ejected or replaced: out, whatever the router thinks of it."""
    action = plan_worker(view(leaving=why, wanted=False), seen(replace(READY, status=status)))
    assert action == Deregister("w1", URL, why)


def test_draining_is_waited_for() -> None:
    """202 is not done: neither deleted twice nor added again before it is gone."""
    draining = seen(replace(READY, status=WorkerStatus.DRAINING))
    assert plan_worker(view(), draining) is None
    assert plan_worker(view(leaving=Why.DRAIN, wanted=False), draining) is None


def test_failed_worker_is_replaced() -> None:
    """`failed` is final for the router: delete and add."""
    failed = replace(READY, status=WorkerStatus.FAILED)
    assert plan_worker(view(), seen(failed)) == Deregister("w1", URL, Why.FAILED)
    assert plan_worker(view(), seen(failed, held=True)) is None, "but not in a tight loop"


def test_a_worker_that_the_router_does_not_make_ready_is_registered_anew() -> None:
    """Only while its engine is well, and a back-off counts: a router that cannot is not asked again and again."""
    unready = replace(READY, status=WorkerStatus.NOT_READY)
    assert plan_worker(view(), seen(unready)) is None
    late = seen(unready, overdue=True)
    assert plan_worker(view(), late) == Deregister("w1", URL, Why.OVERDUE)
    assert plan_worker(view(wanted=False), late) is None
    assert plan_worker(view(), replace(late, held=True)) is None
    assert plan_worker(view(), replace(late, busy=True)) is None
    assert plan_worker(view(leaving=Why.DRAIN, wanted=False), late) == Deregister("w1", URL, Why.DRAIN)


def test_what_we_told_the_router_counts_and_not_its_words_for_it() -> None:
    """A router that renames what it was told is not corrected for ever."""
    renamed = replace(READY, runtime_type="vllm")
    told = worker_spec(FACTS, URL, Overrides())
    assert plan_worker(view(), seen(replace(READY, runtime_type=None))) is None, "it says nothing"
    assert plan_worker(view(), seen(renamed, registered_as=told)) is None
    assert plan_worker(view(), seen(renamed)) == Deregister("w1", URL, Why.CHANGED)
    other = replace(told, labels={"a": "b"})
    assert plan_worker(view(), seen(READY, registered_as=other)) == Deregister("w1", URL, Why.CHANGED)


def test_adopted_worker_with_the_right_properties_is_kept() -> None:
    """A new daemon re-registers nobody whose worker is as it should be."""
    assert plan_worker(view(), seen(READY)) is None
    assert not differs(replace(READY, status=WorkerStatus.PENDING, runtime_type="external"),
                       worker_spec(FACTS, URL, Overrides()))  # fmt: skip


def test_port_is_released_only_when_nobody_holds_a_connection() -> None:
    """Deregistered -> nothing in flight -> released; and not while the router is not known."""
    gone = view(leaving=Why.SOCKET_GONE, gone=True, wanted=False)
    assert plan_occupant(gone, [seen(READY)]) == Unbridge()
    unlinked = replace(gone, linked=False)
    assert plan_occupant(unlinked, [seen(READY)]) is None
    assert plan_occupant(unlinked, [seen()]) is None, "in flight is not known yet"
    assert plan_occupant(replace(unlinked, in_flight=2), [seen()]) is None
    assert plan_occupant(replace(unlinked, in_flight=0), [seen(listed=False)]) is None
    assert plan_occupant(replace(unlinked, in_flight=0), [seen()]) == Release()


def test_drained_replica_is_unbridged_and_kept() -> None:
    """After a drain no request can reach the engine; the replica stays known."""
    drained = view(leaving=Why.DRAIN, wanted=False, in_flight=0)
    assert plan_occupant(drained, [seen()]) == Unbridge()
    assert plan_occupant(replace(drained, linked=False), [seen()]) is None
    assert plan_occupant(view(linked=False), [seen()]) == Bridge(), "resumed"


def test_orphans_go_only_when_the_sources_have_been_read() -> None:
    """Before the first whole look a worker may be somebody's."""
    listed = {URL: READY, "http://x:1": replace(READY, worker_id="w2", url="http://x:1")}
    assert plan_orphans(listed, frozenset({URL}), complete=False) == []
    assert plan_orphans(listed, frozenset({URL}), complete=True) == [Deregister("w2", "http://x:1", Why.FOREIGN)]
    assert plan_orphans(listed, frozenset(listed), complete=True) == []


def test_actions_read_well() -> None:
    """`plan` is for people."""
    assert describe(Register(worker_spec(FACTS, URL, Overrides()))) == f"register {URL} as regular sglang"
    assert describe(Deregister("w", URL, Why.DRAIN)) == f"deregister {URL}: drain requested"
    assert {describe(action) for action in (Bridge(), Unbridge(), Release())}


@dataclass
class World:
    """One replica, one router, one bridge: what the plan's actions do to them, and what may happen to them."""

    present: bool = True
    ready: bool = True
    drain: bool = False
    ejected: bool = False
    router_known: bool = True
    port: int | None = None
    linked: bool = False
    worker: Registered | None = None
    submitted: bool = False
    connections: int = 0
    released: bool = False
    overdue: bool = False
    removals: list[Why] = field(default_factory=list)

    @property
    def leaving(self) -> Why | None:
        if not self.present:
            return Why.SOCKET_GONE
        if self.drain:
            return Why.DRAIN
        return Why.UNREACHABLE if self.ejected else None

    def views(self) -> tuple[OccupantView, WorkerView]:
        out = self.router_known and self.worker is None and self.leaving is not None
        occupant = OccupantView(
            facts=FACTS,
            wanted=self.ready and self.leaving is None,
            leaving=self.leaving,
            gone=not self.present,
            port=self.port,
            linked=self.linked,
            url=URL if self.port else None,
            in_flight=self.connections if out else None,
        )
        unready = self.worker is not None and self.worker.status is WorkerStatus.NOT_READY
        return occupant, WorkerView(
            listed=self.router_known, worker=self.worker, overdue=unready and self.overdue and self.router_known
        )

    def plan(self) -> list[OccupantAction | WorkerAction]:
        if self.released:
            return []
        occupant, worker = self.views()
        steps = (plan_occupant(occupant, [worker]), plan_worker(occupant, worker))
        return [step for step in steps if step is not None]

    def do(self, step: OccupantAction | WorkerAction) -> None:
        match step:
            case Bridge():
                self.port, self.linked = self.port or 24001, True
            case Unbridge():
                assert not self.present or self.drain
                self.linked = False
            case Release():
                assert self.connections == 0, "a port was let go while somebody held a connection"
                assert self.worker is None, "a port was let go while the router still sent requests"
                assert not self.present
                self.released = True
            case Register():
                assert self.linked, "registered before it could be reached"
                assert self.worker is None, "registered twice"
                self.worker = replace(READY, status=WorkerStatus.PENDING)
            case Deregister(_, _, why):
                assert self.worker is not None
                is_so = self.leaving is why or why is Why.FAILED or (why is Why.OVERDUE and self.overdue)
                assert is_so, f"removed for {why}, which is not so"
                self.removals.append(why)
                self.overdue = False
                self.worker = replace(self.worker, status=WorkerStatus.DRAINING)

    def time_passes(self) -> None:
        """What the router does by itself: pending becomes ready, draining leaves, requests end."""
        if self.worker is not None and self.router_known:
            if self.worker.status is WorkerStatus.PENDING:
                self.worker = READY
            elif self.worker.status is WorkerStatus.DRAINING:
                self.worker = None
        self.connections = max(0, self.connections - 1)


EVENTS = ("unlink", "silence", "answer", "drain", "eject", "clear", "router_lost", "router_known", "router_new",
          "worker_failed", "worker_overdue", "connect", "plan_first", "plan_all", "time")  # fmt: skip


def happen(world: World, event: str) -> None:
    """Something happens to the world, or a part of a plan is carried out."""
    match event:
        case "unlink":
            world.present = False
        case "silence":
            world.ready = False
        case "answer":
            world.ready = True
        case "drain":
            world.drain = True
        case "eject":
            world.ejected = True
        case "clear":
            world.ejected = False
        case "router_lost":
            world.router_known = False
        case "router_known":
            world.router_known = True
        case "router_new":
            world.worker, world.router_known = None, True
        case "worker_overdue":
            if world.worker is not None and world.worker.status is not WorkerStatus.DRAINING:
                world.worker, world.overdue = replace(world.worker, status=WorkerStatus.NOT_READY), True
        case "worker_failed":
            if world.worker is not None:
                world.worker = replace(world.worker, status=WorkerStatus.FAILED)
        case "connect":
            if world.linked and world.present:
                world.connections += 1
        case "plan_first":
            for step in world.plan()[:1]:
                world.do(step)
        case "plan_all":
            for step in world.plan():
                world.do(step)
        case "time":
            world.time_passes()


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_any_plan_cut_anywhere_and_planned_again_converges(events: list[str]) -> None:
    """Whatever happened and whichever plan was cut off: planning again reaches what is wanted, and then rests."""
    world = World()
    for event in events:
        happen(world, event)
    world.router_known = True
    for _ in range(20):
        happen(world, "plan_all")
        happen(world, "time")
    if not world.present:
        assert world.released
    elif world.leaving is None and world.ready:
        assert world.worker == READY
        assert world.linked
    elif world.drain:
        assert world.worker is None
        assert not world.linked
    elif world.ejected:
        assert world.worker is None
    assert world.plan() == [], "at rest there is nothing to do"


EVIDENCE = frozenset({"unlink", "drain", "eject", "worker_failed", "worker_overdue"})


@given(st.lists(st.sampled_from([event for event in EVENTS if event not in EVIDENCE])))
def test_without_positive_evidence_nobody_is_removed(events: list[str]) -> None:
    """Silence, lost routers, cut plans: none of it deregisters a worker."""
    world = World()
    for event in events:
        happen(world, event)
    assert world.removals == []


@pytest.mark.parametrize(
    ("serving", "missing"),
    [
        ([], Missing.REPLICA),
        ([WorkerType.ENCODE], Missing.REPLICA),
        ([WorkerType.PREFILL, WorkerType.PREFILL], Missing.DECODE),
        ([WorkerType.DECODE, WorkerType.ENCODE], Missing.PREFILL),
        ([WorkerType.DECODE, WorkerType.PREFILL], None),
        ([WorkerType.PREFILL, WorkerType.REGULAR], None),
        ([WorkerType.REGULAR], None),
    ],
)
def test_service_answers_with_a_regular_worker_or_a_whole_pair(
    serving: list[WorkerType], missing: Missing | None
) -> None:
    assert missing_role(serving) is missing


URL = "http://127.0.0.1:24001"


@pytest.mark.parametrize(
    ("model", "names", "overrides", "expected"),
    [
        ("m", (), Overrides(), {"": None}),
        (None, (), Overrides(), {"": None}),
        ("m", ("b", "a/l:1"), Overrides(), {"": None, "/=b": "b", "/=a%2Fl%3A1": "a/l:1"}),
        (None, ("x", "y"), Overrides(), {"/=x": "x", "/=y": "y"}),
        ("m", ("b",), Overrides(model="only"), {"": None}),
        ("m", ("b",), Overrides(model="one", names=("two",)), {"": None, "/=two": "two"}),
    ],
)
def test_every_name_is_a_worker_of_its_own(
    model: str | None, names: tuple[str, ...], overrides: Overrides, expected: dict[str, str | None]
) -> None:
    """Behind one bridge, by another path; what the operator names counts alone. A name's URL depends on it alone."""
    facts = replace(FACTS, model=model, names=names)
    assert worker_urls(URL, facts, overrides, bridged=True) == {URL + path: name for path, name in expected.items()}
    assert all(base_of(url) == URL for url in worker_urls(URL, facts, overrides, bridged=True))
    assert list(worker_urls(URL, facts, overrides, bridged=False)) == [URL], "an engine knows no such path itself"


def test_a_worker_of_a_further_name_is_registered_under_it() -> None:
    """And what the engine says first is the name of the first."""
    facts = replace(FACTS, model="m", names=("b",))
    assert (worker_spec(facts, URL, Overrides()).model_id, worker_spec(facts, URL, Overrides()).named) == ("m", None)
    further = worker_spec(facts, f"{URL}/=b", Overrides(), "b")
    assert (further.model_id, further.named) == ("b", "b")


def test_an_engine_with_other_names_is_no_other_engine() -> None:
    """Not even where the one by which it was known is no longer the only one."""
    alone = replace(FACTS, model="b")
    several = replace(FACTS, model=None).listing(None, ["c", "b", "a"])
    assert several.names == ("a", "b", "c")
    assert alone.is_same_engine(several)
    assert several.called("b") == alone
    assert several.called("b").names == ("a", "c")
    assert not alone.is_same_engine(replace(FACTS, model="z"))
    assert len(FACTS.listing("m", map(str, range(1000))).names) == MOST_NAMES + 1


KV = Overrides(kv_connector="NixlConnector", kv_role="kv_producer", kv_engine_id="e1", worker_type=WorkerType.PREFILL)
SEEN_CONNECTOR = replace(FACTS, kv_connector="NixlConnector")


@pytest.mark.parametrize(
    ("facts", "overrides", "expected"),
    [
        (FACTS, KV, ("prefill", "NixlConnector", "kv_producer", "e1")),
        (replace(SEEN_CONNECTOR, kv_role="kv_both"), KV, ("prefill", "NixlConnector", "kv_producer", "e1")),
        (SEEN_CONNECTOR, Overrides(worker_type=WorkerType.PREFILL), ("prefill", "NixlConnector", "kv_producer", None)),
        (SEEN_CONNECTOR, Overrides(worker_type=WorkerType.DECODE), ("decode", "NixlConnector", "kv_consumer", None)),
        (
            SEEN_CONNECTOR,
            Overrides(worker_type=WorkerType.DECODE, kv_role="kv_both"),
            ("decode", "NixlConnector", "kv_both", None),
        ),
        (SEEN_CONNECTOR, Overrides(), ("regular", "NixlConnector", None, None)),
        (FACTS, Overrides(worker_type=WorkerType.PREFILL), ("prefill", None, None, None)),
    ],
)
def test_what_is_known_of_kv_transfer_reaches_the_router(
    facts: EngineFacts, overrides: Overrides, expected: tuple[str | None, ...]
) -> None:
    """SMG transfers KV only between workers whose connector and role it was told."""
    spec = worker_spec(facts, URL, overrides)
    assert (spec.worker_type.value, spec.kv_connector, spec.kv_role, spec.kv_engine_id) == expected


def test_a_worker_that_was_registered_without_its_connector_is_registered_anew() -> None:
    """By an earlier daemon, before the line was there."""
    worker = replace(READY, kv_role="kv_producer", worker_type=WorkerType.PREFILL)
    action = plan_worker(view(overrides=KV), seen(worker))
    assert isinstance(action, Deregister)
    assert plan_worker(view(overrides=KV), seen(replace(worker, kv_connector="NixlConnector"))) is None
