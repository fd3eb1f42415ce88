"""The gateways of a fleet, as the store's keys say: which are alive, and what they tell of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway_sidecar.domain.store_memory import Snapshot

StoreState = Literal["unread", "up", "away", "refused"]
"""How it stands with the store: not tried yet; read and believed; cannot be read; not believed."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway that is alive.

    instance: tells it from another of its name. version: of its program. services: those that it serves.
    ready: whether it takes requests. leaving: whether it is about to stop. said: all that it tells, as it stands there.
    """

    name: str
    instance: str
    version: str = ""
    services: tuple[str, ...] = ()
    ready: bool = False
    leaving: bool = False
    said: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, name: str, text: str) -> Gateway | None:
        """As the key's value has it; None for what no gateway wrote."""
        try:
            said = json.loads(text)
            return cls(
                name,
                str(said["instance"]),
                str(said.get("version", "")),
                tuple(str(it) for it in said.get("services", ())),
                said.get("ready") is True,
                said.get("leaving") is True,
                said,
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def gateways_in(snapshot: Snapshot, prefix: str) -> list[Gateway]:
    """Those whose lease holds, by name."""
    names = sorted(key for key in snapshot.entries if key.startswith(prefix))
    found = (Gateway.from_json(key.removeprefix(prefix), snapshot.entries[key].value) for key in names)
    return [it for it in found if it is not None]
