"""vLLM: its role is its `kv_role`. gRPC tells it; HTTP only in development mode (`/server_info`).

Without it, HTTP shows a NIXL connector all the same: by its series in `/metrics`.
"""

from __future__ import annotations

from gateway_sidecar.domain.discovery import HttpAnswer, ModelList, document, needs_key
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Unknown, WorkerSpec, WorkerType
from gateway_sidecar.engines._pb import vllm_pb2
from gateway_sidecar.engines.dialect import Engine, GrpcDialect, HttpDialect, MetricsPage, Rpc
from gateway_sidecar.engines.fields import Fields, dp_size, nested, text, worker_type_by_kv_role

NAME = "vllm"
SERVICE = "vllm.grpc.engine.VllmEngine"


def read_http(models: ModelList, answers: tuple[HttpAnswer, ...]) -> EngineFacts | Unknown:
    """Read `/server_info` and `/version`.

    404 is a vLLM that was not started in development mode: it says nothing of its role, and is regular unless
    the replica's yaml file says otherwise. Older development modes answer with text, which says no more.
    """
    info, version = answers
    if info.status in (401, 403):
        return Unknown(needs_key(f"/server_info answers {info.status}"))
    if info.status not in (200, 404):
        return Unknown(f"says it is vLLM, but /server_info answers {info.status}, so its role is not known")
    told = document(info) if info.status == 200 else {}
    config = nested(told, "vllm_config") if isinstance(told, dict) else {}
    transfer = nested(config, "kv_transfer_config")
    worker_type = worker_type_by_kv_role(transfer)
    if isinstance(worker_type, Unknown):
        return worker_type
    told_version = document(version) if version.status == 200 else None
    return EngineFacts(
        runtime_type=NAME,
        connection_mode=ConnectionMode.HTTP,
        worker_type=worker_type,
        model=models.ids[0] if models.ids else None,  # aliases and adapters are listed after it
        version=text(told_version, "version") if isinstance(told_version, dict) else None,
        kv_connector=text(transfer, "kv_connector"),
        kv_role=text(transfer, "kv_role"),
        kv_engine_id=text(transfer, "engine_id"),
        dp_size=dp_size(nested(config, "parallel_config"), "data_parallel_size"),
    )


def read_grpc(server_info: Fields, model_info: Fields) -> EngineFacts | Unknown:
    """Read both info answers. A field that is not set is not sent: no `kv_role` means no KV transfer."""
    worker_type = worker_type_by_kv_role(server_info)
    if isinstance(worker_type, Unknown):
        return worker_type
    return EngineFacts(
        runtime_type=NAME,
        connection_mode=ConnectionMode.GRPC,
        worker_type=worker_type,
        model=text(model_info, "served_model_name") or text(model_info, "model_path"),
        kv_connector=text(server_info, "kv_connector"),
        kv_role=text(server_info, "kv_role"),
        kv_engine_id=text(server_info, "kv_engine_id"),
        dp_size=dp_size(server_info, "data_parallel_size"),
        instance=text(server_info, "shm_namespace_id"),  # that of its machine or container; nothing says more
    )


def lacks(spec: WorkerSpec) -> str | None:
    """What keeps a pair from transferring KV: a router asks for it only where it knows the connector and the role."""
    has_part = spec.kv_role is not None or spec.worker_type in (WorkerType.PREFILL, WorkerType.DECODE)
    if spec.kv_connector is not None and spec.kv_role is None:
        lacking = f"it has a KV connector ({spec.kv_connector}) and does not say its role"
        cure = "`kv_role: kv_producer` (prefill) or `kv_role: kv_consumer` (decode)"
    elif spec.kv_connector is None and has_part:
        lacking = f"it is a {spec.worker_type.value} worker whose KV connector is not known"
        cure = "`kv_connector: NAME`, such as NixlConnector,"
    else:
        return None
    where = "in its .yaml or inventory entry, or start it with VLLM_SERVER_DEV_MODE=1"
    return f"{lacking}, so no KV is transferred; write {cure} {where}"


HTTP = HttpDialect(
    owned_by=frozenset({NAME}),
    questions=(("/server_info?config_format=json",), ("/version",)),
    read=read_http,
    health=("/is_sleeping",),  # development mode has it; asleep `/health` says 200
    connectors={"vllm:nixl_": "NixlConnector"},  # its series are there from the start, at zero
)

GRPC = GrpcDialect(
    services=frozenset({SERVICE}),
    server_info=Rpc(f"/{SERVICE}/GetServerInfo", vllm_pb2.GetServerInfoRequest, vllm_pb2.GetServerInfoResponse),
    model_info=Rpc(f"/{SERVICE}/GetModelInfo", vllm_pb2.GetModelInfoRequest, vllm_pb2.GetModelInfoResponse),
    read=read_grpc,
    # One field more: it counts the tokens that it holds in blocks, of 128 on a CPU.
    loads=Rpc(f"/{SERVICE}/GetLoads", vllm_pb2.GetLoadsRequest, vllm_pb2.GetLoadsResponse),
)

# By default: `v1/metrics/loggers.py`.
METRICS = MetricsPage(
    ttft=("vllm:time_to_first_token_seconds",),
    itl=("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    progress=(
        *("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:iteration_tokens_total_count"),
        *("vllm:generation_tokens_total", "vllm:prompt_tokens_total"),
    ),
)

ENGINE = Engine(NAME, HTTP, GRPC, METRICS, lacks=lacks)
