"""Whether what a store says can be believed, given what it said before. Unknown is not empty.

A store that comes back empty, restored from an older snapshot, or as another one answers every question quickly and
wrongly. So each gateway remembers the last snapshot that it believed, and holds the next one to three marks:

- its *lineage*, a key that the first gateway makes once. A store without it is empty; one with another is not ours;
- the store's own name, and its revision, which only grows;
- the revision of each key, which only grows, too.

The lineage also names the *format* of what is there. A version that would be misread by earlier ones raises it; those
refuse the store then, and go on with what they know.

An operator who knows better begins a new lineage, which names those before it: every gateway that remembers one of
these believes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

LINEAGE = "lineage"
"""The key."""
FORMAT = 1
"""What this version reads and writes. A field that earlier versions may ignore does not change it."""
NOT_OURS = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""What it raises to read a value that no gateway wrote."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key's value, and the store's revision when it was written."""

    value: str
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a store held at one revision, below the prefixes that were asked for. `cluster` is the store's own name."""

    cluster: str
    revision: int
    entries: Mapping[str, Entry] = field(default_factory=dict)

    def with_entry(self, key: str, value: str | None, revision: int) -> Snapshot:
        """The same after this one change."""
        entries = {name: entry for name, entry in self.entries.items() if name != key}
        if value is not None:
            entries[key] = Entry(value, revision)
        return replace(self, revision=max(revision, self.revision), entries=entries)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Which history the store's content belongs to, and which ones an operator had it take the place of."""

    id: str
    ancestors: tuple[str, ...] = ()
    format: int = FORMAT

    def to_json(self) -> str:
        """As the key's value."""
        return json.dumps({"id": self.id, "ancestors": list(self.ancestors), "format": self.format})


def lineage_of(snapshot: Snapshot) -> Lineage | None:
    """The lineage that a snapshot names; None if it names none that can be read."""
    entry = snapshot.entries.get(LINEAGE)
    try:
        said = json.loads(entry.value) if entry is not None else None
        if not said:
            return None
        return Lineage(str(said["id"]), tuple(str(it) for it in said["ancestors"]), int(said.get("format", FORMAT)))
    except NOT_OURS:
        return None


@dataclass(frozen=True, slots=True)
class Memory:
    """What one gateway remembers of the store.

    known: the last snapshot that it believed; None before the first.
    expects: how many replicas it was told of by a store that it remembers nothing else of.
    distrust: why this store is not believed until an operator says otherwise, whatever it says next; empty if it is.
    """

    known: Snapshot | None = None
    expects: int = 0
    distrust: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be made of a snapshot.

    refusal: why it is not believed; empty if it is. is_new: a new store, of which nobody has made anything yet.
    is_later: only a later version can read it, whatever an operator says.
    """

    memory: Memory
    refusal: str = ""
    is_new: bool = False
    is_later: bool = False


def judge(memory: Memory, seen: Snapshot) -> Verdict:
    """Whether `seen`, read after all that is in `memory`, can be believed.

    Of several reads under way, each is judged by the memory as it was when that read began: revisions that others'
    writes brought since are no going back.
    """
    known, theirs = memory.known, lineage_of(seen)
    if theirs is not None and theirs.format > FORMAT:
        why = f"it has format {theirs.format}, and this version of gateway-sidecar reads format {FORMAT}"
        return Verdict(memory, why, is_later=True)
    if known is None:
        if theirs is None and memory.expects:
            return Verdict(memory, f"it holds nothing, and this gateway had {memory.expects} replicas of a store")
        return Verdict(memory, is_new=True) if theirs is None else Verdict(Memory(seen))
    ours = lineage_of(known)
    if theirs is None:
        return Verdict(memory, f"it holds nothing of ours, and had {_counted(known)} before")
    if ours is not None and theirs.id != ours.id:
        if ours.id in theirs.ancestors:
            return Verdict(Memory(seen))
        return Verdict(memory, "what it holds was begun by other gateways; this one knows another store")
    if seen.cluster != known.cluster:
        return Verdict(memory, f"it is another store: {seen.cluster}, and was {known.cluster}")
    back = _gone_back(known, seen)
    if back or memory.distrust:
        # What was restored in place grows again, and looks right one day: it is not believed then, either.
        why = memory.distrust or back
        return Verdict(replace(memory, distrust=why), why)
    return Verdict(Memory(seen))


def _gone_back(known: Snapshot, seen: Snapshot) -> str:
    if seen.revision < known.revision:
        return f"it has gone back from revision {known.revision} to {seen.revision}, as after a restore of a backup"
    for key, entry in seen.entries.items():
        before = known.entries.get(key)
        if before is not None and entry.revision < before.revision:
            return f"'{key}' has gone back from revision {before.revision} to {entry.revision}, as after a restore"
    return ""


def _counted(known: Snapshot) -> str:
    count = len(known.entries) - (LINEAGE in known.entries)
    return "1 key" if count == 1 else f"{count} keys"
