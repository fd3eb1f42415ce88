"""The last events of each replica, of each service and of the daemon itself. The log feeds it, so no event bypasses it.

Each of them has a ring of its own, so a replica that makes many events pushes out no other's. In one ring an event that
repeats itself takes half of the room at most. All rings together are bounded too: the longest give way first.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import orjson

from gateway_sidecar.domain.planning import base_of
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.telemetry.dates import seconds_of

Subject = tuple[str, str]
"""Whom an event is about: a service and its replica, ("chat", "") for a service, and ("", "") for the daemon."""

DAEMON: Subject = ("", "")
OF_A_REPLICA, OF_A_SERVICE, OF_ALL = 32, 256, 16_384
"""Events that are kept: a replica makes six or so from first sight to its end. All of them take about 14 MB."""
RECENT = 4096
"""A reader that is further behind than so many events has lost some."""

_FIRST = ("timestamp", "level", "event", "service", "replica")
_MOST_BYTES = 4096  # With 16,384 events it bounds the journal to 64 MiB; most have some hundred bytes.
_MOST_NAMED = 64  # A choice: fields of one event, and replicas that one event is about.
_LARGEST = 2**63  # `orjson` takes no whole number of more than 64 bits.
_SPARE = 7 / 8
"""Of all that are kept, so many stay when the bound is reached: to look for the longest rings takes a millisecond."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event.

    seq: greater than that of every event before, across restarts of the daemon: microseconds since 1970, or one more
        than the last where the clock went back.
    line: the event as a JSON object.
    """

    seq: int
    at: float
    name: str
    subjects: tuple[Subject, ...]
    line: bytes

    @property
    def is_said(self) -> bool:
        """Whether it only repeats a line of a router, nginx or a library."""
        return self.name.endswith((".said", ".said_more"))

    def concerns(self, service: str | None, replica: str | None) -> bool:
        """Whether it is about this replica, or about this service or one of its replicas; None is any."""
        return service is None or any(of == service and replica in (None, its) for of, its in self.subjects)


class _Ring:
    """The last events of one subject."""

    def __init__(self, most: int) -> None:
        self.entries: deque[Entry] = deque()
        self._most = most
        self._names: Counter[str] = Counter()

    def add(self, entry: Entry) -> int:
        """How many more there are now: 1, or 0 where an older one gave way."""
        self.entries.append(entry)
        self._names[entry.name] += 1
        if self._names[entry.name] > self._most // 2:
            self._drop(next(it for it in self.entries if it.name == entry.name))
            return 0
        if len(self.entries) > self._most:
            self._drop(self.entries[0])
            return 0
        return 1

    def cut(self, most: int) -> None:
        while len(self.entries) > most:
            self._drop(self.entries[0])

    def _drop(self, entry: Entry) -> None:
        self.entries.remove(entry)
        self._names[entry.name] -= 1
        if not self._names[entry.name]:
            del self._names[entry.name]


class Journal:
    """All rings. Events come from any thread; `listen` tells who waits for them."""

    def __init__(self, most: int = OF_ALL) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._rings: OrderedDict[Subject, _Ring] = OrderedDict()
        self._kept = 0
        self._recent: deque[Entry] = deque(maxlen=RECENT)
        self._forgotten = 0
        self._listeners: set[Callable[[], None]] = set()
        self._at_url: dict[str, Subject] = {}
        self._url_of: dict[Subject, str] = {}
        self.last = 0
        """The `seq` of the latest event."""

    # -- what comes in

    def note(self, event: Mapping[str, object]) -> None:
        """One event of the log, with `timestamp`, `event`, and whatever else it says."""
        with self._lock:
            self._add(dict(event), None)
        for tell in tuple(self._listeners):
            tell()

    def restore(self, lines: Iterable[bytes]) -> int:
        """Puts the events of an earlier daemon before those that are there; returns how many lines were no events."""
        unread = 0
        with self._lock:
            own = [orjson.loads(it.line) for it in self._all()]
            self._rings.clear()
            self._recent.clear()
            self._kept = self.last = self._forgotten = 0
            for line in lines:
                try:
                    event = orjson.loads(line)
                    self._add(event, event.pop("seq"))
                except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
                    unread += 1
            for event in own:
                del event["seq"]
                self._add(event, None)
        return unread

    def _add(self, event: dict[str, object], seq: int | None) -> None:
        at = seconds_of(str(event["timestamp"]))
        if seq is not None and not isinstance(seq, int):
            raise TypeError("seq is no number")
        name = str(event["event"])
        number = max(self.last + 1, int(at * 1e6) if seq is None else seq)
        subjects = self._subjects(name, event)
        head = {key: event[key] for key in _FIRST if key in event}
        entry = Entry(number, at, name, subjects, _line({"seq": number, **head, **event}))
        self.last = number
        if len(self._recent) == RECENT:
            self._forgotten = self._recent[0].seq
        self._recent.append(entry)
        for subject in subjects:
            ring = self._rings.get(subject)
            if ring is None:
                ring = self._rings[subject] = _Ring(OF_A_REPLICA if subject[1] else OF_A_SERVICE)
            self._rings.move_to_end(subject)
            self._kept += ring.add(entry)
        if self._kept > self._most:
            self._trim()

    def _subjects(self, name: str, event: dict[str, object]) -> tuple[Subject, ...]:
        """Whom it is about. An event that names only a worker gets the replica that was last said to be that worker."""
        service, replica, url = (str(event.get(key) or "") for key in ("service", "replica", "worker_url"))
        if service == "-":
            service = ""
        if service and replica:
            subject = (service, replica)
            if name == "replica.gone":
                self._forget_url(subject)
            elif url:
                self._know_url(subject, base_of(url))
            return (subject,)
        if service and url:
            known = self._at_url.get(base_of(url))
            if known is not None and known[0] == service:
                event["replica"] = known[1]
                return (known,)
            return ((service, ""),)
        named = [replica] if replica else event.get("replicas")
        if not service and isinstance(named, list):  # A tunnel or an address: `chat/r1`.
            found = [tuple(str(it).partition("/")[::2]) for it in named[:_MOST_NAMED] if "/" in str(it)]
            if found:
                return tuple((of, its) for of, its in found)
        return ((service, ""),)

    def _know_url(self, subject: Subject, url: str) -> None:
        if self._url_of.get(subject) != url:
            self._forget_url(subject)
            self._url_of[subject], self._at_url[url] = url, subject

    def _forget_url(self, subject: Subject) -> None:
        url = self._url_of.pop(subject, None)
        if url is not None and self._at_url.get(url) == subject:
            del self._at_url[url]

    def _trim(self) -> None:
        """Shortens the longest rings until there is room; where all are short, the oldest go."""
        room = int(self._most * _SPARE)
        sizes = sorted(len(ring.entries) for ring in self._rings.values())
        most = sizes[-1]
        while most > 1 and sum(min(size, most) for size in sizes) > room:
            most -= max(1, most // 8)
        for ring in self._rings.values():
            ring.cut(most)
        excess = len(self._rings) - room if most == 1 else 0
        for subject in list(islice(self._rings, max(0, excess))):
            del self._rings[subject]
            self._forget_url(subject)
        self._kept = sum(len(ring.entries) for ring in self._rings.values())

    # -- what is seen of it

    def entries(self, service: str | None = None, replica: str | None = None, *, since: float = 0.0) -> list[Entry]:
        """The events about one replica, about one service and its replicas, or all; in order."""
        with self._lock:
            return [it for it in self._all(service, replica) if it.at >= since]

    def after(self, seq: int) -> tuple[list[Entry], bool]:
        """All events after that one, in order; and whether some of them are lost."""
        with self._lock:
            if seq >= self.last:
                return [], False
            recent = list(self._recent)
            return recent[bisect_right(recent, seq, key=lambda it: it.seq) :], seq < self._forgotten

    def listen(self, tell: Callable[[], None]) -> None:
        """`tell` is called after each event, in whatever thread that came."""
        self._listeners = {*self._listeners, tell}

    def unlisten(self, tell: Callable[[], None]) -> None:
        """It is not called any more."""
        self._listeners = self._listeners - {tell}

    def _all(self, service: str | None = None, replica: str | None = None) -> list[Entry]:
        if service is not None and replica is not None:
            ring = self._rings.get((service, replica))
            return [] if ring is None else list(ring.entries)
        rings = (ring for (of, _), ring in self._rings.items() if service in (None, of))
        unique = {entry.seq: entry for ring in rings for entry in ring.entries}
        return [unique[seq] for seq in sorted(unique)]


def _line(event: Mapping[str, object]) -> bytes:
    """The event as JSON, in a bounded number of bytes: a fault is named, and its traceback is in the log."""
    if "exc_info" in event:
        fault = event["exc_info"] if event["exc_info"] is not True else sys.exc_info()[1]
        event = {key: value for key, value in event.items() if key != "exc_info"}
        if isinstance(fault, BaseException):
            event["fault"] = printable(f"{type(fault).__name__}: {fault}")
    try:
        line = orjson.dumps(event, default=str)
        if len(line) <= _MOST_BYTES:
            return _as_large_as_it_is(line)
    except orjson.JSONEncodeError:  # Half a surrogate pair.
        pass
    short = {printable(str(key)): _shortened(value) for key, value in islice(event.items(), _MOST_NAMED)}
    return _as_large_as_it_is(orjson.dumps({**short, "seq": event["seq"]}))


def _as_large_as_it_is(line: bytes) -> bytes:
    """A copy: orjson 3.13 leaves its buffer of 4 KiB to each text, so that 16,384 events would take 66 MB."""
    return bytes(memoryview(line))


def _shortened(value: object) -> object:
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < _LARGEST):
        return value
    return printable(str(value))


JOURNAL = Journal()
"""The process's own: there is one log in it."""
