"""The probe against servers that answer as the real engines did, over real Unix sockets."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from examples.simulated import Behaviour, EngineKind, EngineSpec, Role, SimulatedEngine
from gateway_sidecar.domain.model import (
    Access,
    ConnectionMode,
    EngineFacts,
    Foreign,
    Loading,
    ProbeResult,
    Ready,
    Unknown,
    WorkerType,
)
from gateway_sidecar.engines import http_probe
from gateway_sidecar.engines.probe import LARGEST_ANSWERS_BYTES, EngineProbe
from tests.contract import engine_replay as replay
from tests.contract.engine_replay import GrpcReplay, HttpReplay, message

SERVING, NOT_SERVING = 1, 2
TIMEOUT_S = 60.0
"""Generous: the machine may be busy. No test here waits for it to pass."""

SGLANG_HTTP = EngineFacts("sglang", ConnectionMode.HTTP, model="tiny-llama", version="0.5.23")
SGLANG_GRPC = replace(SGLANG_HTTP, connection_mode=ConnectionMode.GRPC)
VLLM_HTTP = EngineFacts("vllm", ConnectionMode.HTTP, model="tiny-llama", version="0.32.0")
VLLM_GRPC = EngineFacts("vllm", ConnectionMode.GRPC, model="tiny-llama")
MLX_GRPC = EngineFacts("mlx", ConnectionMode.GRPC, model="tiny-llama")
MLX_LM = EngineFacts("external", ConnectionMode.HTTP, model="tiny-llama")
TRTLLM_GRPC = EngineFacts("trtllm", ConnectionMode.GRPC, model="m", version="1.2.0")


@pytest.fixture
def probe() -> EngineProbe:
    return EngineProbe()


@pytest.fixture(autouse=True)
def _metrics_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_probe, "_METRICS_S", TIMEOUT_S)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r1.sock"


def trtllm_grpc() -> GrpcReplay:
    """TensorRT-LLM after its source: reflection, no grpc.health.v1, a health check of its own."""
    answers: dict[str, Any] = {
        "GetServerInfo": message(replay.TRTLLM, "GetServerInfoResponse", {"version": "1.2.0"}),
        "GetModelInfo": message(replay.TRTLLM, "GetModelInfoResponse", {"model_id": "m"}),
        "HealthCheck": message(replay.TRTLLM, "HealthCheckResponse", {"status": "OK"}),
    }
    return GrpcReplay(replay.TRTLLM, answers, health=None, listed=[replay.TRTLLM, replay.REFLECTION])


def tokenspeed_grpc(**server_args: object) -> GrpcReplay:
    """TokenSpeed after its source."""
    info = {"server_args": server_args, "tokenspeed_version": "0.1.0"}
    answers: dict[str, Any] = {
        "GetServerInfo": message(replay.TOKENSPEED, "GetServerInfoResponse", info),
        "GetModelInfo": message(replay.TOKENSPEED, "GetModelInfoResponse", {"served_model_name": "m"}),
    }
    return GrpcReplay(replay.TOKENSPEED, answers, listed=[replay.TOKENSPEED, replay.HEALTH])


def sglang_grpc(**server_args: object) -> GrpcReplay:
    """The recorded SGLang, with some arguments changed."""
    server = GrpcReplay.of("sglang-grpc", replay.SGLANG)
    info: Any = server.answers["GetServerInfo"]
    info.server_args.update(server_args)
    return server


def sglang_http(**server_info: object) -> HttpReplay:
    """The recorded SGLang, with some of `/server_info` changed."""
    server = HttpReplay.of("sglang-http")
    status, info = server.answers["/server_info"]
    server.answers["/server_info"] = (status, info | server_info)
    return server


def vllm_grpc(**server_info: object) -> GrpcReplay:
    """The recorded vLLM, with more of its server info filled in."""
    server = GrpcReplay.of("vllm-grpc", replay.VLLM)
    info = replay.fixture("vllm-grpc")["GetServerInfo"]["json"] | server_info
    server.answers["GetServerInfo"] = message(replay.VLLM, "GetServerInfoResponse", info)
    return server


def vllm_dev(kv_transfer_config: object) -> HttpReplay:
    """The recorded vLLM, in development mode."""
    server = HttpReplay.of("vllm-http")
    config = {"kv_transfer_config": kv_transfer_config, "parallel_config": {"data_parallel_size": 2}}
    server.answers["/server_info"] = (200, {"vllm_config": config, "vllm_env": {}})
    return server


def openai_http(owned_by: str | None, **more: tuple[int, object]) -> HttpReplay:
    """A server that lists one model and is healthy."""
    model = {"id": "m", "object": "model"} | ({"owned_by": owned_by} if owned_by else {})
    answers: dict[str, tuple[int, object]] = {
        "/v1/models": (200, {"object": "list", "data": [model]}),
        "/health": (200, ""),
    }
    return HttpReplay(answers | {f"/{name}": answer for name, answer in more.items()})


TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_producer", "engine_id": "e1"}

ENGINES: dict[str, tuple[HttpReplay | GrpcReplay, EngineFacts]] = {
    "SGLang HTTP": (sglang_http(), SGLANG_HTTP),
    "SGLang HTTP, prefill": (
        sglang_http(disaggregation_mode="prefill", dp_size=4),
        replace(SGLANG_HTTP, worker_type=WorkerType.PREFILL, bootstrap_port=8998, dp_size=4),
    ),
    "SGLang HTTP, decode": (
        sglang_http(disaggregation_mode="decode"),
        replace(SGLANG_HTTP, worker_type=WorkerType.DECODE),
    ),
    "SGLang gRPC": (sglang_grpc(), SGLANG_GRPC),
    "SGLang gRPC, prefill": (
        sglang_grpc(disaggregation_mode="prefill", disaggregation_bootstrap_port=9001),
        replace(SGLANG_GRPC, worker_type=WorkerType.PREFILL, bootstrap_port=9001),
    ),
    "SGLang gRPC, decode": (
        sglang_grpc(disaggregation_mode="decode"),
        replace(SGLANG_GRPC, worker_type=WorkerType.DECODE),
    ),
    "vLLM HTTP": (HttpReplay.of("vllm-http"), VLLM_HTTP),
    "vLLM HTTP, development mode": (vllm_dev(None), replace(VLLM_HTTP, dp_size=2)),
    "vLLM HTTP, development mode, prefill": (
        vllm_dev(TRANSFER),
        replace(
            VLLM_HTTP,
            worker_type=WorkerType.PREFILL,
            kv_connector="NixlConnector",
            kv_role="kv_producer",
            kv_engine_id="e1",
            dp_size=2,
        ),
    ),
    "vLLM gRPC": (vllm_grpc(), VLLM_GRPC),
    "vLLM gRPC, decode": (
        vllm_grpc(kv_connector="NixlConnector", kv_role="kv_consumer", kv_engine_id="e2", data_parallel_size=8),
        replace(
            VLLM_GRPC,
            worker_type=WorkerType.DECODE,
            kv_connector="NixlConnector",
            kv_role="kv_consumer",
            kv_engine_id="e2",
            dp_size=8,
        ),
    ),
    "vLLM gRPC, both": (
        vllm_grpc(kv_connector="LMCacheConnectorV1", kv_role="kv_both"),
        replace(VLLM_GRPC, kv_connector="LMCacheConnectorV1", kv_role="kv_both"),
    ),
    "MLX gRPC": (GrpcReplay.of("mlx-grpc", replay.MLX), MLX_GRPC),
    "mlx_lm.server": (HttpReplay.of("mlx_lm-http"), MLX_LM),
    "TensorRT-LLM HTTP": (
        openai_http("tensorrt_llm", version=(200, {"version": "1.2.0"})),
        replace(TRTLLM_GRPC, connection_mode=ConnectionMode.HTTP),
    ),
    "TensorRT-LLM gRPC": (trtllm_grpc(), TRTLLM_GRPC),
    "TokenSpeed gRPC": (
        tokenspeed_grpc(disaggregation_mode="null"),
        EngineFacts("tokenspeed", ConnectionMode.GRPC, model="m", version="0.1.0"),
    ),
    "TokenSpeed gRPC, encode": (
        replace(
            tokenspeed_grpc(disaggregation_mode="encode", disaggregation_bootstrap_port=8997),
            listed=[replay.TOKENSPEED_ENCODER, replay.HEALTH, replay.REFLECTION],
        ),
        EngineFacts(
            "tokenspeed",
            ConnectionMode.GRPC,
            WorkerType.ENCODE,
            model="m",
            version="0.1.0",
            bootstrap_port=8997,
        ),
    ),
    "SGLang behind Dynamo": (
        openai_http("nvidia"),
        EngineFacts("sglang", ConnectionMode.HTTP, model="m"),
    ),
    "another OpenAI-compatible server": (
        openai_http("library"),
        EngineFacts("external", ConnectionMode.HTTP, model="m"),
    ),
}


@pytest.mark.parametrize(("server", "facts"), ENGINES.values(), ids=ENGINES)
async def test_engine_is_known_for_what_it_is(
    probe: EngineProbe, path: Path, server: HttpReplay | GrpcReplay, facts: EngineFacts
) -> None:
    """Mixed fleets are normal: every engine, over either protocol, is identified from its own answers alone."""
    async with server.serve(path):
        assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Ready(facts)
        assert await probe.check_health(str(path), facts, timeout_s=TIMEOUT_S) == Ready(facts)


async def test_mlx_lm_without_a_model_cache_is_known_by_its_health(probe: EngineProbe, path: Path) -> None:
    """An empty answer to `/v1/models` with 200 is an engine only with mlx_lm.server's own words at /health."""
    server = HttpReplay.of("mlx_lm-http")
    server.answers["/v1/models"] = (200, "")
    async with server.serve(path):
        assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Ready(replace(MLX_LM, model=None))
        server.answers["/health"] = (200, {"status": "fine"})
        assert isinstance(await probe.identify(str(path), timeout_s=TIMEOUT_S), Foreign)


async def test_older_sglang_is_asked_by_the_older_path(probe: EngineProbe, path: Path) -> None:
    """`/get_server_info` is what `/server_info` was called."""
    server = sglang_http()
    server.answers["/get_server_info"] = server.answers.pop("/server_info")
    async with server.serve(path):
        assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Ready(SGLANG_HTTP)


@pytest.mark.parametrize("server", [sglang_http(), HttpReplay.of("vllm-http"), openai_http("nvidia")])
async def test_http_engine_is_loading_until_health_says_otherwise(
    probe: EngineProbe, path: Path, server: HttpReplay
) -> None:
    """An info call that answers is not readiness: SGLang answers all of them with 200 while it loads."""
    server.answers["/health"] = (503, "")
    async with server.serve(path):
        seen = await probe.identify(str(path), timeout_s=TIMEOUT_S)
        assert isinstance(seen, Loading)
        assert seen.facts is not None
        assert await probe.check_health(str(path), seen.facts, timeout_s=TIMEOUT_S) == seen
        server.seen.clear()
        assert await probe.check_health(str(path), seen.facts, timeout_s=TIMEOUT_S, relist=False) == seen
        assert len(server.seen) == 1
        server.answers["/health"] = (200, "")
        assert await probe.check_health(str(path), seen.facts, timeout_s=TIMEOUT_S) == Ready(seen.facts)


@pytest.mark.parametrize("server", [sglang_grpc(), vllm_grpc(), GrpcReplay.of("mlx-grpc", replay.MLX)])
async def test_grpc_engine_is_loading_until_health_says_otherwise(
    probe: EngineProbe, path: Path, server: GrpcReplay
) -> None:
    """vLLM with a dead engine core answers its info calls for ever; only grpc.health.v1 tells."""
    server.health = {"": NOT_SERVING}
    async with server.serve(path):
        seen = await probe.identify(str(path), timeout_s=TIMEOUT_S)
        assert isinstance(seen, Loading)
        assert seen.facts is not None
        assert await probe.check_health(str(path), seen.facts, timeout_s=TIMEOUT_S) == seen
        server.health = {"": SERVING}
        assert await probe.check_health(str(path), seen.facts, timeout_s=TIMEOUT_S) == Ready(seen.facts)


async def test_grpc_engine_that_is_not_serving_and_tells_nothing_yet_is_loading(probe: EngineProbe, path: Path) -> None:
    """NOT_SERVING is an engine's own word, whether or not its info calls work already."""
    server = vllm_grpc()
    server.health = {"": NOT_SERVING}
    server.failures = {"GetServerInfo": grpc.StatusCode.INTERNAL}
    async with server.serve(path):
        assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Loading("grpc.health.v1 says NOT_SERVING")


async def test_trtllm_is_judged_by_its_own_health_check(probe: EngineProbe, path: Path) -> None:
    """TensorRT-LLM has no grpc.health.v1; its own check says OK or what is wrong."""
    server = trtllm_grpc()
    server.answers["HealthCheck"] = message(replay.TRTLLM, "HealthCheckResponse", {"status": "Executor is shutdown"})
    async with server.serve(path):
        expected = Loading("HealthCheck says Executor is shutdown", TRTLLM_GRPC)
        assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == expected
        assert await probe.check_health(str(path), TRTLLM_GRPC, timeout_s=TIMEOUT_S) == expected


@pytest.mark.parametrize("server", [sglang_grpc(), vllm_grpc(), tokenspeed_grpc(disaggregation_mode="null")])
async def test_no_engine_is_made_to_generate(probe: EngineProbe, path: Path, server: GrpcReplay) -> None:
    """SGLang's and TokenSpeed's HealthCheck generates a token each time: it is never called."""
    async with server.serve(path):
        seen = await probe.identify(str(path), timeout_s=TIMEOUT_S)
        assert isinstance(seen, Ready)
        await probe.check_health(str(path), seen.facts, timeout_s=TIMEOUT_S)
    assert not [called for called in server.called if called.endswith("/HealthCheck")]


async def test_engine_without_reflection_is_known_by_its_info_call(probe: EngineProbe, path: Path) -> None:
    """Another engine's method answers UNIMPLEMENTED, so the one that answers is the engine."""
    server = replace(trtllm_grpc(), listed=None)
    async with server.serve(path):
        assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Ready(TRTLLM_GRPC)


async def test_health_may_be_registered_under_the_engines_name_alone(probe: EngineProbe, path: Path) -> None:
    """SERVING for the engine's own service is as good as for the server as a whole."""
    server = vllm_grpc()
    server.health = {replay.VLLM: SERVING}
    async with server.serve(path):
        assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Ready(VLLM_GRPC)
        assert await probe.check_health(str(path), VLLM_GRPC, timeout_s=TIMEOUT_S) == Ready(VLLM_GRPC)


@pytest.mark.parametrize("status", [401, 403])
async def test_http_engine_that_wants_a_key_says_so(probe: EngineProbe, path: Path, status: int) -> None:
    """A refusal is no verdict about the engine behind it, and the reason names the cure."""
    server = HttpReplay.of("vllm-http")
    server.answers["/v1/models"] = (status, {"error": "Unauthorized"})
    async with server.serve(path):
        seen = await probe.identify(str(path), timeout_s=TIMEOUT_S)
    assert isinstance(seen, Unknown)
    assert "api_key" in seen.reason


async def test_grpc_engine_that_wants_a_key_says_so(probe: EngineProbe, path: Path) -> None:
    """A refusal is no verdict about the engine behind it, and the reason names the cure."""
    server = vllm_grpc()
    server.failures = dict.fromkeys(("GetServerInfo", "GetModelInfo", "Check"), grpc.StatusCode.UNAUTHENTICATED)
    async with server.serve(path):
        for seen in (
            await probe.identify(str(path), timeout_s=TIMEOUT_S),
            await probe.check_health(str(path), VLLM_GRPC, timeout_s=TIMEOUT_S),
        ):
            assert isinstance(seen, Unknown)
            assert "api_key" in seen.reason


async def test_the_key_is_sent_with_every_question(probe: EngineProbe, tmp_path: Path) -> None:
    """A replica's api_key is shown with every question, over either protocol."""
    key = "k" * 200
    http, rpc = HttpReplay.of("vllm-http"), vllm_grpc()
    async with http.serve(tmp_path / "http.sock"), rpc.serve(tmp_path / "grpc.sock"):
        for name, facts in (("http", VLLM_HTTP), ("grpc", VLLM_GRPC)):
            address = str(tmp_path / f"{name}.sock")
            assert await probe.identify(address, timeout_s=TIMEOUT_S, access=Access(api_key=key)) == Ready(facts)
            assert await probe.check_health(address, facts, timeout_s=TIMEOUT_S, access=Access(api_key=key)) == Ready(
                facts
            )
    assert {request.headers.get("Authorization") for request in http.seen} == {f"Bearer {key}"}
    assert {sent.get("authorization") for sent in rpc.metadata} == {f"Bearer {key}"}


async def test_a_key_that_no_header_can_carry_is_refused(probe: EngineProbe, path: Path) -> None:
    """A line break in a key must not become a header of its own."""
    async with HttpReplay.of("vllm-http").serve(path):
        for key in ("a\r\nX: y", "schlüssel", "", " a", "a b"):
            assert isinstance(await probe.identify(str(path), timeout_s=TIMEOUT_S, access=Access(api_key=key)), Unknown)


async def test_proxies_in_the_environment_are_not_used(
    probe: EngineProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket on this machine is never reached by way of a proxy."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with (
        HttpReplay.of("vllm-http").serve(tmp_path / "http.sock"),
        vllm_grpc().serve(tmp_path / "grpc.sock"),
    ):
        assert await probe.identify(str(tmp_path / "http.sock"), timeout_s=TIMEOUT_S) == Ready(VLLM_HTTP)
        assert await probe.identify(str(tmp_path / "grpc.sock"), timeout_s=TIMEOUT_S) == Ready(VLLM_GRPC)


@pytest.mark.parametrize("server", [HttpReplay.of("vllm-http"), vllm_grpc()])
async def test_an_address_may_be_any_path(
    probe: EngineProbe,
    path: Path,
    tmp_path: Path,
    server: HttpReplay | GrpcReplay,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Spaces, percent signs and colons are a path's own business; a deep path is reached through a short one."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    odd = deep / os.fsdecode(b"50% of: a%20b c#d?e \xff.sock")
    odd.symlink_to(path)
    monkeypatch.chdir(deep)
    async with server.serve(path):
        assert isinstance(await probe.identify(odd.name, timeout_s=TIMEOUT_S), Ready)
        handle = os.open(odd, os.O_PATH)
        try:
            assert isinstance(await probe.identify(f"/proc/self/fd/{handle}", timeout_s=TIMEOUT_S), Ready)
        finally:
            os.close(handle)
        seen = await probe.identify(str(odd), timeout_s=TIMEOUT_S)
        assert isinstance(seen, Unknown)
        assert "107 bytes" in seen.reason


@pytest.mark.parametrize("address", ["", "a\0b", "a\ud800"])
async def test_what_is_no_path_is_unknown(probe: EngineProbe, address: str) -> None:
    """A bad address is an answer, not an exception."""
    assert isinstance(await probe.identify(address, timeout_s=TIMEOUT_S), Unknown)
    assert isinstance(await probe.check_health(address, VLLM_GRPC, timeout_s=TIMEOUT_S), Unknown)


async def test_every_probe_meets_the_occupant_of_the_moment(probe: EngineProbe, path: Path) -> None:
    """The occupant, not the address: nothing learnt or kept from one probe reaches the next."""
    for server, facts in (ENGINES["vLLM gRPC"], ENGINES["SGLang gRPC, prefill"], ENGINES["mlx_lm.server"]):
        path.unlink(missing_ok=True)
        async with server.serve(path):
            assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Ready(facts)


async def test_a_failed_grpc_probe_does_not_delay_the_next(probe: EngineProbe, path: Path) -> None:
    """gRPC's own back-off (a second and more) is for clients that keep a channel; a probe has none.

    A busy machine may delay one of them as long; a back-off would delay all.
    """
    least_s = math.inf
    for _ in range(10):
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
            assert isinstance(await probe.check_health(str(path), VLLM_GRPC, timeout_s=TIMEOUT_S), Loading)
        path.unlink()
        async with vllm_grpc().serve(path):
            began = time.monotonic()
            assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Ready(VLLM_GRPC)
            least_s = min(least_s, time.monotonic() - began)
    assert least_s < 1


@pytest.mark.parametrize(
    "server", [replace(HttpReplay.of("vllm-http"), delay_s=0.15), replace(vllm_grpc(), delay_s=0.15)]
)
async def test_a_slow_engine_is_known_all_the_same(
    probe: EngineProbe, path: Path, server: HttpReplay | GrpcReplay
) -> None:
    """Asking over the other protocol meanwhile (an engine this slow is asked over both) disturbs nothing."""
    async with server.serve(path):
        assert isinstance(await probe.identify(str(path), timeout_s=TIMEOUT_S), Ready)


async def test_a_server_that_closes_after_each_answer_is_asked_on(probe: EngineProbe, path: Path) -> None:
    """mlx_lm.server speaks HTTP/1.0: one connection for each question."""
    async with replace(HttpReplay.of("vllm-http"), keep_alive=False).serve(path):
        assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Ready(VLLM_HTTP)


async def test_a_server_that_keeps_the_connection_is_asked_everything_over_it(probe: EngineProbe, path: Path) -> None:
    """A connection for each question costs the engine more than the question."""
    server = HttpReplay.of("sglang-http")
    async with server.serve(path):
        await probe.identify(str(path), timeout_s=TIMEOUT_S)
    assert len({request.protocol for request in server.seen}) == 1


async def test_an_http_engine_is_not_bothered_with_http2(probe: EngineProbe, path: Path) -> None:
    """An engine that answers HTTP promptly never sees a gRPC preface, which it would log as a bad request."""
    server = HttpReplay.of("sglang-http")
    async with server.serve(path):
        await probe.identify(str(path), timeout_s=TIMEOUT_S)
    assert [request.path for request in server.seen] == ["/v1/models", "/server_info", "/health"]


async def test_a_grpc_engine_is_asked_four_questions(probe: EngineProbe, path: Path) -> None:
    """Reflection names the engine, so no other engine's methods are tried on it."""
    server = vllm_grpc()
    async with server.serve(path):
        await probe.identify(str(path), timeout_s=TIMEOUT_S)
    assert sorted(called.rsplit("/", 1)[1] for called in server.called) == [
        "Check",
        "GetModelInfo",
        "GetServerInfo",
        "ServerReflectionInfo",
    ]


async def test_a_hundred_sockets_are_identified_at_once(probe: EngineProbe, tmp_path: Path) -> None:
    """Many sockets at once are many probes at once; each gets its own answer."""
    http, rpc = HttpReplay.of("vllm-http"), vllm_grpc()
    async with http.serve(tmp_path / "http.sock"), rpc.serve(tmp_path / "grpc.sock"):
        seen = await asyncio.gather(
            *(
                probe.identify(str(tmp_path / f"{name}.sock"), timeout_s=TIMEOUT_S)
                for _ in range(50)
                for name in ("http", "grpc")
            )
        )
    assert seen == [Ready(VLLM_HTTP), Ready(VLLM_GRPC)] * 50


# --- vLLM over HTTP that does not say its role ------------------------------------------------------------------


NIXL = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny-llama"} 0.0
# HELP vllm:nixl_xfer_time_seconds Histogram of transfer duration for NIXL KV Cache transfers.
# TYPE vllm:nixl_xfer_time_seconds histogram
vllm:nixl_xfer_time_seconds_bucket{engine="0",le="0.005",model_name="tiny-llama"} 0.0
vllm:nixl_xfer_time_seconds_count{engine="0",model_name="tiny-llama"} 0.0
"""


def with_metrics(page: str, status: int = 200, server: HttpReplay | None = None) -> HttpReplay:
    """The recorded vLLM, and its metrics."""
    server = server or HttpReplay.of("vllm-http")
    server.answers["/metrics"] = (status, page)
    return server


@pytest.mark.parametrize(
    ("server", "facts"),
    [
        (with_metrics(NIXL), replace(VLLM_HTTP, kv_connector="NixlConnector")),
        (with_metrics(NIXL.splitlines()[-1]), replace(VLLM_HTTP, kv_connector="NixlConnector")),
        (with_metrics("\n".join(NIXL.splitlines()[:5])), replace(VLLM_HTTP, kv_connector="NixlConnector")),
        (with_metrics('vllm:x{model_name="vllm:nixl_"} 0\n'), VLLM_HTTP),
        (with_metrics(NIXL, status=500), VLLM_HTTP),
        (with_metrics("x" * (LARGEST_ANSWERS_BYTES + 1)), VLLM_HTTP),
        (with_metrics(NIXL, server=vllm_dev(None)), replace(VLLM_HTTP, kv_connector="NixlConnector", dp_size=2)),
        (
            with_metrics(NIXL, server=vllm_dev({"kv_connector": "MultiConnector", "kv_role": "kv_both"})),
            replace(VLLM_HTTP, kv_connector="MultiConnector", kv_role="kv_both", dp_size=2),
        ),
    ],
)
async def test_a_connector_shows_in_the_metrics(
    probe: EngineProbe, path: Path, server: HttpReplay, facts: EngineFacts
) -> None:
    """Outside development mode nothing else tells that a vLLM has one; its own word stands above it."""
    async with server.serve(path):
        assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Ready(facts)


async def test_metrics_that_never_come_are_done_without(
    probe: EngineProbe, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that serves is not kept out by a page that nobody needs to serve."""
    monkeypatch.setattr(http_probe, "_METRICS_S", 0.5)
    server = with_metrics(NIXL)
    server.mute = "/metrics"
    async with server.serve(path):
        assert await probe.identify(str(path), timeout_s=TIMEOUT_S) == Ready(VLLM_HTTP)


async def test_the_metrics_are_asked_for_once_for_each_occupant(probe: EngineProbe, path: Path) -> None:
    """At first sight, loading or not; never with a question for health."""
    server = with_metrics(NIXL)
    server.answers["/health"] = (503, "")
    async with server.serve(path):
        seen = await probe.identify(str(path), timeout_s=TIMEOUT_S)
        assert isinstance(seen, Loading)
        assert seen.facts is not None
        assert seen.facts.kv_connector == "NixlConnector"
        server.answers["/health"] = (200, "")
        again = await probe.check_health(str(path), seen.facts, timeout_s=TIMEOUT_S)
        assert again == Ready(seen.facts)
    assert [request.path for request in server.seen].count("/metrics") == 1


async def test_a_slow_first_answer_about_itself_is_no_silence(probe: EngineProbe, path: Path) -> None:
    """A real vLLM's first `/server_info` takes over 5 s. It says what it is when it is asked again."""
    spec = EngineSpec(kind=EngineKind.VLLM_HTTP, socket=path, role=Role.PREFILL, dev_mode=True)
    slow = Unknown("no answer to /server_info?config_format=json within 0.2 s; asked again", begun=True)
    async with SimulatedEngine(spec, Behaviour(first_info_s=3600)) as engine:
        seen: ProbeResult | None = None
        while seen != slow:  # A busy machine may need as long for its model list.
            seen = await probe.identify(str(path), timeout_s=0.2)
            assert isinstance(seen, Unknown)
        engine.behave(first_info_s=0)
        seen = await probe.identify(str(path), timeout_s=TIMEOUT_S)
    assert isinstance(seen, Ready)
    assert (seen.facts.worker_type, seen.facts.kv_role) == (WorkerType.PREFILL, "kv_producer")
