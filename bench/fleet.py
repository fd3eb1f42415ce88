"""Replicas of both kinds for a benchmark that needs a fleet and nothing special of it."""

from __future__ import annotations

from bench.chat import MODEL
from bench.engines import EngineHost, EngineKind, settings
from bench.gateway import Ours

_KINDS = (EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC)


async def start_fleet(engines: EngineHost, ours: Ours, replicas: int, *, token_interval_s: float) -> list[str]:
    """Starts so many engines, HTTP and gRPC in turn, and returns their replicas' names when all of them serve.

    Raises TimeoutError.
    """
    names = [f"r{number}" for number in range(replicas)]
    kinds = [_KINDS[number % len(_KINDS)] for number in range(replicas)]
    fleet = [
        settings(ours.socket(name), kind, name=name, model=MODEL, token_interval_s=token_interval_s)
        for name, kind in zip(names, kinds, strict=True)
    ]
    await engines.start(*fleet)
    await ours.until_serving(*names)
    return names
