"""What this gateway remembers of the store, on disk: the last snapshot that it believed, and who it is itself.

A hint like every record, with one difference: without it a store that came back empty cannot be told from a new one.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway_sidecar.control.state.writer import Record, RecordWriter
from gateway_sidecar.domain.store_memory import Entry, Memory, Snapshot
from gateway_sidecar.errors import StateError
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems


class RememberedStore:
    """The memory, and the record of it. `instance` tells this gateway from another of its name."""

    def __init__(self, path: Path, problems: Problems, metrics: Metrics) -> None:
        record = Record("shared", path, self._content)
        self._writer = RecordWriter(record, problems.of(record.name), metrics)
        self.memory = Memory()
        self.instance = secrets.token_hex(8)
        self.run = self._writer.run

    async def load(self, expected: int) -> None:
        """Takes up what an earlier daemon remembered. `expected`: how many replicas it had of a store."""
        try:
            content = await self._writer.record.read()
            self.instance = str(content.get("instance") or self.instance)
            self.memory = memory_from(content)
        except StateError as error:
            get_logger().warning("state.ignored", reason=str(error))
        if self.memory.known is None and expected:
            self.memory = Memory(expects=expected)

    def remember(self, memory: Memory) -> None:
        """From now on this; written down soon."""
        self.memory = memory
        self._writer.touch()

    def note(self, memory: Memory) -> None:
        """The same, of which only revisions are new: written down at the next occasion."""
        self.memory = memory

    def begin_instance(self) -> None:
        """From now on this is another gateway than before; written down soon."""
        self.instance = secrets.token_hex(8)
        self._writer.touch()

    async def flush(self) -> None:
        """It has been written down, or could not be: `status` says that."""
        await self._writer.flush()

    def _content(self) -> Mapping[str, object]:
        known = self.memory.known
        return {
            "instance": self.instance,
            "distrust": self.memory.distrust,
            "expects": self.memory.expects,
            "cluster": known.cluster if known else None,
            "revision": known.revision if known else 0,
            "entries": {key: [it.value, it.revision] for key, it in known.entries.items()} if known else {},
        }


def record_in(state_dir: Path) -> Path:
    """Where it is written down."""
    return state_dir / "fleet.json"


def memory_from(content: Mapping[str, Any]) -> Memory:
    """Raises StateError."""
    try:
        cluster = content.get("cluster")
        entries = {str(key): Entry(str(it[0]), int(it[1])) for key, it in content.get("entries", {}).items()}
        known = None if cluster is None else Snapshot(str(cluster), int(content.get("revision", 0)), entries)
        return Memory(known, int(content.get("expects", 0)), str(content.get("distrust", "")))
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise StateError(f"the record of the store has an unknown form: {error}") from error
