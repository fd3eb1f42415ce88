"""What the engines' gRPC services have in common; each engine's file says how it differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, ClassVar

import grpc
from google.protobuf.message import Message
from smg_grpc_proto.generated import common_pb2

from examples.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID, SMALLEST_VOCABULARY
from examples.simulated import tokenizer
from examples.simulated.bootstrap import Rendezvous
from examples.simulated.core import DEFAULT_MAX_TOKENS, EngineCore, Health, InferenceError
from examples.simulated.ledger import RecordedRequest, RequestAbortedError

CHUNK_BYTES = 64 * 1024
CONTEXT_LENGTH = 4096

Rpc = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What one Generate request wants."""

    request_id: str
    prompt_tokens: int
    max_tokens: int
    stream: bool


class EngineService:
    """One engine's service. `offers_health` covers grpc.health.v1 and reflection v1alpha."""

    messages: ClassVar[ModuleType]
    service: ClassVar[str]
    offers_health: ClassVar[bool] = True
    abort_answer: ClassVar[Mapping[str, Any]] = {"success": True}

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._aborts: dict[str, asyncio.Event] = {}

    @property
    def descriptor(self) -> Any:
        """The service's descriptor; its `full_name` is the name on the wire."""
        return self.messages.DESCRIPTOR.services_by_name[self.service]

    @property
    def further(self) -> tuple[Any, Mapping[str, Rpc]] | None:
        """Another service that the engine has, by its descriptor; then it is the one that reflection shows."""
        return None

    @property
    def rpcs(self) -> Mapping[str, Rpc]:
        """What is answered, by method name; the service's other methods are UNIMPLEMENTED."""
        return {
            "Generate": self.generate,
            "Abort": self.abort,
            "HealthCheck": self.health_check,
            "GetModelInfo": self.model_info,
            "GetServerInfo": self.server_info,
            "GetLoads": self.loads,
            "GetTokenizer": self.get_tokenizer,
        }

    def asked(self, request: Any) -> Asked:
        """Read a GenerateRequest."""
        raise NotImplementedError

    def rendezvous(self, request: Any) -> Rendezvous | None:
        """Where prefill and decode meet for a GenerateRequest, where the engine has such a thing."""
        return None

    def chunk(self, asked: Asked, ids: list[int], made: int) -> Message:
        """A GenerateResponse with the next ids, after `made` tokens."""
        chunk = self.messages.GenerateStreamChunk(
            token_ids=ids, prompt_tokens=asked.prompt_tokens, completion_tokens=made
        )
        return self.response(asked, chunk=chunk)

    def complete(self, asked: Asked, request: Any, ids: list[int], made: int) -> Message:
        """The last GenerateResponse; `ids` are all of them, or none where they were streamed."""
        complete = self.messages.GenerateComplete(
            output_ids=ids,
            finish_reason="length",
            prompt_tokens=asked.prompt_tokens,
            completion_tokens=made,
            **self.completion_extras(request),
        )
        return self.response(asked, complete=complete)

    def completion_extras(self, request: Any) -> dict[str, Any]:
        """More fields of the engine's GenerateComplete."""
        return {}

    def response(self, asked: Asked, **part: Message) -> Message:
        """Wrap a chunk or completion."""
        message: Message = self.messages.GenerateResponse(request_id=asked.request_id, **part)
        return message

    async def model_info(self, request: Any, context: Any) -> Message:
        """GetModelInfo."""
        raise NotImplementedError

    async def server_info(self, request: Any, context: Any) -> Message:
        """GetServerInfo; it is answered while the engine loads, too."""
        raise NotImplementedError

    async def generate(self, request: Any, context: Any) -> AsyncIterator[Message]:
        """Answer one request; an answer's token is a word, although the tokenizer makes several ids of it."""
        asked = self.asked(request)
        aborted = self._aborts[asked.request_id] = asyncio.Event()
        recorded = RecordedRequest(f"{self.descriptor.full_name}/Generate", request)
        ids: list[int] = []
        made = 0
        try:
            with self.core.ledger.inference(recorded):
                self.core.begin_inference()
                await self.core.meet(self.rendezvous(request))
                async for token in self.core.tokens(asked.max_tokens):
                    if aborted.is_set():
                        raise RequestAbortedError
                    made += 1
                    new_ids = tokenizer.encode(token)
                    if asked.stream:
                        yield self.chunk(asked, new_ids, made)
                    else:
                        ids += new_ids
                yield self.complete(asked, request, ids, made)
                self.core.ledger.spent(asked.prompt_tokens, made)
        except RequestAbortedError:
            await context.abort(grpc.StatusCode.CANCELLED, "aborted by its client")
        except InferenceError as failure:
            await context.abort(grpc.StatusCode.INTERNAL, str(failure))
        finally:
            self._aborts.pop(asked.request_id, None)

    async def abort(self, request: Any, context: Any) -> Message:
        """Give up the requests named."""
        for request_id in self.aborted_ids(request):
            if request_id in self._aborts:
                self._aborts[request_id].set()
        message: Message = self.messages.AbortResponse(**self.abort_answer)
        return message

    def aborted_ids(self, request: Any) -> list[str]:
        """The requests that an AbortRequest names."""
        return [request.request_id]

    async def health_check(self, request: Any, context: Any) -> Message:
        """The engine's own health RPC."""
        healthy = self.core.health is Health.SERVING
        message: Message = self.messages.HealthCheckResponse(
            healthy=healthy, message="OK" if healthy else "Engine is not alive"
        )
        return message

    async def loads(self, request: Any, context: Any) -> Message:
        """One rank's load: what is in flight, and nothing waiting."""
        said = self.core.counters
        load = self.messages.SchedulerLoad(
            num_running_reqs=said.running,
            num_total_reqs=said.running,
            num_used_tokens=said.tokens,
            max_total_num_tokens=CONTEXT_LENGTH,
            max_running_requests=256,
        )
        message: Message = self.messages.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(),
            version=self.core.spec.version,
            dp_rank_count=1,
            loads=[load],
        )
        return message

    async def get_tokenizer(self, request: Any, context: Any) -> AsyncIterator[Message]:
        """The tokenizer's archive in pieces; the last one carries its SHA-256."""
        data, sha256 = tokenizer.bundle(vision=self.core.spec.vision)
        for start in range(0, len(data), CHUNK_BYTES):
            last = start + CHUNK_BYTES >= len(data)
            yield common_pb2.GetTokenizerChunk(data=data[start : start + CHUNK_BYTES], sha256=sha256 if last else "")


def tokens_wanted(params: Any, name: str) -> int:
    """The optional limit `name` of a sampling message."""
    return int(getattr(params, name)) if params.HasField(name) else DEFAULT_MAX_TOKENS


def model_facts(core: EngineCore) -> dict[str, Any]:
    """The GetModelInfo fields that most engines fill in."""
    return {
        "model_path": core.spec.model,
        "served_model_name": core.spec.model,
        "max_context_length": CONTEXT_LENGTH,
        "max_req_input_len": CONTEXT_LENGTH,
        "vocab_size": SMALLEST_VOCABULARY,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "eos_token_ids": [EOS_ID],
        "bos_token_id": BOS_ID,
        "pad_token_id": PAD_ID,
    }
