"""Usage on disk: what each hour has brought, and how far nginx's counts have been taken in. Blocks.

Both are written in one transaction, so each request counts once, wherever a daemon ends. nginx's counts only grow, and
stay in their files until they are written here. So a database that cannot be written loses nothing. A damaged one is
put aside, and a new one begins with what nginx still has.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway_sidecar.domain.usage import NONE, OTHERS, Usage, UsageKey
from gateway_sidecar.errors import StateError
from gateway_sidecar.nginx.usage_counts import Counted, UsageCounts, usage_in

HOUR_S = 3600
HOURLY_DAYS = 8
"""Older hours are added up to days of UTC: with 10,000 keys that is what keeps the file below 300 MB."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FIELDS = Usage._fields
_SUMS = ", ".join(f"sum({it})" for it in _FIELDS)
_ADDED = ", ".join(f"{it} = {it} + excluded.{it}" for it in _FIELDS)
_TABLES = f"""
    CREATE TABLE IF NOT EXISTS series (
        id INTEGER PRIMARY KEY, frontend TEXT, service TEXT, key TEXT, model TEXT,
        UNIQUE (frontend, service, key, model)
    );
    CREATE TABLE IF NOT EXISTS hourly (
        hour INTEGER, series INTEGER, {", ".join(f"{it} INTEGER" for it in _FIELDS)}, PRIMARY KEY (hour, series)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS seen (epoch TEXT, row INTEGER, numbers BLOB, PRIMARY KEY (epoch, row)) WITHOUT ROWID;
"""
_ADD = f"INSERT INTO hourly VALUES (?, ?{', ?' * len(_FIELDS)}) ON CONFLICT (hour, series) DO UPDATE SET {_ADDED}"
_ROLL = f"""
    INSERT INTO hourly SELECT hour - hour % 24, series, {_SUMS} FROM hourly
    WHERE hour < ? AND hour % 24 != 0 GROUP BY hour / 24, series
    ON CONFLICT (hour, series) DO UPDATE SET {_ADDED}
"""

Change = tuple[UsageKey, Usage]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for: from one hour (since 1970) on, before another, and whose. Empty text, or None, is any."""

    first_hour: int = 0
    end_hour: int | None = None
    service: str = ""
    key: str | None = None
    model: str | None = None


class UsageStore:
    """One file of SQLite, for one thread at a time.

    now: the seconds since 1970. aside: where a damaged file was put; None while there was none.
    """

    def __init__(self, path: Path, counts: UsageCounts, keep_days: int, now: Callable[[], float]) -> None:
        self._path = path
        self._counts = counts
        self._keep_days = keep_days
        self._now = now
        self._database: sqlite3.Connection | None = None
        self._series: dict[UsageKey, int] = {}
        self._seen: dict[str, bytes] = {}
        self._told: dict[str, bytes] = {}
        self._tidied: float | None = None
        self.aside: Path | None = None

    @property
    def overflows(self) -> bool:
        """Whether nginx has more to tell apart than it can."""
        return any(OTHERS in key for key in self._series)

    def collect(self) -> Sequence[Change]:
        """Takes in what nginx has counted since the last time; what that is. Raises StateError, OSError."""
        counted = self._counts.read()
        if not counted and not self._path.exists():
            return []
        with _as_state_error(self):
            self._take_in(self._opened(), counted)
        changes = [
            (it.keys[row], usage) for it in counted for row, usage in _changes(it, self._told.get(it.epoch, b""))
        ]
        self._told = {it.epoch: it.numbers for it in counted}
        for each in counted:
            with suppress(OSError):  # It is there the next time.
                self._counts.remove(each)
        return changes

    def usage(self, asked: Asked) -> Sequence[Change]:
        """What was used, each combination once; most tokens first. Raises StateError."""
        words = {
            "hour >= ?": asked.first_hour,
            "hour < ?": asked.end_hour,
            "? IN (service, frontend)": asked.service or None,
            "key = ?": asked.key,
            "model = ?": asked.model,
        }
        given = {word: value for word, value in words.items() if value is not None}
        select = f"""
            SELECT frontend, service, key, model, {_SUMS} FROM hourly JOIN series ON series.id = hourly.series
            WHERE {" AND ".join(given)} GROUP BY series ORDER BY sum(tokens_in) + sum(tokens_out) DESC, 3, 4, 2, 1
        """
        return [(UsageKey(*row[:4]), Usage(*row[4:])) for row in self._ask(select, *given.values())]

    def tokens_since(self, service: str, unix_s: float) -> Mapping[str, int]:
        """The tokens, in and out, that each key has used at a service's own frontend, or a shared address's, since the
        hour of a time. Raises StateError.
        """
        select = """
            SELECT key, sum(tokens_in) + sum(tokens_out) FROM hourly JOIN series ON series.id = hourly.series
            WHERE hour >= ? AND frontend = ? GROUP BY key
        """
        return dict(self._ask(select, int(unix_s // HOUR_S), service))

    def close(self) -> None:
        """Ends its use of the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _ask(self, select: str, *values: object) -> list[Any]:
        if not self._path.exists():
            return []
        with _as_state_error(self):
            return self._opened().execute(select, values).fetchall()

    def _opened(self) -> sqlite3.Connection:
        if self._database is not None and not self._path.exists():
            self.close()  # Somebody has removed it.
        if self._database is None:
            database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                self._path.chmod(0o600)
                for line in ("journal_mode = WAL", "synchronous = FULL", "journal_size_limit = 16777216"):
                    database.execute(f"PRAGMA {line}")
                database.executescript(_TABLES)
                self._read(database)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _read(self, database: sqlite3.Connection) -> None:
        self._series = _series_in(database)
        seen: dict[str, bytearray] = {}
        for epoch, row, numbers in database.execute("SELECT epoch, row, numbers FROM seen"):
            whole = seen.setdefault(epoch, bytearray())
            at = row * len(numbers)
            whole.extend(bytes(max(0, at + len(numbers) - len(whole))))
            whole[at : at + len(numbers)] = numbers
        self._seen = {epoch: bytes(numbers) for epoch, numbers in seen.items()}
        self._told = self._seen | self._told

    def _take_in(self, database: sqlite3.Connection, counted: Sequence[Counted]) -> None:
        now = self._now()
        hour = int(now // HOUR_S)
        gone = self._seen.keys() - {it.epoch for it in counted}
        fresh: dict[UsageKey, int] = {}
        database.execute("BEGIN IMMEDIATE")
        try:
            for each in counted:
                before = self._seen.get(each.epoch, b"")
                for row, usage in _changes(each, before):
                    key = each.keys[row]
                    if (series := self._series.get(key) or fresh.get(key)) is None:
                        added = database.execute(
                            "INSERT INTO series (frontend, service, key, model) VALUES (?, ?, ?, ?)", key
                        )
                        series = fresh[key] = added.lastrowid or 0
                    database.execute(_ADD, (hour, series, *usage))
                    database.execute("REPLACE INTO seen VALUES (?, ?, ?)", (each.epoch, row, each.row(row)))
            database.executemany("DELETE FROM seen WHERE epoch = ?", [(epoch,) for epoch in gone])
            if tidies := self._tidied is None or not 0 <= now - self._tidied < HOUR_S:
                self._tidy(database, hour)
            database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise
        self._series |= fresh
        self._seen = {it.epoch: it.numbers for it in counted}
        if tidies:
            self._tidied = now
            self._series = _series_in(database)

    def _tidy(self, database: sqlite3.Connection, hour: int) -> None:
        """Old hours become days, and days that are too old go."""
        first = (hour // 24 - HOURLY_DAYS) * 24
        database.execute(_ROLL, (first,))
        database.execute("DELETE FROM hourly WHERE hour < ? AND hour % 24 != 0", (first,))
        database.execute("DELETE FROM hourly WHERE hour < ?", ((hour // 24 - self._keep_days) * 24,))
        database.execute("DELETE FROM series WHERE id NOT IN (SELECT series FROM hourly)")

    def let_go(self, *, is_damaged: bool, why: str) -> str:
        """The file is opened anew the next time, if damaged after it was put aside; what is amiss. Raises OSError."""
        self.close()
        if is_damaged:
            self._put_aside()
        return f"cannot write {self._path}: {why}"

    def _put_aside(self) -> None:
        self._seen, self._series = {}, {}
        aside = self._path.with_name(f"{self._path.name}.damaged-{int(self._now())}")
        for ending in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + ending).rename(aside.with_name(aside.name + ending))
        self.aside = aside


def _series_in(database: sqlite3.Connection) -> dict[UsageKey, int]:
    names = database.execute("SELECT frontend, service, key, model, id FROM series")
    return {UsageKey(*row[:4]): row[4] for row in names}


class _as_state_error:  # noqa: N801 - reads as contextlib.suppress does
    """What SQLite says, as one error of ours; a damaged file is put aside first."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            is_damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
            raise StateError(self._store.let_go(is_damaged=is_damaged, why=str(error))) from error


def _changes(counted: Counted, before: bytes) -> Iterator[tuple[int, Usage]]:
    """The rows of a file that have changed since it said `before`, and by what."""
    if counted.numbers == before:
        return
    for number in range(len(counted.keys)):
        row = counted.row(number)
        old = before[number * len(row) : (number + 1) * len(row)]
        if row != old:
            usage = usage_in(row).since(usage_in(old) if old else NONE)
            if usage != NONE:
                yield number, usage
