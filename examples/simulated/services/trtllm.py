"""`trtllm.TrtllmService`, from its proto: names of its own, no health service, no reflection."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from smg_grpc_proto.generated import trtllm_service_pb2

from examples.byte_tokenizer import SMALLEST_VOCABULARY
from examples.simulated.core import DEFAULT_MAX_TOKENS, Health
from examples.simulated.services.base import CONTEXT_LENGTH, Asked, EngineService


class TrtllmService(EngineService):
    """Has no GetLoads either."""

    messages = trtllm_service_pb2
    service = "TrtllmService"
    offers_health = False

    def asked(self, request: Any) -> Asked:
        return Asked(
            request.request_id,
            len(request.tokenized.input_token_ids),
            request.max_tokens or DEFAULT_MAX_TOKENS,
            request.streaming,
        )

    def complete(self, asked: Asked, request: Any, ids: list[int], made: int) -> Message:
        complete = trtllm_service_pb2.GenerateComplete(
            output_token_ids=ids,
            finish_reason="length",
            prompt_tokens=asked.prompt_tokens,
            completion_tokens=made,
        )
        return self.response(asked, complete=complete)

    async def health_check(self, request: Any, context: Any) -> Message:
        healthy = self.core.health is Health.SERVING
        message: Message = trtllm_service_pb2.HealthCheckResponse(status="OK" if healthy else "not ready")
        return message

    async def model_info(self, request: Any, context: Any) -> Message:
        message: Message = trtllm_service_pb2.GetModelInfoResponse(
            model_id=self.core.spec.model,
            max_input_len=CONTEXT_LENGTH,
            max_seq_len=CONTEXT_LENGTH,
            max_batch_size=256,
            vocab_size=SMALLEST_VOCABULARY,
        )
        return message

    async def server_info(self, request: Any, context: Any) -> Message:
        message: Message = trtllm_service_pb2.GetServerInfoResponse(
            version=self.core.spec.version,
            backend="pytorch",
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            context_parallel_size=1,
            world_size=1,
        )
        return message
