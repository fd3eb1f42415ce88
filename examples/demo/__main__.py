"""`python -m examples.demo`, which is `make run`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress

import aiohttp

from examples.demo.engines import Engines
from examples.demo.fleet import FleetShow
from examples.demo.gateway import DemoFailed, Gateway
from examples.demo.show import Show, what_next
from examples.demo.vllm_show import VllmShow
from examples.demo.watch import Watch
from gateway_sidecar.kinds import ROUTERS

EXIT_FAILED = 1
_FLEETS = range(2, 6)
_ENGINES = ("simulated", "mlx", "vllm")
_ABOUT = {"simulated": "; the engines are simulated", "mlx": "", "vllm": ", and vLLM on this CPU"}


def main() -> int:
    """Runs the demo; 0 if all went as it should, 1 if not, 130 for Ctrl-C before the end of the show."""
    engine = os.environ.get("ENGINE") or "simulated"
    if engine not in _ENGINES:
        print(f"ENGINE={engine} is not one of {', '.join(_ENGINES)}", file=sys.stderr)
        return 2
    router = os.environ.get("ROUTER") or "smg"
    if router not in ROUTERS.by_name:
        print(f"ROUTER={router} is not one of {', '.join(ROUTERS.by_name)}", file=sys.stderr)
        return 2
    if engine == "vllm" and router != "smg":
        print(
            f"ENGINE=vllm shows what SMG does with its names, adapters and pairs; ROUTER={router} is not SMG",
            file=sys.stderr,
        )
        return 2
    fleet = os.environ.get("FLEET") or ""
    if fleet and (not fleet.isdecimal() or int(fleet) not in _FLEETS):
        print(f"FLEET={fleet} is not a number of gateways from {_FLEETS[0]} to {_FLEETS[-1]}", file=sys.stderr)
        return 2
    if fleet and (engine, router) != ("simulated", "smg"):
        print(
            "FLEET shows several gateways with simulated engines and SMG; leave ENGINE and ROUTER out", file=sys.stderr
        )
        return 2
    once = engine == "vllm" or os.environ.get("DEMO") == "once" or not (sys.stdin.isatty() and sys.stdout.isatty())
    return asyncio.run(_demo(_fleet(int(fleet), once=once) if fleet else _one(engine, router, once=once)))


async def _demo(performance: Coroutine[None, None, int]) -> int:
    """One performance, which a signal ends."""
    told_to_end = asyncio.Event()
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(sig, told_to_end.set)
    performing = asyncio.create_task(performance)
    ending = asyncio.create_task(told_to_end.wait())
    await asyncio.wait({performing, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if not performing.done():
        print("\nending all that was started", flush=True)
        performing.cancel()
    with suppress(asyncio.CancelledError):
        return await performing
    return 128 + signal.SIGINT


async def _fleet(gateways: int, *, once: bool) -> int:
    """Several gateways."""
    try:
        show = FleetShow(gateways)
    except DemoFailed as failed:
        print(f"demo: FAILED: {failed}", file=sys.stderr)
        return EXIT_FAILED
    print(f"gateway-sidecar: {gateways} real gateways, etcd and HAProxy; the engines are simulated")
    print(f"everything is in {show.directory} and goes away with the demo", flush=True)
    keep = False
    try:
        await show.run()
        print("\ndemo: done, all went as it should.", flush=True)
        if not once:
            print(show.what_next(), flush=True)
            with suppress(asyncio.CancelledError):  # Ctrl-C: that is how it ends
                await asyncio.Event().wait()
    except Exception as error:  # noqa: BLE001 - whatever it is: say it, show the logs, and clean up
        print(f"\ndemo: FAILED: {_what(error)}\n{show.last_words()}", file=sys.stderr)
        keep = True
        return EXIT_FAILED
    finally:
        await show.close()
        if keep:
            print(f"its files are kept in {show.directory}", file=sys.stderr)
        else:
            show.remove()
    return 0


def _what(error: Exception) -> str:
    return str(error) if isinstance(error, DemoFailed) else repr(error)


async def _one(engine: str, router: str, *, once: bool) -> int:
    """One gateway."""
    try:
        gateway = Gateway(router)
    except DemoFailed as failed:
        print(f"demo: FAILED: {failed}", file=sys.stderr)
        return EXIT_FAILED
    print(f"gateway-sidecar: the real daemon, nginx and SMG{_ABOUT[engine]}")
    print(f"everything is in {gateway.directory} and goes away with the demo", flush=True)
    engines, watch = Engines(gateway), Watch(gateway)
    watching = asyncio.create_task(watch.run())
    keep = False
    try:
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            show = VllmShow if engine == "vllm" else Show
            await show(gateway, engines, watch, session).run(engine)
        if once:
            goes_on = "" if engine == "vllm" else " `make run` on a terminal goes on, and says what to try."
            print(f"\ndemo: done, all went as it should.{goes_on}")
            return 0
        await _stay(gateway, engines, watch)
    except Exception as error:  # noqa: BLE001 - whatever it is: say it, show the log, and clean up
        print(f"\ndemo: FAILED: {_what(error)}\nthe daemon's last words:\n{gateway.last_words()}", file=sys.stderr)
        keep = True
        return EXIT_FAILED
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await engines.close()
        await gateway.stop()
        if keep:
            print(f"its files are kept in {gateway.directory}", file=sys.stderr)
        else:
            gateway.remove()
    return 0


async def _stay(gateway: Gateway, engines: Engines, watch: Watch) -> None:
    """Goes on until Ctrl-C, showing what happens."""
    await engines.open_control()
    print(what_next(gateway, engines))
    print("\nRunning. Changes are shown here as they happen; Ctrl-C ends it all.\n", flush=True)
    watch.restart_clock()
    with suppress(asyncio.CancelledError):  # Ctrl-C: that is how it ends
        await watch.until_failed()


if __name__ == "__main__":
    sys.exit(main())
