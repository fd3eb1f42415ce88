"""Who is ready, and what nginx is told of it; with services and an nginx that are played."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_sidecar.control.process.readiness import Readiness
from gateway_sidecar.control.routers.router import RouterState
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problem
from tests.unit.ready_marks import PlayedMarks


class Site:
    """Two services, and one address for both."""

    def __init__(self) -> None:
        self.chat, self.code = (
            SimpleNamespace(name=name, has_looked=True, router=SimpleNamespace(state=RouterState.UP, up=True))
            for name in ("chat", "code")
        )
        self.marks = PlayedMarks()
        self.problem = Problem()
        self.is_leaving = False
        self.services = {"chat": self.chat, "code": self.code}
        self.shared = [SimpleNamespace(name="api", services=("chat", "code"))]
        self.nginx = SimpleNamespace(
            nginx=SimpleNamespace(ready_marks=self.marks), up=True, reason="it ended", unserved=set(), applied=[]
        )
        services: Any = SimpleNamespace(by_name=lambda: dict(self.services), shared=self.shared)
        self.readiness = Readiness(services, cast("Any", self.nginx), lambda: self.is_leaving, self.problem, Metrics())

    def has(self, service: SimpleNamespace, state: RouterState) -> None:
        service.router = SimpleNamespace(state=state, up=state is RouterState.UP)

    def told(self) -> set[str]:
        """Of whom nginx says that they are not ready, after a look."""
        self.readiness.look()
        return self.marks.unready


def test_a_service_is_ready_while_its_router_answers_and_a_shared_address_while_one_is() -> None:
    site = Site()
    assert site.told() == set()
    assert site.readiness.ready
    site.has(site.chat, RouterState.BACKING_OFF)
    assert site.told() == {"chat"}
    assert "backing" in site.readiness.objection("chat")
    assert site.readiness.objection("api") == site.readiness.objection("code") == ""
    assert not site.readiness.ready
    site.has(site.code, RouterState.UNRESPONSIVE)
    assert site.told() == {"api", "chat", "code"}
    site.has(site.code, RouterState.UP)
    assert site.told() == {"chat"}


def test_what_is_not_known_changes_nothing() -> None:
    """A daemon that has just begun has seen no router and no source yet: what nginx says is the last one's word."""
    site = Site()
    for state in (RouterState.STOPPED, RouterState.STARTING):
        site.has(site.chat, state)
        assert site.told() == set()
    site.has(site.chat, RouterState.UP)
    site.chat.has_looked = False
    site.marks.unready = {"chat"}
    assert site.told() == {"chat"}
    assert "has not looked" in site.readiness.objection("chat")
    site.chat.has_looked = True
    assert site.told() == set()
    site.has(site.chat, RouterState.STARTING)
    assert site.told() == {"chat"}, "it was up: that it starts again is no riddle"


def test_where_no_nginx_ran_before_nothing_is_ready_until_it_was_looked_at() -> None:
    site = Site()
    site.readiness.begin(afresh=False)
    assert site.marks.unready == set()
    site.readiness.begin(afresh=True)
    assert site.marks.unready == {"api", "chat", "code"}
    assert site.told() == set()


def test_a_service_without_an_address_is_not_ready() -> None:
    """nginx need not be told: nobody can ask there, and at a shared address the service may be ready."""
    site = Site()
    site.nginx.unserved = {"code"}
    assert site.told() == set()
    assert site.readiness.objection("code") == "nginx serves no address for it"
    assert not site.readiness.ready
    site.nginx.up = False
    assert site.told() == set()
    assert site.readiness.objection("chat") == "nginx is down: it ended"


def test_a_gateway_that_leaves_is_not_ready_whatever_its_services_are() -> None:
    """nginx is told of that once for all, so that coming back needs no look at each."""
    site = Site()
    site.is_leaving = True
    assert site.told() == set()
    assert not site.readiness.ready
    assert site.readiness.objection("api") == "the gateway is leaving"
    with pytest.raises(KeyError):
        site.readiness.objection("nobody")


def test_of_a_service_that_is_no_more_nothing_is_left() -> None:
    site = Site()
    site.has(site.code, RouterState.REFUSED)
    assert site.told() == {"code"}
    del site.services["code"]
    assert site.told() == set()


def test_what_cannot_be_written_is_said() -> None:
    site = Site()
    site.marks.fault = OSError(errno.ENOSPC, "No space left on device", "/run/gates/chat.unready")
    site.readiness.look()
    assert "No space left" in site.problem.text
    site.marks.fault = None
    site.readiness.look()
    assert site.problem.text == ""
