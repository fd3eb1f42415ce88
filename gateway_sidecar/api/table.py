"""`status` for people: one table for each service, widest columns first to be read at 3 a.m."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from gateway_sidecar.domain.printable import age, counted, printable

if TYPE_CHECKING:
    from gateway_sidecar.api.models import Address, Model, Replica, Service, Status, Target, Usage
    from gateway_sidecar.api.signal_models import Scaling

Used = Literal["requests", "refused", "failed", "aborted", "streams", "tokens_in", "tokens_out", "unknown"]
_LONGEST_LINE = 2000
_MOST_MODELS = 50
_USED: tuple[Used, ...] = ("requests", "refused", "failed", "aborted", "streams", "tokens_in", "tokens_out", "unknown")
_COLUMNS = ("replica", "state", "for", "engine", "role", "model", "bridge", "reason")


def render_status(status: Status) -> str:
    """The answer of `/v1/status` as text."""
    parts = []
    nginx = status["nginx"]
    if nginx["state"] != "up":
        parts.append(_joined([f"NGINX DOWN: {nginx['reason']}"]))
    parts += [_joined([f"PROBLEM: {problem}"]) for problem in status["problems"]]
    parts += [_address(address) for address in status["addresses"]]
    parts += [_service(service) for service in status["services"]]
    return "\n\n".join(parts)


def _joined(lines: Sequence[str]) -> str:
    """What others said stands in these lines, and ends none of them."""
    return "\n".join(printable(line, _LONGEST_LINE) for line in lines)


def _address(address: Address) -> str:
    addresses = ", ".join([address["listen"], *address["frontend_listen"]])
    models = address["models"]
    lines = [f"{address['name']}  {addresses}  address of {counted(len(models), 'model')}"]
    if address["not_in_force"]:
        lines.append(f"  NOT IN FORCE: {address['not_in_force']}")
    if address["default"]:
        lines.append(f"  requests that name no model go to {address['default']}")
    rows = [(it["name"], _targets(it), "asleep" if it["asleep"] else "") for it in models[:_MOST_MODELS]]
    lines += [f"  {line}" for line in _table([("model", "services", ""), *rows])]
    if len(models) > _MOST_MODELS:
        lines.append(f"  and {len(models) - _MOST_MODELS} more: status --json")
    return _joined(lines)


def _targets(model: Model) -> str:
    """`chat 90 %, code as tiny 10 %, else small`."""
    services = model["services"]
    total = sum(it["weight"] for it in services)
    shares = [f" {100 * it['weight'] / total:.3g} %" if len(services) > 1 else "" for it in services]
    words = [f"{_target(it)}{share}" for it, share in zip(services, shares, strict=True)]
    if model["fallback"] is not None:
        words.append(f"else {_target(model['fallback'])}")
    return ", ".join(words)


def _target(target: Target) -> str:
    name = f" as {target['model']}" if target["model"] else ""
    return f"{target['service']}{name}{' (asleep)' if target['asleep'] else ''}"


def _service(service: Service) -> str:
    router = service["router"]
    addresses = ", ".join([service["listen"], *service["frontend_listen"]])
    title = f"{service['name']}  {addresses}  router {router['type']} {router['state']}"
    if router["pid"]:
        title += f" (pid {router['pid']}, {router['url']}, {counted(router['restarts'], 'restart')})"
    lines = [title]
    if service["not_in_force"]:
        lines.append(f"  NOT IN FORCE: {service['not_in_force']}")
    if router["reason"]:
        lines.append(f"  router: {router['reason']}")
    if service["missing"] not in (None, "router"):
        waiting = service["waiting"]
        lines.append(f"  {service['reason']}; {counted(waiting, 'request')} {'waits' if waiting == 1 else 'wait'}")
    elif service["missing"] is None:
        lines += [f"  UNANSWERED: model {model}: {why}" for model, why in service["unanswered"].items()]
    if service["source"]["blind"]:
        lines.append(f"  SOURCE: {service['source']['blind']}; every replica stays as it was")
    lines += [f"  refused: {name}: {reason}" for name, reason in service["source"]["refused"].items()]
    lines += _scaling(service["scaling"])
    rows = [_row(replica) for replica in service["replicas"]]
    if not rows:
        at = ", ".join(service["source"]["settings"].values())
        lines.append(f"  no replicas at {at}" if at else "  no replicas")
        return _joined(lines)
    lines += [f"  {line}" for line in _table([_COLUMNS, *rows])]
    return _joined(lines)


def render_replicas(services: Mapping[str, Sequence[Replica]]) -> str:
    """All replicas as one table: service, source and state."""
    rows = [
        (name, row["id"], row["source"], row["state"], row["bridge"] or "-", _place(row), row["reason"] or "")
        for name, replicas in services.items()
        for row in replicas
    ]
    titles = ("service", "replica", "source", "state", "bridge", "place", "reason")
    return _joined(_table([titles, *rows])) if rows else "no replicas"


def render_usage(usage: Usage) -> str:
    """A line for each service, key and model, and their sum."""
    rows = usage["rows"]
    if not rows:
        return f"nothing was counted from {usage['since']} to {usage['until']}"
    named = [
        (it["service"], it["key"] or "-", it["model"] or "-", *(it[name] for name in _USED), it["frontend"])
        for it in rows
    ]
    shows_frontend = any(it["frontend"] != it["service"] for it in rows)
    sums = ("all", "", "", *(sum(it[name] for it in rows) for name in _USED), "")
    titles = ("service", "key", "model", *(name.replace("_", " ") for name in _USED), "address")
    lines = [row if shows_frontend else row[:-1] for row in (titles, *named, sums)]
    return _joined(
        [f"from {usage['since']} to {usage['until']}", *_table([[str(cell) for cell in row] for row in lines])]
    )


def _place(row: Replica) -> str:
    return str(row["tunnel"]["to"] if row["tunnel"] else row["socket"] or "-")


def _scaling(scaling: Scaling | None) -> list[str]:
    if scaling is None:
        return []
    lines = [
        f"  scaling: {role} {one['desired']} (there: {one['current']}): {one['reason']}"
        for role, one in scaling["roles"].items()
    ]
    return lines + ([f"  SCALING HOOK: {scaling['hook_problem']}"] if scaling["hook_problem"] else [])


def _row(replica: Replica) -> tuple[str, ...]:
    engine = "/".join(filter(None, (replica["runtime_type"], replica["connection_mode"])))
    return (
        replica["id"],
        replica["state"],
        age(replica["state_age_s"]),
        engine or "-",
        replica["worker_type"] or "-",
        replica["model"] or "-",
        replica["advertise"] or replica["bridge"] or "-",
        replica["reason"] or "",
    )


def _table(raw: Sequence[Sequence[str]]) -> list[str]:
    rows = [[printable(cell) for cell in row] for row in raw]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
