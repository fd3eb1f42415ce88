"""`status` for people: one table for each service, widest columns first to be read at 3 a.m."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from gateway_sidecar import __version__
from gateway_sidecar.api.explain_text import wrapped
from gateway_sidecar.domain.printable import age, counted, printable

if TYPE_CHECKING:
    from gateway_sidecar.api.models import (
        About,
        Address,
        FleetGateway,
        FleetReplica,
        FleetStatus,
        FleetUsage,
        Leave,
        Model,
        ReloadPlan,
        Replica,
        SeenReplica,
        Service,
        Status,
        Store,
        Target,
        TouchedReplica,
        Usage,
    )
    from gateway_sidecar.api.signal_models import Scaling

Used = Literal["requests", "refused", "failed", "aborted", "streams", "tokens_in", "tokens_out", "unknown"]
_LONGEST_LINE = 2000  # As long as a router's message (`LONGEST_MESSAGE`).
_MOST_MODELS = 50  # A screen of them.
_MOST_TOUCHED = 20  # Half a screen, for each change.
_MOST_QUOTAS = 10  # A choice: the services come below, on the same screen.
_USED: tuple[Used, ...] = ("requests", "refused", "failed", "aborted", "streams", "tokens_in", "tokens_out", "unknown")
_COLUMNS = ("replica", "state", "for", "load", "engine", "role", "model", "bridge", "reason")
_NARROW = ("role", "bridge", "model", "engine", "load", "for")
"""What is left out where the terminal is too narrow, in this order. The reason is shown in full in any case."""
_LEAST_REASON = 36  # A choice: half a dozen words; where less is left, a column that says little is left out.


def render_status(status: Status, width: int | None = None) -> str:
    """The answer of `/v1/status` as text, in lines of `width` at most; None for as long as they are."""
    nginx, leave = status["nginx"], status["leave"]
    parts = [_lines(_about(status["daemon"]), width)]
    if leave is not None:
        parts.insert(0, _lines([_leaving(leave)], width))
    if nginx["state"] != "up":
        parts.append(_lines([f"NGINX DOWN: {nginx['reason']}"], width))
    parts += [_lines([f"PROBLEM: {problem}"], width) for problem in status["problems"]]
    store = status.get("store")
    if store is not None:
        parts.append(_lines([_store(store)], width))
    parts += _quotas(status, width)
    parts += [_address(address, width) for address in status["addresses"]]
    parts += [render_service(service, width) for service in status["services"]]
    return "\n\n".join(parts)


def _quotas(status: Status, width: int | None) -> list[str]:
    """Keys near their quota: no problem of the gateway, so `--problems` leaves them out."""
    near = status.get("near_quota", [])
    lines = [
        f"near quota: key {it['key']} of {it['service']} has used {it['used']:.0%} of {it['bound']}"
        for it in near[:_MOST_QUOTAS]
    ]
    if len(near) > _MOST_QUOTAS:
        lines.append(f"near quota: and {counted(len(near) - _MOST_QUOTAS, 'key')} more")
    return [_lines(lines, width)] if lines else []


def _about(about: About) -> list[str]:
    file = about["configuration"]
    words: dict[str, str] = {
        "in force": "and the file on disk is the same",
        "differs": "and the FILE ON DISK DIFFERS: a reload changes",
        "invalid": "and the FILE ON DISK IS INVALID:",
        "unreadable": "and the FILE ON DISK CANNOT BE READ:",
    }
    on_disk = words.get(file["on_disk"], file["on_disk"])  # A later daemon may know another word.
    version = f"daemon {about['version']} (pid {about['pid']})"
    if about["version"] != __version__:
        version += f", this command is {__version__}: restart the daemon to update it"
    lines = [f"{version}, up {age(about['uptime_s'])}; configuration loaded {age(file['age_s'])} ago, {on_disk}"]
    return lines + [f"  {line}" for line in file["lines"]]


def _leaving(leave: Leave) -> str:
    return f"LEAVING ({leave['phase']}): {leave['reason']}"


def _lines(lines: Sequence[str], width: int | None) -> str:
    """What others said stands in these lines, and ends none of them."""
    shown: list[str] = []
    for line in lines:
        indent = line[: len(line) - len(line.lstrip(" "))]
        shown += wrapped(line[len(indent) :], width, indent, 2, most=_LONGEST_LINE)
    return "\n".join(shown)


def _store(store: Store) -> str:
    others = [it["name"] + _of_other(it) for it in store["others"]]
    read = f"read {age(store['read_age_s'])} ago" if store["read_age_s"] is not None else "not read yet"
    state = f"{store['state']} for {age(store['state_age_s'])}, {read}"
    fleet = f"shared with {', '.join(others)}" if others else "shared with no other gateway"
    return f"store  {store['where']}  {state}  gateway {store['gateway']}, {fleet}"


def _of_other(gateway: FleetGateway) -> str:
    if gateway["leaving"]:
        return " (leaving)"
    return "" if gateway["ready"] else " (not ready)"


def _address(address: Address, width: int | None) -> str:
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
    return _lines(lines, width)


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


def render_service(service: Service, width: int | None = None) -> str:
    """One service: its addresses, what its clients see, what is amiss, and its replicas."""
    router = service["router"]
    addresses = ", ".join([service["listen"], *service["frontend_listen"]])
    serve = f"{service['serving']} of {service['expected']} serve"
    title = f"{service['name']}  {addresses}  {serve}  router {router['type']} {router['state']}"
    if router["pid"]:
        title += f" (pid {router['pid']}, {router['url']}, {counted(router['restarts'], 'restart')})"
    mesh = [f"  mesh: {router['mesh']}"] if router["mesh"] else []
    lines = [title, f"  {_traffic(service)}", *mesh, *problems_of(service), *_scaling(service["scaling"])]
    replicas = service["replicas"]
    if not replicas:
        at = ", ".join(service["source"]["settings"].values())
        lines.append(f"  no replicas at {at}" if at else "  no replicas")
        return _lines(lines, width)
    rows = [_COLUMNS, *(_row(replica) for replica in replicas)]
    return "\n".join(
        [_lines(lines, width), *(f"  {line}" for line in _fitting(rows, None if width is None else width - 2))]
    )


def problems_of(service: Service) -> list[str]:
    """What is amiss with a service, replicas aside."""
    lines = []
    if service["not_in_force"]:
        lines.append(f"  NOT IN FORCE: {service['not_in_force']}")
    if service["router"]["reason"]:
        lines.append(f"  router: {service['router']['reason']}")
    if service["missing"] not in (None, "router"):
        waiting = service["waiting"]
        lines.append(f"  {service['reason']}; {counted(waiting, 'request')} {'waits' if waiting == 1 else 'wait'}")
    elif service["missing"] is None:
        lines += [f"  UNANSWERED: model {model}: {why}" for model, why in service["unanswered"].items()]
    if service["source"]["blind"]:
        lines.append(f"  SOURCE: {service['source']['blind']}; every replica stays as it was")
    return lines + [f"  refused: {name}: {reason}" for name, reason in service["source"]["refused"].items()]


def _traffic(service: Service) -> str:
    """`12.3 requests/s, 0.1 errors/s, 8 in flight, 0 waiting, first token 0.21 s (p50) 1.3 s (p99)`."""
    it = service["traffic"]
    words = []
    if it["requests_per_s"] is not None:
        words += [f"{_rate(it['requests_per_s'])} requests/s", f"{_rate(it['errors_per_s'] or 0.0)} errors/s"]
    if it["in_flight"] is not None:
        words.append(f"{it['in_flight']:.0f} in flight")
    words.append(f"{service['waiting']} waiting")
    if it["ttft_p50_s"] is not None and it["ttft_p99_s"] is not None:
        words.append(f"first token {_latency(it['ttft_p50_s'])} (p50) {_latency(it['ttft_p99_s'])} (p99)")
    over = "" if it["covered_s"] >= _WHOLE_S else f" (watched for {it['covered_s']:.0f} s)"
    return ", ".join(words) + (over if it["requests_per_s"] is not None else "; requests not measured yet")


_WHOLE_S = 58  # Of the 60 s of the window: a second that has just begun is not whole.


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or not value else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _latency(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _fitting(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """The table in lines of `width` at most: less important columns are left out, and the reason is wrapped."""
    if width is None or max(map(len, _table(rows))) <= width:
        return _table(rows)
    titles, left_out = rows[0], list(_NARROW)
    while True:
        kept = [i for i, title in enumerate(titles) if title in ("replica", "state") or title in left_out]
        shown = [[row[i] for i in kept] for row in rows]
        fixed = max(map(len, _table(shown)))
        if fixed + 2 + _LEAST_REASON <= width or not left_out:
            break
        left_out.pop(0)
    lines = []
    for line, row in zip(_table(shown), rows, strict=True):
        if fixed + 2 + _LEAST_REASON <= width:
            lines += wrapped(f"{line:{fixed}}  {row[-1]}".rstrip(), width, "", fixed + 2, most=_LONGEST_LINE)
        else:
            lines += [*wrapped(line, width), *(wrapped(row[-1], width, "    ", 0) if row[-1] else [])]
    return lines


def render_replicas(services: Mapping[str, Sequence[Replica]]) -> str:
    """All replicas as one table: service, source and state."""
    rows = [
        (name, row["id"], row["source"], row["state"], row["bridge"] or "-", _place(row), row["reason"] or "")
        for name, replicas in services.items()
        for row in replicas
    ]
    titles = ("service", "replica", "source", "state", "bridge", "place", "reason")
    return "\n".join(_table([titles, *rows])) if rows else "no replicas"


def render_fleet(fleet: FleetStatus) -> str:
    """The gateways; and for each service a table of what each of those that are alive sees of each replica."""
    rows = [("gateway", "state", "heard", "version", "since")]
    for it in fleet["gateways"]:
        state = it["state"] if it["gone_s"] is None else f"gone for {age(it['gone_s'])}"
        name = f"{it['name']} (this one)" if it["is_this"] else it["name"]
        heard = f"{age(it['heard_s'])} ago" if it["heard_s"] is not None else "-"
        rows.append((name, state, heard, it["version"] or "-", it["since"] or "-"))
    serve = {it["name"]: it["services"] for it in fleet["gateways"] if it["gone_s"] is None}
    parts = ["\n".join(_table(rows))]
    for service in fleet["services"]:
        cells = [
            (
                it["id"],
                *(_seen(it["gateways"].get(name), service["name"] in serves) for name, serves in serve.items()),
                _of_all(it),
            )
            for it in service["replicas"]
        ]
        lines = _table([("replica", *serve, ""), *cells]) if cells else ["no replicas"]
        voice = f"  scaling voice: {service['voice'] or 'none'}" if service["scaled"] else ""
        parts.append("\n".join([printable(service["name"]) + voice, *(f"  {line}" for line in lines)]))
    return "\n\n".join(parts)


def _of_all(replica: FleetReplica) -> str:
    """What its gateways have, or should have, in common."""
    ports = {str(it["port"]) for it in replica["gateways"].values() if it["port"] is not None}
    return "; ".join(
        [
            *([f"drain asked at {replica['drain']}"] if replica["drain"] else []),
            *([f"bridge ports differ: {', '.join(sorted(ports))}"] if len(ports) > 1 else []),
        ]
    )


def _seen(seen: SeenReplica | None, is_served: bool) -> str:
    if seen is None:
        return "-" if is_served else "no such service"
    if seen["safe"]:
        return f"{seen['state']}, safe"
    return seen["state"] + (f", {seen['in_flight']} in flight" if seen["in_flight"] else "")


def render_fleet_usage(usage: FleetUsage) -> str:
    """A line for each service and key: tokens of the day and the month at all gateways, and of the month at each."""
    names = sorted({name for it in usage["rows"] for name in it["gateways"]})
    rows = [
        (
            *(it["service"], it["key"], str(it["day"]), str(it["month"])),
            *(str(it["gateways"][name]["month"]) if name in it["gateways"] else "-" for name in names),
        )
        for it in usage["rows"]
    ]
    if not rows:
        return f"no key of the store has used tokens in {usage['month']}, as far as gateways have told"
    titles = ("service", "key", f"day {usage['day']}", f"month {usage['month']}", *names)
    more = [f"{name} tells only of the keys that have used most" for name in usage["cut"]]
    return "\n".join([*_table([titles, *rows]), *more])


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
    return "\n".join(
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
    return lines + [f"  {line}" for line in _about_scaling(scaling)]


def _about_scaling(scaling: Scaling) -> list[str]:
    """What is wrong with it, and who speaks for several gateways."""
    hook, why, voice = scaling["hook_problem"], scaling["problem"], scaling["voice"]
    lines = [] if voice is None else [f"scaling voice: {voice}"]
    lines += [] if why is None else [f"SCALING WAITS: {why}"]
    return lines + ([] if hook is None else [f"SCALING HOOK: {hook}"])


def _row(replica: Replica) -> tuple[str, ...]:
    engine = "/".join(filter(None, (replica["runtime_type"], replica["connection_mode"])))
    return (
        replica["id"],
        replica["state"],
        "-" if replica["state"] == "absent" else age(replica["state_age_s"]),
        "-" if replica["in_flight"] is None else f"{replica['in_flight']:.0f}",
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


def render_problems(status: Status, width: int | None = None) -> str:
    """All that is not as it should be, a line each; empty if nothing is."""
    file, nginx = status["daemon"]["configuration"], status["nginx"]
    about_file = "a reload would change" if file["on_disk"] == "differs" else f"the file on disk is {file['on_disk']}:"
    lines = [] if status["leave"] is None else [_leaving(status["leave"])]
    lines += [f"PROBLEM: {about_file} {line}" for line in file["lines"]]
    if nginx["state"] != "up":
        lines.append(f"NGINX DOWN: {nginx['reason']}")
    lines += [f"PROBLEM: {problem}" for problem in status["problems"]]
    lines += [f"{it['name']}  NOT IN FORCE: {it['not_in_force']}" for it in status["addresses"] if it["not_in_force"]]
    for service in status["services"]:
        name, router = service["name"], service["router"]
        if router["state"] != "up" and not router["reason"]:
            lines.append(f"{name}  router: {router['state']}")
        lines += [f"{name}  {line.strip()}" for line in problems_of(service)]
        scaling = service["scaling"]
        if scaling is not None:
            lines += [f"{name}  {it}" for it in _about_scaling({**scaling, "voice": None})]
        for it in service["replicas"]:
            if it["state"] not in ("serving", "draining"):
                why = f"  {it['reason']}" if it["reason"] else ""
                lines.append(f"{name}/{it['id']}  {_since(it)}{why}")
            elif it["state"] == "serving" and it["reason"]:
                lines.append(f"{name}/{it['id']}  serving, but {it['reason']}")
    return _lines(lines, width)


def _since(row: Replica) -> str:
    """Nobody notes since when a socket is absent."""
    return row["state"] if row["state"] == "absent" else f"{row['state']} for {age(row['state_age_s'])}"


def render_replica(service: Service, row: Replica, width: int | None = None) -> str:
    """One replica in the manner of `systemctl status`."""
    engine = "/".join(filter(None, (row["runtime_type"], row["connection_mode"]))) or "not identified"
    facts = {
        "reason": row["reason"],
        "engine": ", ".join(filter(None, (engine, row["worker_type"], row["model"] and f"model {row['model']}"))),
        "models": ", ".join(row["models"]) if len(row["models"]) > 1 else None,
        "socket": row["socket"],
        "tunnel": row["tunnel"] and f"{row['tunnel']['to']}: {row['tunnel']['reason'] or row['tunnel']['state']}",
        "bridge": row["bridge"],
        "advertised": row["advertise"],
        "worker": row["worker_id"],
        "load": None if row["in_flight"] is None else f"{row['in_flight']:.0f} in flight",
        "source": row["source"],
        "service": f"{service['serving']} of {service['expected']} serve; {_traffic(service)}",
        "why": f"gateway-sidecar explain {service['name']} {row['id']}",
    }
    lines = wrapped(f"{service['name']}/{row['id']} is {_since(row)}", width)
    for name, value in facts.items():
        if value:
            lines += wrapped(f"{name + ':':12}{value}", width, "  ", 12, most=_LONGEST_LINE)
    return "\n".join(lines)


def reload_lines(plan: ReloadPlan) -> list[str]:
    """What a reload would change, for people."""
    if plan["problems"]:
        return [f"a reload of {plan['file']} would be refused:", *(f"  {line}" for line in plan["problems"])]
    if not plan["changes"]:
        return [f"a reload of {plan['file']} would change nothing"]
    lines = [f"a reload of {plan['file']} would change:"]
    for it in plan["changes"]:
        lines.append(f"  {it['what']}" if it["part"] == "-" else f"  {it['part']}: {it['what']}")
        lines.append(f"    interrupts: {it['interrupts'] or 'nothing'}")
        lines += [f"    replica {replica['replica']}: {_effect(replica)}" for replica in it["replicas"][:_MOST_TOUCHED]]
        if (further := len(it["replicas"]) - _MOST_TOUCHED) > 0:
            lines.append(f"    and {counted(further, 'replica')} more")
    return lines


def _effect(replica: TouchedReplica) -> str:
    if replica["in_flight"] is None:
        return replica["effect"]
    return f"{replica['effect']}; {replica['in_flight']:.0f} in flight"
