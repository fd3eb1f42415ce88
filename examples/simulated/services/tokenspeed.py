"""`tokenspeed.grpc.scheduler.TokenSpeedScheduler`, from its proto: SGLang's shape with another name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from smg_grpc_proto.generated import tokenspeed_encoder_pb2, tokenspeed_scheduler_pb2

from examples.simulated.ledger import RecordedRequest
from examples.simulated.options import Role
from examples.simulated.pages import answer, sglang_server_args
from examples.simulated.services.base import CONTEXT_LENGTH, Rpc, model_facts
from examples.simulated.services.sglang import SglangService, server_args_struct


class TokenSpeedService(SglangService):
    """Its own server offers health and reflection like the other engines'."""

    messages = tokenspeed_scheduler_pb2
    service = "TokenSpeedScheduler"
    rendezvous_field = "kv_bootstrap_info"

    @property
    def further(self) -> tuple[Any, Mapping[str, Rpc]] | None:
        """An encode worker answers the scheduler's info calls, and shows only the encoder."""
        if self.core.spec.role is not Role.ENCODE:
            return None
        return tokenspeed_encoder_pb2.DESCRIPTOR.services_by_name["TokenSpeedEncoder"], {"Encode": self.encode}

    async def encode(self, request: Any, context: Any) -> Message:
        """Takes an image; nothing is transferred."""
        with self.core.ledger.inference(RecordedRequest("TokenSpeedEncoder/Encode", request)):
            message: Message = tokenspeed_encoder_pb2.EncodeResponse(accepted=True)
        return message

    async def model_info(self, request: Any, context: Any) -> Message:
        message: Message = tokenspeed_scheduler_pb2.GetModelInfoResponse(
            tokenizer_path=self.core.spec.model, weight_version="default", **model_facts(self.core) | self._sight()
        )
        return message

    async def server_info(self, request: Any, context: Any) -> Message:
        message: Message = tokenspeed_scheduler_pb2.GetServerInfoResponse(
            server_args=server_args_struct(sglang_server_args(self.core)),
            scheduler_info=server_args_struct(answer("sglang_scheduler_info")),
            tokenspeed_version=self.core.spec.version,
            uptime_seconds=self.core.uptime_s,
            start_time=Timestamp(seconds=self.core.instance),
            max_total_num_tokens=CONTEXT_LENGTH,
        )
        return message

    def _sight(self) -> dict[str, Any]:
        if not self.core.spec.vision:
            return {}
        return {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "supports_vision": True,
            "supports_multimodal": True,
            "model_dtype": "float32",
            "multimodal_encoder_dtype": "float32",
        }
