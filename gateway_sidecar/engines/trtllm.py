"""TensorRT-LLM: tells no role; its gRPC server has no grpc.health.v1 and opens only with the model loaded."""

from __future__ import annotations

from gateway_sidecar.domain.discovery import (
    HttpAnswer,
    ModelList,
    RpcAnswer,
    Serving,
    document,
    rpc_failure,
)
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Unknown
from gateway_sidecar.engines._pb import trtllm_pb2
from gateway_sidecar.engines.dialect import Engine, GrpcDialect, HealthCheck, HttpDialect, MetricsPage, Rpc
from gateway_sidecar.engines.fields import Fields, text

NAME = "trtllm"
SERVICE = "trtllm.TrtllmService"


def read_http(models: ModelList, answers: tuple[HttpAnswer, ...]) -> EngineFacts:
    """Read `/version`, which vLLM has too: the model list alone says that this is TensorRT-LLM."""
    (version,) = answers
    told = document(version) if version.status == 200 else None
    return EngineFacts(
        runtime_type=NAME,
        connection_mode=ConnectionMode.HTTP,
        model=models.ids[0] if models.ids else None,
        version=text(told, "version") if isinstance(told, dict) else None,
    )


def read_grpc(server_info: Fields, model_info: Fields) -> EngineFacts | Unknown:
    """Read both info answers."""
    version = text(server_info, "version")
    if version is None:
        return Unknown("says it is TensorRT-LLM, but GetServerInfo tells no version")
    return EngineFacts(
        runtime_type=NAME,
        connection_mode=ConnectionMode.GRPC,
        model=text(model_info, "model_id"),
        version=version,
    )


def read_health(answer: RpcAnswer) -> Serving:
    """Read its own HealthCheck: "OK", or what is wrong with the executor. It generates nothing."""
    if not answer.ok:
        return Serving(None, rpc_failure("HealthCheck", answer))
    status = text(answer.fields, "status")
    if status is None:
        return Serving(None, "HealthCheck says nothing")
    return Serving(status.strip().upper() == "OK", f"HealthCheck says {status[:80]}")


HTTP = HttpDialect(
    owned_by=frozenset({"tensorrt_llm"}),
    questions=(("/version",),),
    read=read_http,
)

GRPC = GrpcDialect(
    services=frozenset({SERVICE}),
    server_info=Rpc(f"/{SERVICE}/GetServerInfo", trtllm_pb2.GetServerInfoRequest, trtllm_pb2.GetServerInfoResponse),
    model_info=Rpc(f"/{SERVICE}/GetModelInfo", trtllm_pb2.GetModelInfoRequest, trtllm_pb2.GetModelInfoResponse),
    read=read_grpc,
    health=HealthCheck(
        Rpc(f"/{SERVICE}/HealthCheck", trtllm_pb2.HealthCheckRequest, trtllm_pb2.HealthCheckResponse),
        read_health,
    ),
)

# `return_perf_metrics`: `metrics/collector.py`, in later versions with `trtllm_` before each name; `/metrics` is JSON.
# The time per output token is the mean of each answer, observed at the answer's end; other engines observe each pause.
METRICS = MetricsPage(
    path="/prometheus/metrics",
    ttft=("trtllm_time_to_first_token_seconds", "time_to_first_token_seconds"),
    itl=("trtllm_time_per_output_token_seconds", "time_per_output_token_seconds"),
)

ENGINE = Engine(NAME, HTTP, GRPC, METRICS)
