"""What keys of the store have used at each gateway in this day and this month, as it tells, and what others add to it.
Pure.

A gateway tells it by its instance, and not by its name: what was counted stays one count when it is given another name,
and does not begin anew when it loses its memory.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway_sidecar.domain.store_memory import NOT_OURS, Snapshot

MOST_BYTES = 512 * 1024
"""Of one gateway's record, a third of what etcd takes: some 15,000 keys. Those that have used least are left out."""
_AROUND = 8
"""Bytes of one key's part beside its name and number."""

Used = Mapping[str, Mapping[str, int]]
"""Service or shared address -> key -> tokens."""


@dataclass(frozen=True, slots=True)
class UsedAt:
    """One gateway's record.

    used: a bound (`tokens_per_day`) -> the period that it counts (`20261130`), and what was used in it.
    is_cut: whether there were more keys than it has room for.
    """

    gateway: str
    used: Mapping[str, tuple[str, Used]] = field(default_factory=dict)
    is_cut: bool = False

    def in_period(self, bound: str, period: str) -> Used:
        """What was used in this very period; nothing where another one is told of."""
        told, used = self.used.get(bound, ("", {}))
        return used if told == period else {}

    def cut(self) -> UsedAt:
        """As much of it as there is room for."""
        rows = sorted(
            (
                (tokens, bound, service, key)
                for bound, (_, used) in self.used.items()
                for service, keys in used.items()
                for key, tokens in keys.items()
                if tokens > 0
            ),
            reverse=True,
        )
        kept: dict[str, defaultdict[str, dict[str, int]]] = {bound: defaultdict(dict) for bound in self.used}
        size = 0
        for number, (tokens, bound, service, key) in enumerate(rows):
            size += len(json.dumps(key)) + len(str(tokens)) + _AROUND
            if size > MOST_BYTES:
                return UsedAt(self.gateway, self._with(kept), is_cut=number < len(rows))
            kept[bound][service][key] = tokens
        return UsedAt(self.gateway, self._with(kept))

    def _with(self, kept: Mapping[str, Used]) -> dict[str, tuple[str, Used]]:
        return {bound: (period, kept[bound]) for bound, (period, _) in self.used.items()}

    def to_json(self) -> str:
        """As the key's value."""
        used = {bound: {"period": period, "used": it} for bound, (period, it) in self.used.items()}
        said = {"gateway": self.gateway, "bounds": used, "cut": self.is_cut}
        return json.dumps(said, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> UsedAt | None:
        """None for what no gateway wrote."""
        try:
            said = json.loads(text)
            used = {
                str(bound): (
                    str(it["period"]),
                    {
                        str(service): {str(key): max(0, int(tokens)) for key, tokens in keys.items()}
                        for service, keys in it["used"].items()
                    },
                )
                for bound, it in said["bounds"].items()
            }
            return cls(str(said["gateway"]), used, said["cut"] is True)
        except NOT_OURS:
            return None


def used_in(snapshot: Snapshot, prefix: str) -> dict[str, UsedAt]:
    """Instance -> what it tells. What no gateway wrote is left out."""
    found = {
        key.removeprefix(prefix): UsedAt.from_json(it.value)
        for key, it in snapshot.entries.items()
        if key.startswith(prefix)
    }
    return {instance: it for instance, it in found.items() if it is not None}


def used_elsewhere(records: Mapping[str, UsedAt], own: str, bound: str, period: str) -> dict[str, dict[str, int]]:
    """What all but one instance have used, added up."""
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for instance, record in records.items():
        for service, keys in record.in_period(bound, period).items() if instance != own else ():
            for key, tokens in keys.items():
                found[service][key] = found[service].get(key, 0) + tokens
    return dict(found)
