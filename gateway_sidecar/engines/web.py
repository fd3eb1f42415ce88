"""Any HTTP application: nobody asks it what it is, only whether it is well (`services[].engine: http`)."""

from __future__ import annotations

from gateway_sidecar.domain.discovery import HttpAnswer
from gateway_sidecar.domain.model import Access, ConnectionMode, EngineFacts, Loading, ProbeResult, Ready, Unknown
from gateway_sidecar.engines.dialect import Engine

NAME = "http"
ROOT = "/"
"""What is asked where no `health.path` says what. Any answer but a server's error is a good one."""


def judge(facts: EngineFacts, answer: HttpAnswer, access: Access) -> ProbeResult:
    """Read the answer of an application's page for its health."""
    page = access.path or ROOT
    asked = f"{page} answers {answer.status}"
    if not (200 <= answer.status < 300 if access.path else answer.status < 500):
        is_unready = answer.status == 503
        cure = "" if is_unready or not access.path else "; set health.path to a page that answers 200"
        return Loading(asked, facts) if is_unready else Unknown(f"{asked}{cure}")
    if access.expect is not None and access.expect not in answer.body.decode("utf-8", "replace"):
        return Loading(f"{asked} without {access.expect!r} (health.expect)", facts)
    return Ready(facts)


def facts_of(access: Access) -> EngineFacts:
    """All that is known of an application."""
    return EngineFacts(NAME, ConnectionMode.HTTP, health=(access.path or ROOT,))


ENGINE = Engine(NAME, single_connection=True)
