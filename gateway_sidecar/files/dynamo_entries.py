"""Dynamo's discovery by files, as ai-dynamo 1.6 writes it. The daemon and Dynamo's own interpreter import this module:
it may import the standard library and `files.replace` alone.

A worker writes `v1/BUCKET/NAME` below its directory (DYN_FILE_KV), one file for each instance, model card, channel and
source of events, and touches them every three seconds. A frontend believes what was touched within ten.

The daemon gives each frontend a directory, which is made of the records of its workers:

    workers/ID.json   one worker: what it is, the directory that it writes its entries in (`source`), whether it leaves
    store/            the frontend's own DYN_FILE_KV: copies of all these entries
    copies.json       which of the files in there are copies
    shims/ID/         a shim's own DYN_FILE_KV and log
    alive             the frontend has a lock on it

`keep_up` makes the copies what the records ask for. The daemon calls it when it changes a record, and the frontend's
process every second, so that a daemon may die: copies stay fresh for as long as their originals are.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gateway_sidecar.files.replace import put_in_place, replace_file, write_beside

BUCKETS = ("instances", "event_channels", "event_sources", "mdc")
"""In the order in which they are copied: a model's card last, when all that it needs is there."""
FRESH_S = 10.0
"""Dynamo's own: `FileStore` drops what nobody touched for so long."""
_MOST_BYTES = 1024 * 1024  # A choice: a model's card names files, and holds none of them.
_MOST_FILES = 64
"""Of one worker in one bucket. A mocker has two instances and four channels for each data-parallel rank."""

Entry = dict[str, Any]


def store_of(directory: Path) -> Path:
    """Where the frontend of this directory looks for workers: its DYN_FILE_KV."""
    return directory / "store"


def shim_directory(directory: Path, worker_id: str) -> Path:
    """Where a shim keeps its entries and its log."""
    return directory / "shims" / worker_id


def record_path(directory: Path, worker_id: str) -> Path:
    """Where a worker is written down."""
    return directory / "workers" / f"{worker_id}.json"


def alive_path(directory: Path) -> Path:
    """What the frontend has a lock on while it lives."""
    return directory / "alive"


def records(directory: Path) -> dict[str, Entry]:
    """Worker id -> its record. Raises OSError. Blocks."""
    found = {}
    try:
        paths = sorted((directory / "workers").iterdir())
    except FileNotFoundError:
        return {}
    for path in paths:
        if path.suffix == ".json":
            record = _read_json(path)
            if record is not None:
                found[path.stem] = record
    return found


def forget(directory: Path, worker_id: str) -> None:
    """Takes a worker's record away. Raises OSError. Blocks."""
    record_path(directory, worker_id).unlink(missing_ok=True)


def write_record(directory: Path, worker_id: str, record: Entry) -> None:
    """Writes a worker down. Raises OSError. Blocks."""
    path = record_path(directory, worker_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(record))


def now_of_files() -> float:
    """What time it is where files are touched, in seconds of the wall clock. Raises OSError."""
    clock = os.memfd_create("clock", os.MFD_CLOEXEC)
    try:
        return os.fstat(clock).st_mtime
    finally:
        os.close(clock)


def fresh_entries(source: Path, now: float, buckets: Iterable[str] = BUCKETS) -> Iterator[tuple[str, str, Entry]]:
    """What a worker says of itself: (bucket, name, entry), without what it stopped touching. Blocks."""
    for bucket in buckets:
        try:
            names = sorted(os.listdir(source / "v1" / bucket))[:_MOST_FILES]
        except OSError:
            continue
        for name in names:
            entry = _read_json(source / "v1" / bucket / name, not_before=now - FRESH_S)
            if entry is not None:
                yield bucket, name, entry


def instances(source: Path, now: float) -> frozenset[int]:
    """The ids of the instances that a worker announces now. Blocks."""
    rows = (entry for _, _, entry in fresh_entries(source, now, ("instances",)))
    return frozenset(row["instance_id"] for row in rows if isinstance(row.get("instance_id"), int))


def rewritten(entry: Any, address: str) -> Any:
    """The same with every address of its request plane (`HOST:PORT/PATH`) replaced by this HOST:PORT."""
    if isinstance(entry, list):
        return [rewritten(each, address) for each in entry]
    if not isinstance(entry, dict):
        return entry
    return {
        key: f"{address}/{value.partition('/')[2]}"
        if key == "tcp" and isinstance(value, str)
        else rewritten(value, address)
        for key, value in entry.items()
    }


def keep_up(directory: Path) -> None:
    """Makes the copies what the records ask for, and touches those of fresh originals. Raises OSError. Blocks."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        now = now_of_files()
        manifest = directory / "copies.json"
        before: Entry = _read_json(manifest) or {}
        wanted: dict[str, str] = {}
        for record in (it for it in records(directory).values() if not it["leaves"]):
            for bucket, name, entry in fresh_entries(Path(record["source"]), now):
                try:
                    copy = rewritten(entry, record["address"]) if record["address"] else entry
                    text = json.dumps(copy, separators=(",", ":"))
                except RecursionError:
                    continue
                wanted.setdefault(f"v1/{bucket}/{name}", text)
        if wanted != before:
            replace_file(
                manifest, json.dumps(before | wanted)
            )  # Before they are there: whoever dies in between leaves none behind.
        for name in before.keys() - wanted.keys():
            (store_of(directory) / name).unlink(missing_ok=True)
        for name, text in wanted.items():
            _put(store_of(directory) / name, text, is_new=before.get(name) != text)
        if wanted != before:
            replace_file(manifest, json.dumps(wanted))


def _put(path: Path, text: str, *, is_new: bool) -> None:
    if not is_new:
        try:
            os.utime(path)
        except FileNotFoundError:
            pass
        else:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written elsewhere: whatever is in that directory the frontend takes for an entry.
    put_in_place(write_beside(path.parents[3] / "copy", text), path)


def _read_json(path: Path, *, not_before: float = 0.0) -> Entry | None:
    """An object in a plain file of moderate size that was touched since then; None for anything else."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_mtime < not_before or about.st_size > _MOST_BYTES:
            return None
        try:
            value = json.loads(file.read(_MOST_BYTES))
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None
