"""`sglang.grpc.scheduler.SglangScheduler`."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from smg_grpc_proto.generated import sglang_scheduler_pb2

from examples.simulated.bootstrap import Rendezvous
from examples.simulated.pages import answer, sglang_server_args
from examples.simulated.services.base import (
    CONTEXT_LENGTH,
    Asked,
    EngineService,
    model_facts,
    tokens_wanted,
)


class SglangService(EngineService):
    """Leaves `served_model_name` empty, as the real one."""

    messages = sglang_scheduler_pb2
    service = "SglangScheduler"
    rendezvous_field = "disaggregated_params"

    def asked(self, request: Any) -> Asked:
        return Asked(
            request.request_id,
            len(request.tokenized.input_ids),
            tokens_wanted(request.sampling_params, "max_new_tokens"),
            request.stream,
        )

    def rendezvous(self, request: Any) -> Rendezvous | None:
        if not request.HasField(self.rendezvous_field):
            return None
        params = getattr(request, self.rendezvous_field)
        return Rendezvous(params.bootstrap_host, params.bootstrap_port, params.bootstrap_room)

    async def model_info(self, request: Any, context: Any) -> Message:
        facts = model_facts(self.core) | {"served_model_name": ""}
        message: Message = sglang_scheduler_pb2.GetModelInfoResponse(
            is_generation=True, tokenizer_path=self.core.spec.model, weight_version="default", **facts
        )
        return message

    async def server_info(self, request: Any, context: Any) -> Message:
        message: Message = sglang_scheduler_pb2.GetServerInfoResponse(
            server_args=server_args_struct(sglang_server_args(self.core)),
            scheduler_info=server_args_struct(answer("sglang_scheduler_info")),
            sglang_version=self.core.spec.version,
            server_type="grpc",
            uptime_seconds=self.core.uptime_s,
            start_time=Timestamp(seconds=self.core.instance),
            max_total_num_tokens=CONTEXT_LENGTH,
        )
        return message


def server_args_struct(values: dict[str, Any]) -> Struct:
    """Plain values as a Struct, where every number is a float."""
    struct = Struct()
    struct.update(values)
    return struct
