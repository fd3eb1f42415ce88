"""What real vLLM engines answered (0.32.0 on a CPU, `make run ENGINE=vllm`), and what is made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway_sidecar.domain.model import Access, ConnectionMode, EngineFacts, Ready, WorkerType
from gateway_sidecar.engines import http_probe
from gateway_sidecar.engines.engine_metrics import EngineMetrics
from gateway_sidecar.engines.probe import EngineProbe
from gateway_sidecar.engines.progress import read_progress
from tests.contract import engine_replay as replay
from tests.contract.engine_replay import GrpcReplay, HttpReplay, message

TIMEOUT_S = 60.0
"""Generous: the machine may be busy. No test here waits for it to pass."""

PLAIN = Access()
HTTP = EngineFacts("vllm", ConnectionMode.HTTP, model="alpha", version="0.32.0")
GRPC = EngineFacts("vllm", ConnectionMode.GRPC, model="alpha")


def decoding(facts: EngineFacts) -> EngineFacts:
    return replace(facts, worker_type=WorkerType.DECODE, kv_connector="NixlConnector", kv_role="kv_consumer")


def decode_http() -> HttpReplay:
    """A decode engine in development mode."""
    return HttpReplay.of("vllm-http-decode")


def decode_grpc() -> GrpcReplay:
    """A decode engine over gRPC."""
    return GrpcReplay.of("vllm-grpc-decode", replay.VLLM)


@pytest.fixture(autouse=True)
def _metrics_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_probe, "_METRICS_S", TIMEOUT_S)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r1.sock"


async def identified(path: Path) -> EngineFacts:
    found = await EngineProbe().identify(str(path), timeout_s=TIMEOUT_S)
    assert isinstance(found, Ready)
    return found.facts


async def test_each_name_and_each_adapter_is_found(path: Path) -> None:
    """`--served-model-name alpha beta --lora-modules sql=...`: the adapter is listed after both names."""
    async with HttpReplay.of("vllm-http-names").serve(path):
        facts = await identified(path)
    assert facts == HTTP
    assert facts.names == ("beta", "sql")
    assert facts.health == ("/health",)


async def test_a_decode_engine_says_in_development_mode_what_it_is(path: Path) -> None:
    """Connector, role and engine id are in `/server_info`, and only there."""
    async with decode_http().serve(path):
        facts = await identified(path)
        assert await EngineProbe().check_health(str(path), facts, timeout_s=TIMEOUT_S) == Ready(facts)
    assert replace(facts, kv_engine_id=None) == decoding(HTTP)
    assert facts.kv_engine_id
    assert facts.health == ("/is_sleeping", "/health")


async def test_its_connector_shows_in_its_metrics_outside_development_mode(path: Path) -> None:
    """Then it does not say its role, which its notes have to tell."""
    server = decode_http()
    server.answers["/server_info"] = server.answers["/is_sleeping"] = server.otherwise
    async with server.serve(path):
        assert await identified(path) == replace(HTTP, kv_connector="NixlConnector")


async def test_a_decode_engine_over_grpc_says_what_it_is(path: Path) -> None:
    """`kv_role` and the rest are fields of GetServerInfo."""
    async with decode_grpc().serve(path):
        facts = await identified(path)
    assert replace(facts, kv_engine_id=None) == decoding(GRPC)
    assert facts.kv_engine_id
    assert facts.instance


async def test_the_counters_that_prove_work_are_on_the_page(path: Path) -> None:
    """Without them an engine whose core hangs could not be told from one that is busy."""
    async with decode_http().serve(path):
        counters = await read_progress(str(path), HTTP, PLAIN, timeout_s=TIMEOUT_S)
        page = await EngineMetrics().page(str(path), HTTP, PLAIN, timeout_s=TIMEOUT_S)
    assert counters is not None
    assert len(counters) == 5
    reading = EngineMetrics().read(page, HTTP)
    assert reading.ttft
    assert reading.itl


async def test_the_counters_that_prove_work_are_in_get_loads(path: Path) -> None:
    """Requests that run, the tokens that they hold, and tokens a second."""
    async with decode_grpc().serve(path):
        assert await read_progress(str(path), GRPC, PLAIN, timeout_s=TIMEOUT_S) == (0.0, 0.0, 0.0)


async def test_a_stream_moves_the_counters_over_grpc_within_a_block(path: Path) -> None:
    """Tokens in use are counted in blocks, of 128 on a CPU: at 10 tokens a second they would stand still for 13 s."""
    server = decode_grpc()
    seen = []
    async with server.serve(path):
        for answer in replay.fixture("vllm-grpc-decode")["GetLoads while it streams"]:
            server.answers["GetLoads"] = message(replay.VLLM, "GetLoadsResponse", answer["json"])
            seen.append(await read_progress(str(path), GRPC, PLAIN, timeout_s=TIMEOUT_S))
    assert seen == [(1.0, 256.0, 71.0), (1.0, 256.0, 116.5)]
