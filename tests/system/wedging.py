"""The daemon with a fault that SIGUSR1 throws: `WEDGE=loop python -m tests.system.wedging run --config FILE`.

`WEDGE` is loop, look or reconcile, or notes, keys or record, which hang while a file says so. What is shipped has no
such switch: parts are replaced here by ones that can hang.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from gateway_sidecar import app, cli
from gateway_sidecar.config import Settings, load_overrides
from gateway_sidecar.control import service
from gateway_sidecar.control.state import records
from gateway_sidecar.control.state.records import write_record
from gateway_sidecar.control.workqueue import K, WorkQueue
from gateway_sidecar.domain.model import Overrides
from gateway_sidecar.frontend import files as frontend_files
from gateway_sidecar.frontend.keys import read_content
from gateway_sidecar.sources import socket_pattern
from gateway_sidecar.sources.listing import Listing
from gateway_sidecar.sources.socket_pattern import SocketPattern

_FOR_EVER_S = 3600.0
_thrown = asyncio.Event()


class WedgingPattern(SocketPattern):
    """A source whose look, once the fault is thrown, does not even return with its own patience."""

    async def look(self) -> Listing:
        if os.environ["WEDGE"] == "look" and _thrown.is_set():
            await asyncio.sleep(_FOR_EVER_S)
        return await super().look()


class WedgingQueue(WorkQueue[K]):
    """A queue from which, once the fault is thrown, nobody comes back."""

    async def get(self, most_s: float) -> K | None:
        if os.environ["WEDGE"] == "reconcile" and _thrown.is_set():
            await asyncio.sleep(_FOR_EVER_S)
        return await super().get(most_s)


def _hanging_notes(path: Path, socket_owner: int) -> Overrides:
    """Notes on a disk that hangs until the fault is taken back."""
    while os.environ["WEDGE"] == "notes" and path.name == "hung.yaml" and not path.with_suffix(".well").exists():
        time.sleep(0.05)
    return load_overrides(path, socket_owner)


def _hanging_keys(path: Path) -> bytes:
    """A file of keys on such a disk."""
    while os.environ["WEDGE"] == "keys" and path.name == "hung.keys" and not path.with_suffix(".well").exists():
        time.sleep(0.05)
    return read_content(path)


def _hanging_record(path: Path, content: Mapping[str, object]) -> None:
    """A record on such a disk."""
    while os.environ["WEDGE"] == "record" and path.with_suffix(".hung").exists():
        time.sleep(0.05)
    write_record(path, content)


def _throw() -> None:
    _thrown.set()
    if os.environ["WEDGE"] == "loop":
        time.sleep(_FOR_EVER_S)


def main() -> None:
    """Runs the command line with these parts in place."""
    run = app.run_daemon

    async def run_daemon(config_path: Path, settings: Settings) -> bool:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _throw)
        return await run(config_path, settings)

    vars(app).update(run_daemon=run_daemon, load_overrides=_hanging_notes)
    vars(records).update(write_record=_hanging_record)
    vars(frontend_files).update(read_content=_hanging_keys)
    vars(socket_pattern).update(SocketPattern=WedgingPattern)
    vars(service).update(WorkQueue=WedgingQueue)
    cli.main()


if __name__ == "__main__":
    main()
