"""What people use: the `openai`, `anthropic` and LiteLLM clients, each with one address for all models."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import anthropic
import openai
import pytest
from anthropic.types import MessageParam
from openai.types.chat import ChatCompletionUserMessageParam

from examples.simulated import EngineKind
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import service_of
from tests.system.test_shared_address import Record, record, shared

__all__ = ["record"]

LITELLM = Path(os.environ.get("LITELLM", Path(__file__).parents[2] / ".venv-litellm" / "bin" / "python"))
MESSAGES: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "hello"}]
PROMPT: list[MessageParam] = [{"role": "user", "content": "hello"}]


async def test_the_clients_of_openai_and_anthropic(
    make_gateway: MakeGateway, engine: StartEngine, record: Record
) -> None:
    """Chats, streams, lists, audio and errors, at one address with three services, an alias and a fallback."""
    models = {
        "tiny": "chat",
        "gpt-4o": {"service": "chat", "model": "tiny"},
        "claude-here": {"service": "code", "model": "large"},
        "huge": {"service": "audio", "fallback": {"service": "chat", "model": "tiny"}},
        "canary": {
            "services": [{"service": "chat", "model": "tiny", "weight": 9}, {"service": "code", "model": "large"}]
        },
        "whisper-1": {"service": "audio", "model": "whisper-large"},
    }
    gateway = shared(make_gateway, models, services=("chat", "code", "audio"))
    gateway.settings["services"][2]["router"] = {"type": "none"}
    await gateway.start()
    await engine(gateway.socket("r1", "chat"), EngineKind.SGLANG_HTTP, model="tiny")
    await engine(gateway.socket("r1", "code"), EngineKind.VLLM_GRPC, model="large")
    await gateway.until(lambda s: not any(service_of(s, it)["missing"] for it in ("chat", "code")))
    url = gateway.url("api")
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert {it.id async for it in client.models.list()} == set(models)
        assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"
        for model in ("tiny", "gpt-4o"):
            answer = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4)
            assert answer.choices[0].message.content
            stream = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4, stream=True)
            assert len([chunk async for chunk in stream]) > 1
        said = await client.chat.completions.create(model="huge", messages=MESSAGES, max_tokens=4)
        assert said.model == "tiny", "audio has no replica yet, and the fallback answers"
        asked = [client.chat.completions.create(model="canary", messages=MESSAGES, max_tokens=1) for _ in range(40)]
        found = [(await each).model for each in asked]
        assert 1 <= found.count("large") <= 8
        assert found.count("tiny") + found.count("large") == 40
        audio = await record(gateway, "audio", "whisper-large")
        await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF" * 1000))
        path, form = audio.asked[-1]
        assert path == "/v1/audio/transcriptions"
        assert b"whisper-large" in form
        assert b"whisper-1" not in form
        with pytest.raises(openai.NotFoundError) as refused:
            await client.chat.completions.create(model="gpt-5", messages=MESSAGES)
        assert refused.value.code == "model_not_found"
        assert "canary, claude-here, gpt-4o, huge, tiny, whisper-1" in refused.value.message
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as claude:
        spoken = await claude.messages.create(model="claude-here", messages=PROMPT, max_tokens=4)
        assert spoken.content
        async with claude.messages.stream(model="claude-here", messages=PROMPT, max_tokens=4) as events:
            assert await events.get_final_text()
        with pytest.raises(anthropic.NotFoundError, match="canary, claude-here, gpt-4o, huge"):
            await claude.messages.create(model="claude-elsewhere", messages=PROMPT, max_tokens=4)


@pytest.mark.timeout(600)  # To import LiteLLM takes 7 s of CPU.
async def test_the_client_of_litellm(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The same by LiteLLM, as of OpenAI and as of Anthropic: one address, three services, one of which has nobody."""
    if not LITELLM.exists():
        pytest.skip("LiteLLM is not installed; `make test` installs it into .venv-litellm")
    models = {
        "tiny": "chat",
        "large": "code",
        "gpt-4o": {"service": "chat", "model": "tiny"},
        "claude-here": {"service": "code", "model": "large"},
        "huge": {"service": "next", "fallback": {"service": "code", "model": "large"}},
        "canary": {
            "services": [{"service": "chat", "model": "tiny", "weight": 9}, {"service": "code", "model": "large"}]
        },
    }
    gateway = shared(make_gateway, models, services=("chat", "code", "next"))
    await gateway.start()
    await engine(gateway.socket("r1", "chat"), EngineKind.SGLANG_HTTP, model="tiny")
    await engine(gateway.socket("r1", "code"), EngineKind.VLLM_GRPC, model="large")
    await gateway.until(lambda s: not any(service_of(s, it)["missing"] for it in ("chat", "code")))
    client = await asyncio.create_subprocess_exec(
        str(LITELLM),
        str(Path(__file__).with_name("ask_by_litellm.py")),
        gateway.url("api"),
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await client.communicate()
    got = json.loads(output.splitlines()[-1])
    assert [got[it] for it in ("tiny", "large", "gpt-4o", "huge")] == ["tiny", "large", "tiny", "large"]
    assert 1 <= got["canary"].count("large") <= 6, "2 of 20, give or take four"
    assert got["stream"] > 1
    assert got["claude"]
    assert "canary, claude-here, gpt-4o, huge, large, tiny" in got["unknown"]
    assert "model_not_found" in got["long"] or "does not exist at this address" in got["long"]
    assert len(got["long"]) < 1000
