"""Run simulated engines: `python -m examples.simulated --help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from examples.simulated.control import serve_control
from examples.simulated.engine import SimulatedEngine
from examples.simulated.fleet import Fleet, expanded
from examples.simulated.options import Behaviour, EngineKind, EngineSpec, Lie, settings_from_text

EPILOG = f"""
kinds: {", ".join(EngineKind)}
lies:  {", ".join(Lie)}

One line of JSON goes to standard output for each engine started, and {{"event": "ready"}} after the last.
SIGTERM and SIGINT stop all engines gracefully.

  python -m examples.simulated --kind sglang-http --socket r1.sock --load-s 3
  python -m examples.simulated --engine kind=vllm-grpc,socket=p.sock,role=prefill \\
                               --engine kind=vllm-grpc,socket=d.sock,role=decode
  python -m examples.simulated --engine 'kind=sglang-http,socket=run/r{{n}}.sock,count=200' --control sim.sock
"""


def main() -> int:
    """Run until told to stop; 0 then, 2 if an engine cannot be started."""
    parser = _parser()
    options = vars(parser.parse_args())
    control: Path | None = options.pop("control")
    texts: list[str] = options.pop("engine")
    common = {name: value for name, value in options.items() if value is not None}
    try:
        wanted = [common | settings_from_text(text) for text in texts]
        if "socket" in common:
            wanted.append(common)
        if not wanted and control is None:
            raise ValueError("nothing to do: give --engine, --socket or --control")
        engines = [each for settings in wanted for each in expanded(settings)]
        asyncio.run(_run(engines, control))
    except (ValueError, OSError) as problem:
        print(f"cannot start: {problem}", file=sys.stderr)
        return 2
    return 0


async def _run(engines: list[dict[str, object]], control: Path | None) -> None:
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    fleet = Fleet()
    runner = None if control is None else await serve_control(fleet, control)
    try:
        for settings in engines:
            _announce(await fleet.start(settings))
        print(json.dumps({"event": "ready"}), flush=True)
        await told_to_stop.wait()
    finally:
        await fleet.stop_all()
        if runner is not None and control is not None:
            await runner.cleanup()
            control.unlink(missing_ok=True)


def _announce(engine: SimulatedEngine) -> None:
    spec = engine.spec
    started = {"event": "started", "name": spec.name, "kind": spec.kind, "socket": str(spec.socket)}
    print(json.dumps(started), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.simulated",
        description="Simulated inference engines on Unix sockets.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="start an engine; may be repeated; the options below are its defaults; `count` makes many of it",
    )
    parser.add_argument("--control", type=Path, metavar="PATH", help="serve the control API on a Unix socket")
    for title, described in (("the engine", EngineSpec), ("its behaviour", Behaviour)):
        group = parser.add_argument_group(title)
        for each in fields(described):
            _add_option(group, each)
    return parser


def _add_option(group: Any, described: Field[Any]) -> None:
    flag = f"--{described.name.replace('_', '-')}"
    if described.type in ("bool", "bool | None"):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
    else:
        default = "" if described.default in (MISSING, None, "") else f"default {described.default}"
        group.add_argument(flag, default=None, metavar="VALUE", help=default)


if __name__ == "__main__":
    sys.exit(main())
