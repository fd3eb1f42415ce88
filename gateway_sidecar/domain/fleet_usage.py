"""What keys of the store have used at each gateway in this day and this month, as it tells, and what others add to it.
Pure.

A gateway tells it by its instance, and not by its name: what was counted stays one count when it is given another name,
and does not begin anew when it loses its memory, or its disk what was counted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway_sidecar.domain.store_memory import NOT_OURS, Snapshot

MOST_BYTES = 512 * 1024
"""Of one gateway's record, a third of what etcd takes: some 10,000 keys, each with a number for the day
and one for the month. Those that have used least are left out.
"""
_MOST_TOKENS = 2**53
"""Of one key at one gateway; more than it can ever use. Sums of it are numbers that everybody can read."""
_AROUND = 2
"""Bytes of one key's part beside its name and number: a colon and a comma."""

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

    def at_least(self, told: UsedAt | None) -> UsedAt:
        """The same, where it told more of the same period: nothing is used less, and a disk may have lost it since."""
        before = {bound: {} if told is None else told.in_period(bound, it[0]) for bound, it in self.used.items()}
        return self._with({bound: _largest(used, before[bound]) for bound, (_, used) in self.used.items()})

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
        for tokens, bound, service, key in rows:
            size += len(json.dumps(key)) + len(str(tokens)) + _AROUND
            if size > MOST_BYTES:
                return replace(self._with(kept), is_cut=True)
            kept[bound][service][key] = tokens
        return self._with(kept)

    def _with(self, used: Mapping[str, Used]) -> UsedAt:
        return replace(self, used={bound: (period, used[bound]) for bound, (period, _) in self.used.items()})

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
                        str(service): {str(key): min(max(0, int(tokens)), _MOST_TOKENS) for key, tokens in keys.items()}
                        for service, keys in it["used"].items()
                    },
                )
                for bound, it in said["bounds"].items()
            }
            return cls(str(said["gateway"]), used, said["cut"] is True)
        except NOT_OURS:
            return None


def _largest(*all_used: Used) -> Used:
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for used in all_used:
        for service, keys in used.items():
            for key, tokens in keys.items():
                found[service][key] = max(tokens, found[service].get(key, 0))
    return found


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
