"""What differs between two configurations, in meaning: comments, order and spelling do not count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel

from gateway_sidecar.config.addresses import AddressSettings
from gateway_sidecar.config.models import ServiceSettings, Settings

FIXED = (
    "state_dir",
    "run_dir",
    "access_log",
    "usage",
    "nginx",
    "bridges",
    "peers",
    "router_ports",
    "metrics",
    "admin",
    "store",
    "rescan_interval_s",
)
"""What cannot change while a daemon runs."""

_AT_ONCE = ("log", "acme", "leave")
TAKEN_IN = (*_AT_ONCE, "services", "addresses")
"""What a reload takes in."""


def changed_settings(old: BaseModel, new: BaseModel) -> list[str]:
    """Which settings of one part of the file are others now."""
    return [name for name in type(new).model_fields if getattr(old, name) != getattr(new, name)]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a reload would change. part: the service or address, or "-". interrupts: what it costs clients,
    or None for nothing. settings: of a part that stays, those that differ.
    """

    part: str
    what: str
    interrupts: str | None = None
    settings: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.what if self.part == "-" else f"{self.part}: {self.what}"


_CLOSES = "requests to it are refused from then on; requests in flight go on"
_KEPT = "nginx is reloaded: clients' kept connections end after their current answer"
_RESTART = "the reload is refused as a whole; a restart of the daemon takes it in, and interrupts nothing by itself"
_COSTS = {
    "listen": "nginx is reloaded: the old address closes, requests in flight go on",
    "frontend": _KEPT,
    "router": "the router is replaced: requests in flight stay with the old one, for `router.retire_timeout_s` at most",
    "replicas": "replicas that the new sources do not show leave as if their sockets had gone",
}
"""What a setting of a service costs clients; the others cost nothing."""


def differences(old: Settings, new: Settings) -> list[Change]:
    """What a reload from the one to the other would change, in the words of `reload`."""
    fixed = [
        Change("-", f"{name}: needs a restart of the daemon", _RESTART)
        for name in FIXED
        if getattr(old, name) != getattr(new, name)
    ]
    whole = [Change("-", name) for name in _AT_ONCE if getattr(old, name) != getattr(new, name)]
    return [*fixed, *whole, *_parts(old.services, new.services), *_parts(old.addresses, new.addresses)]


def _parts(
    old: Iterable[ServiceSettings | AddressSettings], new: Iterable[ServiceSettings | AddressSettings]
) -> list[Change]:
    before, after = {it.name: it for it in old}, {it.name: it for it in new}
    changes = [Change(name, "removed", _CLOSES) for name in before if name not in after]
    for name, settings in after.items():
        if name not in before:
            changes.append(Change(name, "added"))
        elif changed := changed_settings(before[name], settings):
            costs = "; ".join(_COSTS[setting] for setting in changed if setting in _COSTS)
            changes.append(Change(name, ", ".join(changed), costs or None, tuple(changed)))
    return changes
