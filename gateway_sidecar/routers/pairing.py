"""Whether the workers of a service can answer at all: prefill and decode only do so together.

What SMG 1.13, vllm-router 0.1.17 and sglang-router 0.3.2 do, as measured: a model with a regular worker is always
answered, whatever else there is; prefill and decode pair if they speak the same protocol, HTTP or gRPC, and over gRPC
are the same engine; a model with no pair and no regular worker gets 503.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerType


@dataclass(frozen=True, slots=True)
class _Kind:
    """What two workers must share to be a pair."""

    mode: ConnectionMode
    runtime: str | None


def unanswered(workers: Iterable[Registered]) -> dict[str, str]:
    """Model -> why its requests cannot be answered, for each model that has workers and not those that it takes."""
    by_model: dict[str, list[Registered]] = {}
    for worker in workers:
        if worker.worker_type is not WorkerType.ENCODE:
            by_model.setdefault(worker.model_id or "-", []).append(worker)
    return {model: reason for model, those in by_model.items() if (reason := _lacks(those)) is not None}


def _lacks(workers: list[Registered]) -> str | None:
    count = Counter(worker.worker_type for worker in workers)
    if count[WorkerType.REGULAR]:
        return None
    prefill, decode = ({_kind(w) for w in workers if w.worker_type is part} for part in _PAIR)
    if prefill & decode:
        return None
    for part, other in (_PAIR, _PAIR[::-1]):
        if not count[other]:
            return f"{_many(count[part], part)} and no {other.value} worker"
    shown = " and ".join(
        f"{part.value} over {_named(kinds)}" for part, kinds in zip(_PAIR, (prefill, decode), strict=True)
    )
    return f"{shown} do not pair"


_PAIR = (WorkerType.PREFILL, WorkerType.DECODE)


def _kind(worker: Registered) -> _Kind:
    over_grpc = worker.connection_mode is ConnectionMode.GRPC
    return _Kind(worker.connection_mode, worker.runtime_type if over_grpc else None)


def _named(kinds: Iterable[_Kind]) -> str:
    return ", ".join(sorted(_shown(k) for k in kinds))


def _shown(kind: _Kind) -> str:
    return f"gRPC ({kind.runtime or 'other'})" if kind.mode is ConnectionMode.GRPC else "HTTP"


def _many(count: int, part: WorkerType) -> str:
    return f"{count} {part.value} worker{'s' * (count != 1)}"
