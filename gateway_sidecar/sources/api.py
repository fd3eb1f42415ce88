"""Replicas that were put over the admin API; each is held to the rules of an inventory's entry, by the same model."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway_sidecar.config.text_file import FileText
from gateway_sidecar.config.tunnels import SshDefaults
from gateway_sidecar.config.yamltree import Problem, Tree
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.sources.base import Given, SourceKind
from gateway_sidecar.sources.described import listing_of
from gateway_sidecar.sources.entry import Described, InventoryEntry, RawEntry, describe, described_schema
from gateway_sidecar.sources.listing import Listing
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread

NAME = "api"
_ROOT = Path("/")
_STORE_S = 1.0  # As long as a source is waited for that others wait with (`sources/listing.py`).


@dataclass(frozen=True, slots=True)
class _Read:
    """One entry as it was read, with the key that it names; `stamp` is that of the key's file."""

    entry: RawEntry
    stamp: tuple[int, int, int] | None
    described: Described | None
    problem: str | None


class ApiSource:
    """Looks at the replicas of the record (a source)."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._record = given.record
        self._known: dict[ReplicaId, _Read] = {}
        self._thread = OwnThread("source api")

    async def look(self) -> Listing:
        """What is there now. Never raises."""
        await self._until_read()
        if self._record.unread is not None:
            return Listing(unseen={NAME: self._record.unread})
        entries = {**self._record.leaving, **self._record.entries}
        lost = frozenset(self._record.lost)
        if not entries and not lost:
            return Listing()
        try:
            return await self._thread.run(lambda: self._look(entries, lost), patience_s=DISK_S)
        except TimeoutError:
            return Listing(blind="the file system of a replica's socket, or of its key, does not answer")

    async def _until_read(self) -> None:
        """A store that is about to be read is not called blind."""
        news, until = self._record.news, awake.now() + _STORE_S
        while news is not None and self._record.unread is not None and (left_s := until - awake.now()) > 0:
            news.clear()
            await awake.until_set(news, left_s)

    def _look(self, entries: dict[ReplicaId, RawEntry], lost: frozenset[ReplicaId]) -> Listing:
        self._known = {replica: self._refreshed(replica, entry) for replica, entry in entries.items()}
        described = {replica: it.described for replica, it in self._known.items() if it.described is not None}
        listing = listing_of(described, NAME, self._given)
        again = "its entry is lost; PUT it again, or DELETE it"
        refused: dict[str, str] = {**dict.fromkeys(lost, again), **listing.refused}
        refused |= {replica: it.problem for replica, it in self._known.items() if it.problem is not None}
        unknown = listing.unknown | lost | (self._known.keys() - described.keys())
        return Listing(listing.present, unknown, refused, absent=listing.absent)

    def _refreshed(self, replica: ReplicaId, entry: RawEntry) -> _Read:
        """The entry as it was read last, unless it or its key's file is another one now."""
        given = self._given
        before, stamp = self._known.get(replica), _stamp(entry)
        if before is not None and before.entry is entry and before.stamp == stamp:
            return before
        try:
            return _Read(entry, stamp, read_raw(entry, given.service, replica, given.ssh_defaults), None)
        except ConfigError as error:
            kept = before.described if before is not None and before.entry is entry else None
            return _Read(entry, stamp, kept, "; ".join(error.problems))

    async def hints(self) -> AsyncIterator[None]:
        """Yields once, and then whenever others have changed the record: our own API has the service look."""
        yield
        while (news := self._record.news) is not None:
            await news.wait()
            news.clear()
            yield


def _stamp(entry: RawEntry) -> tuple[int, int, int] | None:
    key_file = entry.get("api_key_file")
    if not isinstance(key_file, str):
        return None
    try:
        status = Path(key_file).stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_raw(entry: object, service: str, replica: str, defaults: SshDefaults) -> Described:
    """What the entry says. Raises ConfigError with a line for each mistake, without a file's name. Blocks."""
    if not isinstance(entry, dict):
        raise ConfigError(['is not an object; send {"socket": "/path"} or {"ssh": {...}}'])
    problems: list[Problem] = []
    key_file = entry.get("api_key_file")
    if isinstance(key_file, str) and not key_file.startswith("/"):
        text = f"{key_file!r} is relative, and this entry lies in no directory; name the file by its absolute path"
        raise ConfigError([f"api_key_file: {text}"])
    # Whoever may put replicas may stop the daemon too: what the daemon may read is theirs to name.
    file = FileText(b"", os.geteuid(), 0o600)
    described = describe(_ROOT, file, f"{service}/{replica}", Tree(data=entry), defaults, problems, lambda _: None)
    if described is None or problems:
        texts = [f"{problem.where}: {problem.text}" if problem.where else problem.text for problem in problems]
        raise ConfigError([text.replace(" to YAML, not", ", not") for text in dict.fromkeys(texts)])
    return replace(described, entry=entry)


def raw_schema(ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """JSON Schema of an entry, and of the parts that it refers to."""
    schema, parts = described_schema(ref_template)
    schema["properties"]["api_key_file"] |= {
        "anyOf": [{"type": "string", "pattern": "^/"}, {"type": "null"}],
        "description": "A file with the engine's API key, on the daemon's machine. The key itself is never sent.",
        "examples": ["/etc/gateway-sidecar/keys/r1"],
    }
    return schema | {"title": "Entry"}, parts


def same_entry(one: RawEntry, other: RawEntry) -> bool:
    """Whether both, each usable in itself, say the same, however they say it."""
    return InventoryEntry.model_validate(one) == InventoryEntry.model_validate(other)


SOURCE: SourceKind[None] = SourceKind(name=NAME, build=lambda _, given: ApiSource(given))
