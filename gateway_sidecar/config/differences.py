"""What differs between two configurations, in meaning: comments, order and spelling do not count."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from gateway_sidecar.config.addresses import AddressSettings
from gateway_sidecar.config.models import ServiceSettings, Settings

FIXED = (
    "state_dir",
    "run_dir",
    "access_log",
    "usage",
    "bridges",
    "peers",
    "router_ports",
    "metrics",
    "admin",
    "store",
    "rescan_interval_s",
)
"""What cannot change while a daemon runs."""


def changed_settings(old: BaseModel, new: BaseModel) -> list[str]:
    """Which settings of one part of the file are others now."""
    return [name for name in type(new).model_fields if getattr(old, name) != getattr(new, name)]


def differences(old: Settings, new: Settings) -> list[str]:
    """What a reload from the one to the other would change: a line for each part, in the words of `reload`."""
    whole = [name for name in ("log", "acme") if getattr(old, name) != getattr(new, name)]
    fixed = [f"{name}: needs a restart of the daemon" for name in FIXED if getattr(old, name) != getattr(new, name)]
    return [*fixed, *whole, *_parts(old.services, new.services), *_parts(old.addresses, new.addresses)]


def _parts(
    old: Iterable[ServiceSettings | AddressSettings], new: Iterable[ServiceSettings | AddressSettings]
) -> list[str]:
    before, after = {it.name: it for it in old}, {it.name: it for it in new}
    lines = [f"{name}: removed" for name in before if name not in after]
    for name, settings in after.items():
        if name not in before:
            lines.append(f"{name}: added")
        elif changed := changed_settings(before[name], settings):
            lines.append(f"{name}: {', '.join(changed)}")
    return lines
