"""`vllm.grpc.engine.VllmEngine`, with the NIXL hand-over of prefill and decode."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from google.protobuf.message import Message
from smg_grpc_proto.generated import vllm_engine_pb2

from examples.simulated.options import Lie
from examples.simulated.services.base import Asked, EngineService, model_facts, tokens_wanted


class VllmService(EngineService):
    """Leaves `server_type` empty and never fills in `is_paused`, as the real one."""

    messages = vllm_engine_pb2
    service = "VllmEngine"
    abort_answer: ClassVar[Mapping[str, Any]] = {}

    def asked(self, request: Any) -> Asked:
        return Asked(
            request.request_id,
            len(request.tokenized.input_ids),
            tokens_wanted(request.sampling_params, "max_tokens"),
            request.stream,
        )

    def response(self, asked: Asked, **part: Message) -> Message:
        message: Message = vllm_engine_pb2.GenerateResponse(**part)
        return message

    def completion_extras(self, request: Any) -> dict[str, Any]:
        params = json.loads(request.kv_transfer_params_json or "{}")
        handover = self.core.kv_handover(params, request.request_id)
        return {} if handover is None else {"kv_transfer_params_json": json.dumps(handover)}

    def aborted_ids(self, request: Any) -> list[str]:
        return list(request.request_ids)

    async def model_info(self, request: Any, context: Any) -> Message:
        message: Message = vllm_engine_pb2.GetModelInfoResponse(
            is_generation=True, tokenizer_path=self.core.spec.model, **model_facts(self.core)
        )
        return message

    async def server_info(self, request: Any, context: Any) -> Message:
        spec = self.core.spec
        lying = self.core.behaviour.lie is Lie.TYPES
        message: Message = vllm_engine_pb2.GetServerInfoResponse(
            kv_connector=spec.kv_connector,
            kv_role="banana" if lying else spec.kv_role,
            kv_engine_id=spec.kv_engine_id,
            data_parallel_size=-3 if lying else spec.dp_size,
            kv_cache_dtype="auto",
            block_size=128,
            model_dtype="torch.float32",
            multimodal_encoder_dtype="float32",
            max_num_seqs=256,
            constrained_decoding_start="first_token",
        )
        return message
