"""Figure: one unchanged replica while 50 neighbours come and go: same port, same worker id.

Its row of the status and SMG's own row for it are compared before the first neighbour comes and after the last has
gone, and after each of the waves in between: 10 neighbours come into view, serve, and have their sockets unlinked.
Floor: a bare SMG whose other workers come and go changes nothing about one that stays, so the bar is the floor.
"""

from __future__ import annotations

from bench.engines import EngineHost, EngineKind
from bench.gateway import Ours, replicas_of, running_gateway
from bench.place import scratch_directory
from bench.report import Row, Scale
from bench.staged import hide, show, stage

NAME = "neighbours"
_NEIGHBOURS = 50
_WAVE = 10
_STAYS = "stays"


async def _identity(ours: Ours) -> tuple[str, str, str]:
    """Bridge and worker id as the daemon says, and the status that SMG gives that worker."""
    row = replicas_of(await ours.gateway.status())[_STAYS]
    return row["bridge"], row["worker_id"], str(await ours.workers.status(row["worker_id"]))


async def _until_serving(ours: Ours, replicas: set[str]) -> None:
    """Returns when just these serve; others may still be draining."""
    await ours.until(lambda rows: {name for name, row in rows.items() if row["state"] == "serving"} == replicas)


async def run(_scale: Scale) -> list[Row]:
    """Always 50 neighbours."""
    kinds = [EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC] * (_WAVE // 2)
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway(settle_s=0) as ours:
            stays, *others = await stage(engines, directory / "staged", [EngineKind.SGLANG_HTTP, *kinds])
            show([stays], [ours.socket(_STAYS)])
            await ours.until_serving(_STAYS)
            seen = [await _identity(ours)]
            for first in range(0, _NEIGHBOURS, _WAVE):
                names = [f"n{first + number}" for number in range(_WAVE)]
                show(others, map(ours.socket, names))
                await _until_serving(ours, {_STAYS, *names})
                seen.append(await _identity(ours))
                hide(map(ours.socket, names))
                await _until_serving(ours, {_STAYS})
                seen.append(await _identity(ours))
            await ours.until_serving(_STAYS)
            seen.append(await _identity(ours))
    same = set(seen) == {(*seen[0][:2], "ready")}
    return [
        Row(
            NAME,
            f"{_NEIGHBOURS} neighbours, HTTP and gRPC",
            "same port, same id",
            "same",
            "same" if same else f"{len(set(seen))} identities",
            "same" if same else "changed",
            same,
            {"seen": [list(one) for one in dict.fromkeys(seen)]},
        )
    ]
