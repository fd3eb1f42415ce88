"""The more replicas are not ready, the less often each is asked; each kind of answer for itself."""

from __future__ import annotations

from typing import cast

from gateway_sidecar.control.replicas.crowds import Crowds
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.domain.lifecycle import Against
from gateway_sidecar.domain.model import Loading, ProbeResult, Ready
from gateway_sidecar.domain.planning import Why
from tests.unit.engines import FACTS, tenure_of


def tenures(result: ProbeResult, number: int, *, port: int | None = None) -> list[Tenure]:
    made = [tenure_of(f"r{each}") for each in range(number)]
    for each in made:
        each.probe.result, each.bridge.port = result, port
    return made


def test_each_kind_of_answer_is_a_crowd_of_its_own() -> None:
    """Dead sockets hold up no engine that loads, and an engine that serves is in no crowd."""
    dead, loading = tenures(Loading("refused", refused=True), 300), tenures(Loading("503"), 20)
    waiting, serving = tenures(Ready(FACTS), 7), tenures(Ready(FACTS), 50, port=24001)
    crowds = Crowds(cast("Registry", [*dead, *loading, *waiting, *serving]))
    assert crowds.of(Against.REFUSED, 1.0).loading == 300
    assert crowds.of(Against.NOT_READY, 1.0).loading == 20
    assert crowds.of(None, 1.0).loading == 7
    assert crowds.of(Against.SILENT, 1.0).loading == 1, "itself"


def test_a_crowd_is_counted_now_and_then_and_not_for_each_of_it() -> None:
    dead = tenures(Loading("refused", refused=True), 300)
    crowds = Crowds(cast("Registry", dead))
    assert crowds.of(Against.REFUSED, 1.0).loading == 300
    for each in dead[:100]:
        each.leave(Why.SOCKET_GONE)
    assert crowds.of(Against.REFUSED, 1.1).loading == 300
    assert crowds.of(Against.REFUSED, 1.3).loading == 200
