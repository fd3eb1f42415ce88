"""Replicas as a YAML or JSON file, or a directory of them, lists them.

Files are read when they have changed. A bad file keeps its last good content, and a missing file is not an empty one:
an inventory without replicas says so with {}. In a directory, a file that goes takes its replicas with it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from asyncinotify import Inotify, Mask
from pydantic import Field

from gateway_sidecar.config.text_file import read_file
from gateway_sidecar.config.tunnels import MOST_ID_BYTES, PlainPathValue, SshDefaults
from gateway_sidecar.config.yamltree import Location, Problem, Tree, read_tree
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.domain.trust import ROOT, trouble_with_links, way_in
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.files.follow import follow, ours
from gateway_sidecar.files.stamp import Stamp, stamp_of
from gateway_sidecar.sources.base import Given, SourceKind
from gateway_sidecar.sources.described import listing_of
from gateway_sidecar.sources.entry import Described, describe, described_schema
from gateway_sidecar.sources.listing import Listing
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread

SUFFIXES = (".yaml", ".yml", ".json")
_MOST_BYTES = 8 * 1024 * 1024  # A choice: at 200 bytes a replica, 40,000 of them.
_CHANGES = (
    Mask.CREATE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.CLOSE_WRITE | Mask.ATTRIB | Mask.DELETE_SELF
)


@dataclass(slots=True)
class _File:
    """One file: as it was when it was read, what it said last that could be used, and what is wrong with it now."""

    stamp: Stamp | None = None
    said: Mapping[ReplicaId, Described] | None = None
    problems: list[str] = field(default_factory=list)


class Inventory:
    """The replicas that files below one path list (a source)."""

    def __init__(self, path: Path, given: Given) -> None:
        self.path = path
        self._given = given
        self._vouching: frozenset[int] = frozenset()
        self._files: dict[Path, _File] = {}
        self._owner: dict[ReplicaId, Path] = {}
        self._thread = OwnThread(f"source {path}")
        self._prober = OwnThread(f"hints {path}")

    async def look(self) -> Listing:
        """What is there now. Never raises. A file system that does not answer leaves everything unknown."""
        try:
            return await self._thread.run(self.look_now, patience_s=DISK_S)
        except TimeoutError:
            return Listing(blind=f"{self.path} was not read within {DISK_S:.0f} s; check its size and its disk")

    def look_now(self) -> Listing:
        """Reads what has changed. Never raises. Blocks: call in a thread."""
        try:
            paths = self._paths()
        except OSError as error:
            trouble = f"cannot read {self.path}: {error.strerror}"
            return self._listing({str(self.path): trouble}, {SOURCE.name: trouble})
        for gone in self._files.keys() - set(paths):
            del self._files[gone]
        refused: dict[str, str] = {}
        unseen: dict[str, str] = {}
        for path in paths:
            file = self._files.setdefault(path, _File())
            self._refresh(path, file)
            if file.problems:
                kept = "" if file.said is None else "; what it said before stays"
                refused[str(path)] = "; ".join(file.problems[:5]) + kept
            if file.said is None:
                unseen[SOURCE.name] = file.problems[0]
        return self._listing(refused, unseen)

    def _paths(self) -> list[Path]:
        found = self.path.stat()
        # Whoever owns what the settings name was given this job. Others who may write there name what is their own.
        self._vouching = frozenset((found.st_uid,))
        if not stat.S_ISDIR(found.st_mode):
            return [self.path]
        with os.scandir(self.path) as entries:
            names = [e.name for e in entries if e.name.endswith(SUFFIXES) and not e.name.startswith(".")]
        return [self.path / name for name in sorted(names)]

    def _refresh(self, path: Path, file: _File) -> None:
        try:
            place = follow(str(path.absolute()))
        except OSError as error:
            file.stamp, file.problems = None, [f"{path}: {error.strerror}"]
            return
        trouble = trouble_with_links(place.links, place.owned, ours() | self._vouching)
        if trouble is not None:
            file.stamp, file.problems = None, [trouble]
            return
        stamp = stamp_of(place.found)
        if stamp == file.stamp:
            return
        try:
            file.said, file.problems = read_inventory(path, self._given.service, self._given.ssh_defaults), []
        except ConfigError as error:
            file.problems = error.problems
        file.stamp = stamp

    def _listing(self, refused: dict[str, str], unseen: dict[str, str]) -> Listing:
        """All files together. Who had a replica first keeps it."""
        described: dict[ReplicaId, Described] = {}
        owner: dict[ReplicaId, Path] = {}
        mine_first = sorted(self._files.items())
        for path, file in mine_first:
            for replica, it in (file.said or {}).items():
                holder = owner.get(replica)
                if holder is None:
                    described[replica], owner[replica] = it, path
                    continue
                if self._owner.get(replica) == path:
                    described[replica], owner[replica], path_refused = it, path, holder
                else:
                    path_refused = path
                kept = owner[replica]
                refused[replica] = f"is in {kept} and in {path_refused}; {kept} counts: rename or remove one"
        self._owner = owner
        listing = listing_of(described, SOURCE.name, self._given, self._vouching)
        return Listing(listing.present, listing.unknown, {**listing.refused, **refused}, unseen, listing.absent)

    async def hints(self) -> AsyncIterator[None]:
        """Yields whenever a look may be worth while. May miss things, and may yield for nothing.

        Raises OSError if inotify cannot be had, or the file system does not answer.
        """
        with Inotify() as inotify:
            while True:
                await self._prober.run(partial(self._watch, inotify), patience_s=DISK_S)
                yield
                event = await inotify.get()
                # In the directory around it, only what bears its name matters.
                while event.watch and event.watch.path != self.path and event.name != Path(self.path.name):
                    event = await inotify.get()

    def _watch(self, inotify: Inotify) -> None:
        for place in (self.path, self.path.parent):
            with suppress(OSError):  # The rescan says what is wrong with it.
                if place.is_dir():
                    inotify.add_watch(place, _CHANGES)


def read_inventory(
    path: Path, service: str, defaults: SshDefaults, warn: Callable[[str], object] = lambda _line: None
) -> Mapping[ReplicaId, Described]:
    """Reads one file. Raises ConfigError with a line for each mistake. Blocks. An empty file is a mistake, because a
    file that is being written, or that a full disk has cut, looks empty too.
    """
    file = read_file(path, _MOST_BYTES)
    tree = _read_tree(path, file.content)
    problems = list(tree.problems)
    if not isinstance(tree.data, dict) and not problems:
        what = "is empty; write {} to have no replicas" if tree.data is None else "is not a mapping at the top"
        cure = "" if tree.data is None else "; write `id: {socket: /path}` lines"
        problems.append(Problem(tree.line(()), "", what + cure))
    found: dict[ReplicaId, Described] = {}
    if isinstance(tree.data, dict):
        for replica, entry in _entries(tree):
            further: list[Problem] = []
            described = describe(path, file, f"{service}/{replica}", entry, defaults, further, warn)
            where = re.sub(r"\n.*", "", replica)
            problems += [Problem(p.line, f"{where}.{p.where}" if p.where else where, p.text) for p in further]
            if described is not None:
                found[ReplicaId(replica)] = described
    if problems:
        unique = dict.fromkeys(sorted(problems, key=lambda problem: problem.line or 0))
        raise ConfigError([problem.render(str(path)) for problem in unique])
    return found


def _read_tree(path: Path, content: bytes) -> Tree:
    """JSON is YAML, but for tabs between its tokens; in its texts it has none. Broken, it is told as JSON."""
    if path.suffix != ".json":
        return read_tree(content)
    tree = read_tree(content.replace(b"\t", b" "))
    if tree.problems and tree.data is None:
        try:
            json.loads(content)
        except json.JSONDecodeError as error:
            text = f"is not JSON: {error.msg} (column {error.colno}); remove comments, and write the file as a whole"
            tree.problems = [Problem(error.lineno, "", text)]
        except (UnicodeDecodeError, RecursionError):
            pass  # Told already.
    return tree


def _entries(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Each entry as a tree of its own."""
    assert isinstance(tree.data, dict)
    trees = {replica: Tree(data=entry) for replica, entry in tree.data.items()}

    def below(location: Location) -> Tree | None:
        return trees.get(str(location[0])) if location else None

    for location, place in tree.places.items():
        if (part := below(location)) is not None:
            part.places[location[1:]] = place
    for location, line in tree.key_lines.items():
        if (part := below(location)) is not None:
            part.key_lines[location[1:]] = line
    for location in tree.unread:
        if (part := below(location)) is not None:
            part.unread.add(location[1:])
    yield from trees.items()


def inventory_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of an inventory file. What a service's `ssh_defaults` add is beyond it."""
    entry, parts = described_schema("#/$defs/{model}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gateway-sidecar inventory",
        "description": "Replicas by their ids. A file without any says {}.",
        "type": "object",
        "propertyNames": {"pattern": r"^(?!\.{1,2}$)[^/]+$", "maxLength": MOST_ID_BYTES},
        "additionalProperties": {"$ref": "#/$defs/InventoryEntry"},
        "$defs": {**parts, "InventoryEntry": entry},
    }


def _other_writers(path: str) -> Iterator[str]:
    """Who else than its owner may say which replicas there are, and by which SSH keys they are reached."""
    try:
        place = follow(path)
    except OSError:
        return  # The look says so.
    others = way_in(place.owned, place.above, ours() | {place.found.st_uid}, (ROOT,))
    if others is not None:
        yield f"{others}, and may name replicas, and SSH servers that the daemon logs in to with its keys; chmod go-w"


SOURCE: SourceKind[str] = SourceKind(
    name="inventory",
    setting=(
        PlainPathValue | None,
        Field(
            default=None,
            description="A YAML or JSON file, or a directory of them (`.yaml`, `.yml`, `.json`), that lists replicas:"
            " `id: {socket: PATH}` or `id: {ssh: {...}}`. Changes apply at once.",
            examples=["/etc/gateway-sidecar/chat.d"],
        ),
    ),
    build=lambda path, given: Inventory(Path(path), given),
    advise=_other_writers,
)
