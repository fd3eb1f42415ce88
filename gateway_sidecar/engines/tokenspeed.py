"""TokenSpeed: like SGLang, its role is in `server_args`.

An encode worker shows only the encoder's name to reflection, and answers the scheduler's info calls all the same.
"""

from __future__ import annotations

from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Unknown, WorkerType
from gateway_sidecar.engines._pb import tokenspeed_pb2
from gateway_sidecar.engines.dialect import Engine, GrpcDialect, Rpc, loads_of
from gateway_sidecar.engines.fields import Fields, dp_size, nested, port, started_at, text, worker_type_by_mode

NAME = "tokenspeed"
SERVICE = "tokenspeed.grpc.scheduler.TokenSpeedScheduler"
ENCODER_SERVICE = "tokenspeed.grpc.encoder.TokenSpeedEncoder"

_HAS_BOOTSTRAP = (WorkerType.PREFILL, WorkerType.ENCODE)


def read_grpc(server_info: Fields, model_info: Fields) -> EngineFacts | Unknown:
    """Read both info answers."""
    server_args = nested(server_info, "server_args")
    if not server_args:
        return Unknown("says it is TokenSpeed, but GetServerInfo has no server_args and so tells no role")
    worker_type = worker_type_by_mode(server_args)
    if isinstance(worker_type, Unknown):
        return worker_type
    bootstrap_port = port(server_args, "disaggregation_bootstrap_port")
    if worker_type is WorkerType.PREFILL and bootstrap_port is None:
        return Unknown("TokenSpeed prefill without a usable disaggregation_bootstrap_port")
    return EngineFacts(
        runtime_type=NAME,
        connection_mode=ConnectionMode.GRPC,
        worker_type=worker_type,
        model=text(model_info, "served_model_name") or text(model_info, "model_path"),
        version=text(server_info, "tokenspeed_version"),
        bootstrap_port=bootstrap_port if worker_type in _HAS_BOOTSTRAP else None,
        dp_size=dp_size(server_args, "dp_size"),
        instance=started_at(server_info),
    )


GRPC = GrpcDialect(
    services=frozenset({SERVICE, ENCODER_SERVICE}),
    server_info=Rpc(
        f"/{SERVICE}/GetServerInfo", tokenspeed_pb2.GetServerInfoRequest, tokenspeed_pb2.GetServerInfoResponse
    ),
    model_info=Rpc(f"/{SERVICE}/GetModelInfo", tokenspeed_pb2.GetModelInfoRequest, tokenspeed_pb2.GetModelInfoResponse),
    read=read_grpc,
    loads=loads_of(SERVICE),
)

ENGINE = Engine(NAME, grpc=GRPC)
