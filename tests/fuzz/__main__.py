"""`python -m tests.fuzz`: random input at every edge, for minutes. A fault names its edge and number, or its seed.

The edges of `frame.py` are played against parts of the daemon in this process, trial by trial. Those of nginx and of
the daemon's own listeners need the real thing, which is attacked for as long as it is the edge's turn.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import traceback
from collections.abc import Awaitable, Callable

from tests.fuzz import client_headers, listeners
from tests.fuzz.frame import edges, run

REAL: dict[str, Callable[[int, float], Awaitable[None]]] = {
    "client_headers": client_headers.run,
    "listeners": listeners.run,
}


def main() -> int:
    """The exit code: 1 if anything was held up, filled or forged."""
    known = edges()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all edges together")
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument(
        "--edge", action="append", choices=sorted([*known, *REAL]), help="this one alone; more than once for more"
    )
    parser.add_argument("--only", type=int, metavar="N", help="one trial, by the number that a fault names")
    arguments = parser.parse_args()
    print(f"--seed {arguments.seed}", flush=True)
    names = arguments.edge or sorted([*known, *REAL])
    each_s = arguments.minutes * 60 / len(names)
    faults = 0
    if chosen := [known[name] for name in names if name in known]:
        report = run(chosen, arguments.seed, each_s * len(chosen), arguments.only)
        print(report.render(), flush=True)
        faults += len(report.faults)
    for name in names:
        if name in REAL:
            faults += not _attack(name, arguments.seed, each_s)
    return 1 if faults else 0


def _attack(name: str, seed: str, seconds: float) -> bool:
    try:
        asyncio.run(_awaited(REAL[name](int.from_bytes(seed.encode()), seconds)))
    except Exception:  # noqa: BLE001 - whatever it is, the next edge has its turn
        print(f"FAULT {name}: {traceback.format_exc()}", flush=True)
        return False
    print(f"{name}: {seconds:.0f} s, nothing found", flush=True)
    return True


async def _awaited(attack: Awaitable[None]) -> None:
    await attack


if __name__ == "__main__":
    sys.exit(main())
