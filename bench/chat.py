"""Chats as a client sends them, and what makes an answer whole."""

from __future__ import annotations

import asyncio
import json
import time

from bench.wire import Answer, Connection

MODEL = "tiny"
PATH = "/v1/chat/completions"
_POLL_GAP_S = 0.002


def chat(text: str = "hello", *, tokens: int = 1, stream: bool = False) -> dict[str, object]:
    """One request's body."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "stream": stream,
    }


async def first_200(connection: Connection, *, within_s: float = 30.0) -> float:
    """Ask again and again, 2 ms after each other answer; the monotonic instant of the first 200.

    Raises TimeoutError.
    """
    async with asyncio.timeout(within_s):
        while (await connection.ask("POST", PATH, chat())).status != 200:
            await asyncio.sleep(_POLL_GAP_S)
        return time.monotonic()


def flaw(answer: Answer, *, tokens: int, stream: bool) -> str | None:
    """What is wrong with an answer; None for a whole one: 200, ended as it should, its last token there.

    A simulated engine's tokens are its name and then 1, 2, 3 and so on.
    """
    if answer.status != 200:
        return f"status {answer.status}: {answer.body[:300].decode(errors='replace')}"
    try:
        text, finished = _read_stream(answer.body) if stream else _read_whole(answer.body)
    except (ValueError, KeyError, IndexError) as error:
        return f"{error!r} in {answer.body[-300:].decode(errors='replace')}"
    if not finished:
        return f"it does not end as it should: {answer.body[-300:].decode(errors='replace')}"
    if tokens > 1 and text.split()[-1:] != [str(tokens - 1)]:
        return f"its last token is missing: {text[-100:]}"
    return None


def _read_whole(body: bytes) -> tuple[str, bool]:
    choice = json.loads(body)["choices"][0]
    return choice["message"]["content"] or "", choice["finish_reason"] is not None


def _read_stream(body: bytes) -> tuple[str, bool]:
    events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    text, finished = [], False
    for event in events[:-1]:
        part = json.loads(event)
        if "error" in part:
            raise ValueError(f"an error in the stream: {part['error']}")
        for choice in part["choices"]:
            text.append(choice["delta"].get("content") or "")
            finished |= choice.get("finish_reason") is not None
    return "".join(text), finished and events[-1:] == ["[DONE]"]
