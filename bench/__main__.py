"""Runs the figures, prints the table, writes the JSON. Exit codes: 0 all bars met, 1 some missed, 2 wrong usage."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from bench.report import Row, Scale, as_json, table

FIGURES = (
    "first-answer",
    "hundred-at-once",
    "unlinked",
    "scale-events",
    "bridge-cost",
    "no-router",
    "burst",
    "at-rest",
    "signals",
    "page",
    "neighbours",
    "frontend",
    "bounds",
    "many-models",
    "usage",
    "first-token",
    "waking",
    "daemon-restart",
    "router-kill",
    "router-kills-under-load",
    "router-hang",
    "router-replacement",
    "vllm-router",
    "sglang-router",
    "nginx-kill",
    "several-gateways",
    "mesh",
    "dead-engines",
    "tunnel-cost",
    "tunnel-path",
    "cli-start",
    "dynamo",
)
"""Each is the module of that name. It is imported when it is measured."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code."""
    options = _parser().parse_args(argv)
    began = time.monotonic()
    rows = asyncio.run(_run(options.only or FIGURES, Scale(quick=options.quick)))
    took_s = time.monotonic() - began
    print(table(rows))
    print(f"\n{took_s:.0f} s{', quick: fewer rounds than the bars ask for' if options.quick else ''}")
    if options.json is not None:
        options.json.write_text(as_json(rows, quick=options.quick, took_s=took_s) + "\n")
    return 0 if all(row.met or row.bar == "-" for row in rows) else 1


async def _run(names: Sequence[str], scale: Scale) -> list[Row]:
    rows: list[Row] = []
    for name in names:
        began = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            figure = importlib.import_module(f"bench.{name.replace('-', '_')}")
            rows += await figure.run(scale)
        except Exception as error:  # noqa: BLE001 - the other figures are still worth having
            traceback.print_exc()
            rows.append(Row.not_measured(name, f"failed: {error!r:.100}"))
        print(f"{time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures every figure of docs/figures.md against its floor, in the same run.",
    )
    parser.add_argument(
        "--only", nargs="+", action="extend", choices=FIGURES, metavar="NAME", help=f"of {', '.join(FIGURES)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about four minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
