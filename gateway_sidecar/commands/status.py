"""`status`."""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from typing import TYPE_CHECKING

from gateway_sidecar.api.client import Client
from gateway_sidecar.api.event_lines import event_line
from gateway_sidecar.api.explain_text import wrapped
from gateway_sidecar.api.table import render_fleet, render_problems, render_replica, render_service, render_status
from gateway_sidecar.commands.exit_codes import Exit
from gateway_sidecar.commands.place import admin_of
from gateway_sidecar.commands.screen import paint, width
from gateway_sidecar.domain.similar import near
from gateway_sidecar.errors import AdminError

if TYPE_CHECKING:
    from gateway_sidecar.api.models import Replica, Service, Status

_EVENTS = 10  # A choice: the state above them is to stay on the screen.


def status(arguments: argparse.Namespace) -> int:
    """Services, routers and replicas; or one of them, or what is amiss."""
    client, name, replica = admin_of(arguments), arguments.service, arguments.replica
    if arguments.problems and name is not None:
        arguments.misused("--problems is about all services; leave SERVICE out")
    if arguments.fleet:
        if arguments.problems or arguments.watch or name is not None:
            arguments.misused("--fleet is about all gateways; leave SERVICE, --problems and --watch out")
        fleet = client.fleet()
        print(json.dumps(fleet, indent=2) if arguments.json else render_fleet(fleet))
        return 0
    if arguments.watch and arguments.json:
        arguments.misused("--watch shows text; for JSON follow the events: events -f --json")

    def render(answer: Status, columns: int | None) -> str:
        if arguments.problems:
            return render_problems(answer, columns) or "no problems"
        if name is None:
            return render_status(answer, columns)
        return _one(client, answer, name, replica, columns)

    if arguments.watch:
        from gateway_sidecar.commands.watch import watch

        return watch(client, render)
    answer = client.status()
    if arguments.json:
        part: object = answer
        if name is not None:
            service = _service(answer, name)
            part = service if replica is None else _replica(service, replica)
        print(json.dumps(part, indent=2))
    else:
        paint(render(answer, width()))
    return Exit.FAILED if arguments.problems and render_problems(answer) else Exit.DONE


def _one(client: Client, answer: Status, name: str, replica: str | None, columns: int | None) -> str:
    service = _service(answer, name)
    text = render_service(service, columns) if replica is None else None
    if replica is not None:
        text = render_replica(service, _replica(service, replica), columns)
    events = client.events(service=name, replica=replica, last=_EVENTS, said=0)["events"]
    lines = [line for it in events for line in wrapped(event_line(it, named=replica is None), columns, "  ", 8)]
    return "\n".join([str(text), "", "Last events:", *(lines or ["  none"])])


def _service(answer: Status, name: str) -> Service:
    """Raises AdminError for an unknown one."""
    found = next((it for it in answer["services"] if it["name"] == name), None)
    if found is None:
        raise AdminError(f"no service '{name}'; {near(name, (it['name'] for it in answer['services']))}")
    return found


def _replica(service: Service, replica: str) -> Replica:
    """The present one. Raises AdminError for an unknown one."""
    found = next((it for it in service["replicas"] if it["id"] == replica), None)
    if found is None:
        name = service["name"]
        raise AdminError(
            f"service '{name}' has no replica '{replica}' now; `gateway-sidecar explain {name} {replica}` says what is"
            " known of it"
        )
    return found


def still(answer: Status) -> Status:
    """The status without what changes all the time: two that differ only in that look the same."""
    answer = deepcopy(answer)
    answer["daemon"]["uptime_s"] = answer["daemon"]["configuration"]["age_s"] = 0.0
    for service in answer["services"]:
        service["traffic"] = {
            "covered_s": 0.0, "requests_per_s": None, "errors_per_s": None, "in_flight": None,
            "ttft_p50_s": None, "ttft_p99_s": None,
        }  # fmt: skip
        service["waiting"] = 0
        for row in service["replicas"]:
            row["state_age_s"], row["in_flight"] = 0.0, None
    return answer
