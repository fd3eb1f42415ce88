"""SGLang: its role is in `server_args`, the same over HTTP and gRPC.

It names a bootstrap port even where it is not disaggregated, and says `disaggregation_mode: "null"` then.
"""

from __future__ import annotations

from gateway_sidecar.domain.discovery import HttpAnswer, ModelList, document, needs_key
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Unknown, WorkerType
from gateway_sidecar.engines._pb import sglang_pb2
from gateway_sidecar.engines.dialect import Engine, GrpcDialect, HttpDialect, MetricsPage, Rpc, loads_of
from gateway_sidecar.engines.fields import Fields, dp_size, nested, port, started_at, text, worker_type_by_mode

NAME = "sglang"
DYNAMO = "nvidia"
"""The owner of models that Dynamo's front end lists."""
SERVICE = "sglang.grpc.scheduler.SglangScheduler"


def _facts(
    mode: ConnectionMode, server_args: Fields, model: str | None, version: str | None, instance: str | None
) -> EngineFacts | Unknown:
    worker_type = worker_type_by_mode(server_args)
    if isinstance(worker_type, Unknown):
        return worker_type
    bootstrap_port = port(server_args, "disaggregation_bootstrap_port")
    if worker_type is WorkerType.PREFILL and bootstrap_port is None:
        return Unknown("SGLang prefill without a usable disaggregation_bootstrap_port")
    return EngineFacts(
        runtime_type=NAME,
        connection_mode=mode,
        worker_type=worker_type,
        model=model,
        version=version,
        bootstrap_port=bootstrap_port if worker_type is WorkerType.PREFILL else None,
        dp_size=dp_size(server_args, "dp_size"),
        instance=instance,
    )


def _seeded(server_args: Fields) -> str | None:
    """SGLang draws its seed anew with each start, unless it is given one."""
    seed = server_args.get("random_seed")
    return f"seed {seed}" if isinstance(seed, int) else None


def read_http(models: ModelList, answers: tuple[HttpAnswer, ...]) -> EngineFacts | Unknown:
    """Read `/server_info`. Dynamo's front end for SGLang does not have it; SGLang itself always does."""
    (answer,) = answers
    listed = models.ids[0] if models.ids else None
    if answer.status == 404 and models.owned_by == DYNAMO:
        return EngineFacts(NAME, ConnectionMode.HTTP, model=listed)
    if answer.status in (401, 403):
        return Unknown(needs_key(f"/server_info answers {answer.status}"))
    body = document(answer)
    if answer.status != 200 or not isinstance(body, dict) or text(body, "model_path") is None:
        return Unknown(f"says it is SGLang, but /server_info (status {answer.status}) does not tell its role")
    return _facts(
        ConnectionMode.HTTP, body, text(body, "served_model_name") or listed, text(body, "version"), _seeded(body)
    )


def read_grpc(server_info: Fields, model_info: Fields) -> EngineFacts | Unknown:
    """Read both info answers. SGLang serves under its model path where it was given no other name."""
    server_args = nested(server_info, "server_args")
    if not server_args:
        return Unknown("says it is SGLang, but GetServerInfo has no server_args and so tells no role")
    model = (
        text(model_info, "served_model_name")
        or text(server_args, "served_model_name")
        or text(model_info, "model_path")
    )
    version = text(server_info, "sglang_version")
    return _facts(ConnectionMode.GRPC, server_args, model, version, started_at(server_info))


HTTP = HttpDialect(
    owned_by=frozenset({NAME, DYNAMO}),
    questions=(("/server_info", "/get_server_info"),),
    read=read_http,
)

GRPC = GrpcDialect(
    services=frozenset({SERVICE}),
    server_info=Rpc(f"/{SERVICE}/GetServerInfo", sglang_pb2.GetServerInfoRequest, sglang_pb2.GetServerInfoResponse),
    model_info=Rpc(f"/{SERVICE}/GetModelInfo", sglang_pb2.GetModelInfoRequest, sglang_pb2.GetModelInfoResponse),
    read=read_grpc,
    loads=loads_of(SERVICE),
)

# `--enable-metrics`: `srt/observability/metrics_collector.py`.
METRICS = MetricsPage(
    ttft=("sglang:time_to_first_token_seconds",),
    itl=("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
    progress=(
        *("sglang:num_running_reqs", "sglang:num_used_tokens", "sglang:gen_throughput"),
        *("sglang:generation_tokens_total", "sglang:inter_token_latency_seconds_count"),
    ),
)

ENGINE = Engine(NAME, HTTP, GRPC, METRICS)
