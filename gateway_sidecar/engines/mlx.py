"""MLX behind gRPC (`smg-grpc-servicer[mlx]`): always a regular worker."""

from __future__ import annotations

from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Unknown
from gateway_sidecar.engines._pb import mlx_pb2
from gateway_sidecar.engines.dialect import Engine, GrpcDialect, Rpc
from gateway_sidecar.engines.fields import Fields, text

NAME = "mlx"
SERVICE = "mlx.grpc.engine.MlxEngine"


def read_grpc(server_info: Fields, model_info: Fields) -> EngineFacts | Unknown:
    """Read both info answers; the server tells no version."""
    if text(server_info, "server_type") != "mlx-grpc":
        return Unknown("says it is MLX, but GetServerInfo does not say mlx-grpc")
    return EngineFacts(
        runtime_type=NAME,
        connection_mode=ConnectionMode.GRPC,
        model=text(model_info, "served_model_name") or text(model_info, "model_path"),
    )


GRPC = GrpcDialect(
    services=frozenset({SERVICE}),
    server_info=Rpc(f"/{SERVICE}/GetServerInfo", mlx_pb2.GetServerInfoRequest, mlx_pb2.GetServerInfoResponse),
    model_info=Rpc(f"/{SERVICE}/GetModelInfo", mlx_pb2.GetModelInfoRequest, mlx_pb2.GetModelInfoResponse),
    read=read_grpc,
)

ENGINE = Engine(NAME, grpc=GRPC)
