"""`mlx.grpc.engine.MlxEngine`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from google.protobuf.message import Message
from smg_grpc_proto.generated import mlx_engine_pb2

from examples.simulated.services.base import Asked, EngineService, model_facts, tokens_wanted


class MlxService(EngineService):
    """Has no GetLoads."""

    messages = mlx_engine_pb2
    service = "MlxEngine"
    abort_answer: ClassVar[Mapping[str, Any]] = {}

    def asked(self, request: Any) -> Asked:
        return Asked(
            request.request_id,
            len(request.tokenized.input_ids),
            tokens_wanted(request.sampling_params, "max_tokens"),
            request.stream,
        )

    def response(self, asked: Asked, **part: Message) -> Message:
        message: Message = mlx_engine_pb2.GenerateResponse(**part)
        return message

    def aborted_ids(self, request: Any) -> list[str]:
        return list(request.request_ids)

    async def model_info(self, request: Any, context: Any) -> Message:
        message: Message = mlx_engine_pb2.GetModelInfoResponse(is_generation=True, **model_facts(self.core))
        return message

    async def server_info(self, request: Any, context: Any) -> Message:
        message: Message = mlx_engine_pb2.GetServerInfoResponse(
            server_type="mlx-grpc",
            uptime_seconds=self.core.uptime_s,
            active_requests=self.core.ledger.in_flight,
        )
        return message
