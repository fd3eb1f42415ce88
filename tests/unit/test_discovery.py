"""What answers prove, without any engine: `domain/discovery.py` and the tables of `engines/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway_sidecar.domain.discovery import (
    Failure,
    HttpAnswer,
    ModelList,
    NoAnswer,
    Protocol,
    RpcAnswer,
    Serving,
    decisive,
    judge,
    judge_grpc_health,
    judge_http_health,
    protocol_of,
    read_models,
    read_standard_health,
    rpc_failure,
    unanswered,
)
from gateway_sidecar.domain.model import (
    ConnectionMode,
    EngineFacts,
    Foreign,
    Loading,
    Ready,
    Unknown,
    WorkerType,
)
from gateway_sidecar.engines import external, mlx, sglang, tokenspeed, trtllm, vllm
from gateway_sidecar.kinds import ENGINES

FIXTURES = Path(__file__).parents[1] / "fixtures" / "engines"
FACTS = EngineFacts("vllm", ConnectionMode.HTTP, model="m")
NOT_FOUND = HttpAnswer(404, b'{"detail":"Not Found"}')


def recorded(name: str) -> dict[str, Any]:
    answers = json.loads((FIXTURES / f"{name}.json").read_text())
    assert isinstance(answers, dict)
    return answers


def http(name: str, path: str) -> HttpAnswer:
    told = recorded(name)[path]
    body = told["body"]
    return HttpAnswer(told["status"], body.encode() if isinstance(body, str) else json.dumps(body).encode())


def listed(name: str) -> ModelList:
    models = read_models(http(name, "/v1/models"))
    assert isinstance(models, ModelList)
    return models


def told(value: object) -> HttpAnswer:
    return HttpAnswer(200, json.dumps(value).encode())


# --- the recorded engines ---------------------------------------------------------------------------------------


def test_recorded_sglang_over_http() -> None:
    """A bootstrap port that SGLang names although it is not disaggregated is not passed on."""
    assert sglang.read_http(listed("sglang-http"), (http("sglang-http", "/server_info"),)) == EngineFacts(
        "sglang", ConnectionMode.HTTP, model="tiny-llama", version="0.5.23"
    )


def test_recorded_sglang_over_grpc() -> None:
    """Numbers of a Struct are doubles, and the served name is empty: SGLang serves under its model path."""
    info = recorded("sglang-grpc")
    facts = sglang.read_grpc(info["GetServerInfo"]["json"], info["GetModelInfo"]["json"])
    assert facts == EngineFacts("sglang", ConnectionMode.GRPC, model="tiny-llama", version="0.5.23")


def test_recorded_vllm_over_http() -> None:
    """Outside development mode vLLM says nothing of its role over HTTP: it is regular."""
    answers = (http("vllm-http", "/server_info"), http("vllm-http", "/version"))
    assert vllm.read_http(listed("vllm-http"), answers) == EngineFacts(
        "vllm", ConnectionMode.HTTP, model="tiny-llama", version="0.32.0"
    )


def test_recorded_vllm_over_grpc() -> None:
    """No kv_role is no KV transfer."""
    info = recorded("vllm-grpc")
    facts = vllm.read_grpc(info["GetServerInfo"]["json"], info["GetModelInfo"]["json"])
    assert facts == EngineFacts("vllm", ConnectionMode.GRPC, model="tiny-llama")


def test_recorded_mlx() -> None:
    """MLX names itself in `server_type`."""
    info = recorded("mlx-grpc")
    facts = mlx.read_grpc(info["GetServerInfo"]["json"], info["GetModelInfo"]["json"])
    assert facts == EngineFacts("mlx", ConnectionMode.GRPC, model="tiny-llama")


def test_recorded_mlx_lm() -> None:
    """A list of one names the model; mlx_lm.server's list of its whole cache does not."""
    assert external.read_listed(listed("mlx_lm-http"), ()).model == "tiny-llama"
    assert external.read_listed(ModelList(("a", "b")), ()).model is None


@pytest.mark.parametrize("name", ["sglang-grpc", "vllm-grpc", "mlx-grpc"])
def test_recorded_reflection_names_one_engine(name: str) -> None:
    """One reflection call tells the engines apart."""
    names = frozenset(recorded(name)["reflection v1alpha"])
    assert [engine.name for engine in ENGINES if engine.grpc and engine.grpc.services & names] == [name[:-5]]


def test_every_owner_names_one_engine() -> None:
    """No two engines claim the same `owned_by`, and no two the same service."""
    owners = [owner for engine in ENGINES if engine.http for owner in engine.http.owned_by]
    services = [service for engine in ENGINES if engine.grpc for service in engine.grpc.services]
    assert len(owners) == len(set(owners))
    assert len(services) == len(set(services))


# --- roles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "worker_type"),
    [
        ("null", WorkerType.REGULAR),
        ("prefill", WorkerType.PREFILL),
        ("decode", WorkerType.DECODE),
        ("encode", WorkerType.ENCODE),
    ],
)
def test_disaggregation_mode_is_the_role(mode: str, worker_type: WorkerType) -> None:
    """The same words over HTTP and gRPC, for SGLang and TokenSpeed; only who hands out KV has a bootstrap port."""
    args = {"model_path": "m", "disaggregation_mode": mode, "disaggregation_bootstrap_port": 8998.0, "dp_size": 2.0}
    over_http = sglang.read_http(ModelList(("m",), "sglang"), (told(args),))
    over_grpc = sglang.read_grpc({"server_args": args}, {})
    tokens = tokenspeed.read_grpc({"server_args": args}, {})
    for facts in (over_http, over_grpc, tokens):
        assert isinstance(facts, EngineFacts)
        assert facts.worker_type is worker_type
        assert facts.dp_size == 2
    assert isinstance(over_http, EngineFacts)
    assert over_http.bootstrap_port == (8998 if worker_type is WorkerType.PREFILL else None)
    assert isinstance(tokens, EngineFacts)
    assert tokens.bootstrap_port == (8998 if worker_type in (WorkerType.PREFILL, WorkerType.ENCODE) else None)


@pytest.mark.parametrize(
    ("role", "worker_type"),
    [
        ("kv_producer", WorkerType.PREFILL),
        ("kv_consumer", WorkerType.DECODE),
        ("kv_both", WorkerType.REGULAR),
        ("", WorkerType.REGULAR),
        (None, WorkerType.REGULAR),
    ],
)
def test_kv_role_is_the_role(role: str | None, worker_type: WorkerType) -> None:
    """Producer is prefill, consumer is decode, both or none is regular; the same over HTTP and gRPC."""
    config = told({"vllm_config": {"kv_transfer_config": {"kv_role": role}}})
    for facts in (
        vllm.read_grpc({"kv_role": role}, {}),
        vllm.read_http(ModelList(("m",), "vllm"), (config, NOT_FOUND)),
    ):
        assert isinstance(facts, EngineFacts)
        assert facts.worker_type is worker_type
        assert facts.kv_role == (role or None)


@pytest.mark.parametrize("role", ["KV_PRODUCER", "prefill", 1, True, [], {}, ["kv_producer"]])
def test_a_role_that_is_not_understood_is_never_guessed(role: object) -> None:
    """A prefill worker registered as a regular one answers with nonsense; an unknown one waits."""
    assert isinstance(vllm.read_grpc({"kv_role": role}, {}), Unknown)
    assert isinstance(sglang.read_grpc({"server_args": {"disaggregation_mode": role}}, {}), Unknown | EngineFacts)
    if role != "prefill":
        assert isinstance(sglang.read_grpc({"server_args": {"disaggregation_mode": role}}, {}), Unknown)


def test_older_sglang_without_disaggregation_is_regular() -> None:
    """What did not exist when the engine was written cannot be in use."""
    facts = sglang.read_http(ModelList(("m",), "sglang"), (told({"model_path": "m"}),))
    assert facts == EngineFacts("sglang", ConnectionMode.HTTP, model="m")


def test_only_dynamo_may_lack_server_info() -> None:
    """SGLang behind Dynamo has no `/server_info`; an SGLang without one tells no role."""
    assert isinstance(sglang.read_http(ModelList(("m",), "nvidia"), (NOT_FOUND,)), EngineFacts)
    assert isinstance(sglang.read_http(ModelList(("m",), "sglang"), (NOT_FOUND,)), Unknown)


def test_model_names_prefer_the_served_one() -> None:
    """As the router resolves it: the served name, else the whole model path."""
    assert vllm.read_grpc({}, {"served_model_name": "s", "model_path": "/m/p"}) == EngineFacts(
        "vllm", ConnectionMode.GRPC, model="s"
    )
    assert vllm.read_grpc({}, {"model_path": "/m/p"}) == EngineFacts("vllm", ConnectionMode.GRPC, model="/m/p")
    served = sglang.read_http(ModelList(("listed",), "sglang"), (told({"model_path": "p", "served_model_name": "s"}),))
    assert isinstance(served, EngineFacts)
    assert served.model == "s"


def test_older_development_mode_tells_no_role() -> None:
    """An older vLLM in development mode answers with text, which is read as no answer."""
    text = told({"vllm_config": "model='m', kv_transfer_config=None"})
    facts = vllm.read_http(ModelList(("m",), "vllm"), (text, NOT_FOUND))
    assert facts == EngineFacts("vllm", ConnectionMode.HTTP, model="m")


# --- verdicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["OK", "ok", " OK "])
def test_trtllm_is_healthy_when_it_says_ok(status: str) -> None:
    """The same reading as the router's."""
    assert trtllm.read_health(RpcAnswer("OK", {"status": status})).ready is True
    assert trtllm.read_health(RpcAnswer("OK", {"status": f"not {status}"})).ready is False
    assert trtllm.read_health(RpcAnswer("OK", {})).ready is None
    assert trtllm.read_health(RpcAnswer("UNAVAILABLE", {})).ready is None


@pytest.mark.parametrize(("status", "ready"), [(1, True), (2, False), (0, None), (3, None), (77, None)])
def test_standard_health_is_serving_or_not_serving(status: int, ready: bool | None) -> None:
    """Only the two words that mean something are taken as evidence."""
    assert read_standard_health(RpcAnswer("OK", {"status": status})).ready is ready
    assert read_standard_health(RpcAnswer("OK", {})).ready is None
    assert read_standard_health(RpcAnswer("INTERNAL", {"status": 1})).ready is None


def test_readiness_is_by_health() -> None:
    """200 and SERVING are Ready; 503 and NOT_SERVING are Loading with what is known; anything else proves nothing."""
    assert judge_http_health(FACTS, HttpAnswer(200)) == Ready(FACTS)
    assert judge_http_health(FACTS, HttpAnswer(503)) == Loading("/health answers 503", FACTS)
    assert judge_http_health(FACTS, HttpAnswer(204)) == Ready(FACTS)
    for status in (302, 401, 403, 404, 429, 500, 502):
        assert isinstance(judge_http_health(FACTS, HttpAnswer(status)), Unknown)
    assert judge_grpc_health(FACTS, Serving(True, "x")) == Ready(FACTS)
    assert judge_grpc_health(FACTS, Serving(False, "x")) == Loading("x", FACTS)
    assert judge_grpc_health(FACTS, Serving(None, "x")) == Unknown("x")


def test_reasons_name_the_cure() -> None:
    """Every failure says what next."""
    for reason in (
        rpc_failure("x", RpcAnswer("UNAUTHENTICATED", {})),
        rpc_failure("x", RpcAnswer("PERMISSION_DENIED", {})),
        judge_http_health(FACTS, HttpAnswer(401)).reason,  # type: ignore[union-attr]
        read_models(HttpAnswer(403)).reason,  # type: ignore[union-attr]
    ):
        assert "set api_key" in reason
    assert rpc_failure("x", RpcAnswer("INTERNAL", {}, "why")) == "x answers INTERNAL (why)"


def test_silence_before_the_first_answer() -> None:
    """Nobody listening is Loading; what no engine would do is Foreign; the rest proves nothing."""
    verdicts = {failure: type(unanswered(NoAnswer(failure))) for failure in Failure}
    assert {f for f, verdict in verdicts.items() if verdict is Loading} == {Failure.REFUSED, Failure.CLOSED}
    assert {f for f, verdict in verdicts.items() if verdict is Foreign} == {
        Failure.NOT_A_SOCKET,
        Failure.OTHER_PROTOCOL,
        Failure.NO_TLS,
        Failure.TOO_LARGE,
    }


def test_silence_after_the_first_answer_never_makes_an_engine_foreign() -> None:
    """A socket that spoke as an engine a moment ago is not a stranger for one bad answer."""
    for failure in set(Failure) - {Failure.NOT_A_SOCKET}:
        assert not isinstance(unanswered(NoAnswer(failure), "/health"), Foreign)
    assert unanswered(NoAnswer(Failure.CUT, "why"), "/health") == Unknown(
        "/health: closed in the middle of an answer: why"
    )


def test_first_side_that_gets_through_decides() -> None:
    """Foreign as HTTP may still be an engine over gRPC; and an answer is worth more than a silence."""
    closed, cut = NoAnswer(Failure.CLOSED), NoAnswer(Failure.CUT)
    assert decisive(Ready(FACTS))
    assert decisive(Loading("x"))
    assert decisive(Unknown("x"))
    assert not decisive(Foreign("x"))
    assert not decisive(closed)
    assert judge((closed, Foreign("grpc")), Protocol.HTTP2) == Foreign("grpc")
    assert judge((Foreign("http"), cut), Protocol.HTTP1) == Foreign("http")
    assert judge((closed, cut), None) == Loading("closed without an answer", refused=True, closed=True)
    assert isinstance(judge((NoAnswer(Failure.OTHER_PROTOCOL), closed), Protocol.HTTP2), Unknown)


@pytest.mark.parametrize(
    ("first", "protocol"),
    [
        (b"", None),
        (b"H", None),
        (b"HTTP", None),
        (b"HTTP/", Protocol.HTTP1),
        (b"HTTP/1.1 200 OK\r\n", Protocol.HTTP1),
        (b"HTTQ", Protocol.OTHER),
        (b"\0\0", None),
        (b"\0\0\x18\x04\0\0\0\0\0", Protocol.HTTP2),
        (b"\0\0\x08\x07\0\0\0\0\0\0", Protocol.HTTP2),
        (b"\0\0\0\x04\0\0\0\0\x01", Protocol.OTHER),
        (b"\0\0\0\0\0\0\0\0\0", Protocol.OTHER),
        (b"\xff\0\0\x04\0\0\0\0\0", Protocol.OTHER),
        (b"SSH-", Protocol.OTHER),
    ],
)
def test_first_bytes_tell_the_protocol(first: bytes, protocol: Protocol | None) -> None:
    """An HTTP/2 server opens with SETTINGS whatever it was sent, so an HTTP/1 request tells both apart."""
    assert protocol_of(first) is protocol


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(401, Unknown), (403, Unknown), (404, Foreign), (302, Foreign), (429, Unknown), (500, Unknown), (503, Loading)],
)
def test_model_list_that_is_refused(status: int, verdict: type) -> None:
    """503 is an engine that loads, a refusal or a fault is none of an engine's qualities, 404 is no engine."""
    assert isinstance(read_models(HttpAnswer(status)), verdict)
