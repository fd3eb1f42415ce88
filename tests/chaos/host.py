"""A process with simulated engines in it: `python -m tests.chaos.host CONTROL JOURNAL`.

It is driven by the simulated engines' own control API. Every chat that an engine begins or ends becomes a line of the
journal, with the monotonic instant and the number that its prompt carries, so that afterwards nobody has to guess who
answered what.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from examples.byte_tokenizer import byte_tokenizer
from examples.simulated.control import serve_control
from examples.simulated.engine import SimulatedEngine
from examples.simulated.fleet import Fleet
from examples.simulated.ledger import RecordedRequest

_NUMBER = re.compile(r"\[q(\d+)\]")
_TOKENIZER = byte_tokenizer()


class JournalledFleet(Fleet):
    """Writes down what its engines are asked, at once: a killed process has told all that it knew."""

    def __init__(self, journal: Path) -> None:
        super().__init__()
        self._journal = journal.open("a", buffering=1)

    async def start(self, settings: Mapping[str, object]) -> SimulatedEngine:
        """Starts an engine; see `Fleet`."""
        engine = await super().start(settings)
        engine.ledger.on_inference = lambda request, what: self._write(engine.spec.name, request, what)
        return engine

    def _write(self, engine: str, request: RecordedRequest, what: str) -> None:
        number = number_of(request)
        if number is not None:
            line = {"engine": engine, "request": number, "what": what, "at": time.monotonic()}
            self._journal.write(json.dumps(line) + "\n")


def number_of(request: RecordedRequest) -> int | None:
    """The number in a request's prompt; None for requests that are not the load's."""
    if isinstance(request.content, dict):
        text = json.dumps(request.content.get("messages"))
    else:
        text = _TOKENIZER.decode(list(request.content.tokenized.input_ids))  # type: ignore[attr-defined]
    found = _NUMBER.search(text)
    return None if found is None else int(found[1])


async def _run(control: Path, journal: Path) -> None:
    told_to_stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_stop.set)
    fleet = JournalledFleet(journal)
    control.unlink(missing_ok=True)
    runner = await serve_control(fleet, control)
    await told_to_stop.wait()
    for engine in list(fleet):
        await engine.kill()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_run(Path(sys.argv[1]), Path(sys.argv[2])))
