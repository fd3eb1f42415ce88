"""Clients of a service address."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import suppress
from pathlib import Path

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.system.gateway import Gateway

_prompts = itertools.count()


async def ask(gateway: Gateway, model: str, *, stream: bool, service: str = "chat", tokens: int = 4) -> str:
    """One chat through the service address with the `openai` client; the answer's text."""
    async with AsyncOpenAI(base_url=f"{gateway.url(service)}/v1", api_key="none", max_retries=0) as client:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
        if not stream:
            answer = await client.chat.completions.create(model=model, messages=messages, max_tokens=tokens)
            return answer.choices[0].message.content or ""
        parts: list[str] = []
        chunks = await client.chat.completions.create(model=model, messages=messages, max_tokens=tokens, stream=True)
        async for chunk in chunks:
            parts += [choice.delta.content or "" for choice in chunk.choices]
        assert len([part for part in parts if part]) > 1, "the stream came in one piece"
        return "".join(parts)


async def stream_chat(
    gateway: Gateway, tokens: int, started: asyncio.Event | None = None, model: str = "tiny", key: str | None = None
) -> str:
    """One streamed chat; raises if it does not run to its very end."""
    # A prompt of its own, so that cache-aware routing spreads the chats.
    messages = [{"role": "user", "content": f"{next(_prompts)} {'x' * 50}"}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, "stream": True}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    text, done = "", False
    async with (
        gateway.client() as session,
        session.post(f"{gateway.url()}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        async for raw in response.content:
            line = raw.decode().strip().removeprefix("data: ")
            if line == "[DONE]":
                done = True
            elif line:
                chunk = json.loads(line)
                assert "choices" in chunk, f"{line} after {text!r}"
                text += chunk["choices"][0]["delta"].get("content") or ""
                if started is not None:
                    started.set()
    assert done, f"the stream broke off after {text!r}"
    return text


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
    """Carries one connection on to a Unix socket, as a forward does; closes it if nobody is there."""
    try:
        far_reader, far_writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        writer.close()
        return

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
        target.close()

    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
