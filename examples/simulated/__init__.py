"""Engines without models, for this project's tests, benchmarks and demo.

Each one serves on a Unix socket and answers as a real SGLang, vLLM, TensorRT-LLM, MLX, TokenSpeed, Dynamo or
plain OpenAI-compatible server does: what it is, whether it is healthy, its tokenizer, and inference, over
HTTP or gRPC.

    engine = await start_engine(EngineSpec(kind=EngineKind.VLLM_GRPC, socket=path), Behaviour(load_s=3))
    engine.behave(hang=True)
    await engine.until(lambda seen: seen.aborted == 1)
    await engine.stop()

Simulated: the answers that a probe and a router read, with the roles of prefill and decode; loading, dying,
hanging and lying (`Behaviour`); streams at a chosen pace. Every inference answer begins with the engine's
name, so a test can tell which replica spoke. The tokenizer is a real one, so a chat through a real router
really is encoded and decoded.

Not simulated: a model. There is no KV cache and none is transferred; prefill and decode exchange and record
the parameters that a router passes between them, and SGLang's meet over TCP where they are told to
(`bootstrap.py`). Stop strings, sampling, tools, log-probabilities, embeddings, several choices, KV events
and LoRA are left out; an answer is always exactly as long as it may be. SGLang's real `/server_info` has
some 550 keys, here are those that anybody reads. TensorRT-LLM, TokenSpeed and Dynamo answer after their
sources, not after observation.
"""

from __future__ import annotations

from examples.simulated.engine import SimulatedEngine, start_engine
from examples.simulated.ledger import Ledger, RecordedRequest
from examples.simulated.options import Behaviour, EngineKind, EngineSpec, Lie, Role

__all__ = [
    "Behaviour",
    "EngineKind",
    "EngineSpec",
    "Ledger",
    "Lie",
    "RecordedRequest",
    "Role",
    "SimulatedEngine",
    "start_engine",
]
