"""Arbitrary answers: reading never raises, and never finds an engine without enough evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.discovery import (
    Failure,
    HttpAnswer,
    ModelList,
    NoAnswer,
    Protocol,
    RpcAnswer,
    judge,
    judge_http_health,
    protocol_of,
    read_models,
    read_standard_health,
)
from gateway_sidecar.domain.model import (
    ConnectionMode,
    EngineFacts,
    Foreign,
    Loading,
    ProbeResult,
    Ready,
    Unknown,
    WorkerType,
)
from gateway_sidecar.engines import external, sglang
from gateway_sidecar.engines.dialect import STANDARD_HEALTH, Engine
from gateway_sidecar.engines.grpc_probe import REFLECTION
from gateway_sidecar.engines.messages import decode
from gateway_sidecar.kinds import ENGINES

FIXTURES = Path(__file__).parents[1] / "fixtures" / "engines"
FACTS = EngineFacts("vllm", ConnectionMode.HTTP)
OVER_HTTP = [engine for engine in ENGINES if engine.http is not None]
OVER_GRPC = [engine for engine in ENGINES if engine.grpc is not None]

TELLING_WORDS = ("list", "vllm", "sglang", "nvidia", "null", "prefill", "kv_producer", "ok", "mlx-grpc", "m", "")
TELLING_NUMBERS = (0, -1, 1, 8998, 8998.5, 65535, 65536, 1e300, float("nan"), float("inf"), True, 2**70)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(TELLING_WORDS),
    st.sampled_from(TELLING_NUMBERS),
)
telling_keys = st.sampled_from(
    (
        *("object", "data", "id", "owned_by", "status", "version", "model_path", "served_model_name", "server_args"),
        *("disaggregation_mode", "disaggregation_bootstrap_port", "dp_size", "vllm_config", "kv_transfer_config"),
        *("parallel_config", "data_parallel_size", "kv_role", "kv_connector", "engine_id", "server_type", "model_id"),
    )
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(telling_keys | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
json_objects = st.dictionaries(telling_keys, json_values, max_size=5)
bodies = st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode())
statuses = st.sampled_from((200, 204, 302, 401, 403, 404, 429, 500, 503)) | st.integers(100, 999)
http_answers = st.builds(HttpAnswer, status=statuses, body=bodies)
codes = st.sampled_from(("OK", "UNIMPLEMENTED", "UNAVAILABLE", "UNAUTHENTICATED", "NOT_FOUND", "INTERNAL"))


def check(facts: EngineFacts) -> None:
    """What holds for facts, whatever they were read from."""
    hash(facts)
    assert 1 <= facts.dp_size <= 65536
    for name in (facts.model, facts.version, facts.kv_connector, facts.kv_role, facts.kv_engine_id):
        assert name is None or (0 < len(name) <= 1024 and name.isprintable() and name.encode())
    assert type(facts.bootstrap_port) is int or facts.bootstrap_port is None
    assert facts.bootstrap_port is None or 1 <= facts.bootstrap_port <= 65535
    if facts.worker_type is WorkerType.PREFILL and facts.runtime_type != "vllm":
        assert facts.bootstrap_port is not None


@given(http_answers)
def test_any_model_list_is_read(answer: HttpAnswer) -> None:
    """Whatever a server sends as its models, a list comes out only of a well-formed 200."""
    models = read_models(answer)
    if isinstance(models, ModelList):
        assert answer.status == 200
        check(external.read_listed(models, ()))


@given(
    st.sampled_from(OVER_HTTP),
    st.lists(st.text("abc", min_size=1), max_size=3),
    st.sampled_from(("sglang", "nvidia", "vllm", "tensorrt_llm")),
    st.lists(http_answers, min_size=2, max_size=2),
)
def test_any_http_answers_are_read(engine: Engine, ids: list[str], owner: str, answers: list[HttpAnswer]) -> None:
    """Facts or a reason, never an exception, and no fact that does not hold water."""
    assert engine.http is not None
    read = engine.http.read(ModelList(tuple(ids), owner), tuple(answers[: len(engine.http.questions)]))
    if isinstance(read, EngineFacts):
        check(read)
        assert read.runtime_type == engine.name


@given(st.sampled_from(OVER_GRPC), json_objects, json_objects)
def test_any_grpc_fields_are_read(
    engine: Engine, server_info: dict[str, object], model_info: dict[str, object]
) -> None:
    """Facts or a reason, never an exception, and no fact that does not hold water."""
    assert engine.grpc is not None
    read = engine.grpc.read(server_info, model_info)
    if isinstance(read, EngineFacts):
        check(read)
        assert read.runtime_type == engine.name


@given(
    st.sampled_from(("disaggregation_mode", "disaggregation_bootstrap_port", "model_path", "dp_size", "version")),
    json_values,
)
def test_a_real_answer_with_one_wrong_value_is_read(key: str, value: Any) -> None:
    """SGLang's real `/server_info` with any value in any place that matters."""
    body = json.loads((FIXTURES / "sglang-http.json").read_text())["/server_info"]["body"] | {key: value}
    answer = HttpAnswer(200, json.dumps(body).encode())
    read = sglang.read_http(ModelList(("m",), "sglang"), (answer,))
    if isinstance(read, EngineFacts):
        check(read)
        if key == "disaggregation_mode":
            assert value in ("null", "decode", "prefill", "encode", None, "")


@given(http_answers)
def test_only_a_good_status_is_ready_over_http(answer: HttpAnswer) -> None:
    """Readiness needs the engine's own yes."""
    assert isinstance(judge_http_health(FACTS, answer), Ready) <= (answer.status in (200, 204))


@given(codes, json_objects)
def test_only_serving_is_ready_over_grpc(code: str, fields: dict[str, object]) -> None:
    """Readiness needs the engine's own yes."""
    answer = RpcAnswer(code, fields)
    assert bool(read_standard_health(answer).ready) <= (code == "OK" and fields.get("status") == 1)
    for engine in OVER_GRPC:
        assert engine.grpc is not None
        assert bool(engine.grpc.health.read(answer).ready) <= (code == "OK")


results: st.SearchStrategy[ProbeResult | NoAnswer] = st.one_of(
    st.sampled_from((Ready(FACTS), Loading("x"), Loading("x", FACTS), Foreign("x"), Unknown("x"))),
    st.sampled_from(Failure).map(NoAnswer),
)


@given(st.lists(results, min_size=1, max_size=2), st.none() | st.sampled_from(Protocol))
def test_nothing_becomes_ready_by_being_put_together(
    sides: list[ProbeResult | NoAnswer], protocol: Protocol | None
) -> None:
    """A verdict on both sides is Ready only where one side is."""
    assert isinstance(judge(sides, protocol), Ready) <= (Ready(FACTS) in sides)


responses: list[type[Message]] = [
    STANDARD_HEALTH.rpc.response,
    REFLECTION.response,
    *(
        rpc.response
        for engine in ENGINES
        if engine.grpc is not None
        for rpc in (engine.grpc.server_info, engine.grpc.model_info, engine.grpc.health.rpc)
    ),
]


@given(st.sampled_from(responses), st.binary(max_size=100))
def test_any_bytes_are_decoded(response: type[Message], wire: bytes) -> None:
    """What is no such message is an answer that is not OK."""
    answer = decode(response, wire)
    assert answer.ok or not answer.fields


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_a_protocol_once_told_stays(first: bytes, more: bytes) -> None:
    """Bytes that come later do not change what the first ones showed."""
    told = protocol_of(first)
    assert told is None or protocol_of(first + more) is told
