"""Inference over HTTP: OpenAI's chat and text completions and SGLang's own `/generate`, streamed or whole."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from examples.simulated.core import DEFAULT_MAX_TOKENS, EngineCore

Json = dict[str, Any]


@dataclass
class Answer:
    """One answer in the making. Subclasses say how its parts look on the wire."""

    core: EngineCore
    ask: Json
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: list[str] = field(default_factory=list)

    @property
    def max_tokens(self) -> int:
        asked = self.ask.get("max_completion_tokens") or self.ask.get("max_tokens")
        return int(asked or DEFAULT_MAX_TOKENS)

    @property
    def prompt(self) -> str:
        raise NotImplementedError

    def chunk(self, token: str) -> Json:
        """The event for a token that has just been added to `tokens`."""
        raise NotImplementedError

    def ending(self) -> Json | None:
        """The event that says why it ends, if that is an event of its own."""
        raise NotImplementedError

    def last_usage(self) -> Json | None:
        """The event that says the stream's usage, if its client asked for that."""
        return None

    def whole(self) -> Json:
        """The answer in one piece."""
        raise NotImplementedError

    @property
    def usage(self) -> Json:
        prompt = len(self.prompt.split())
        made = len(self.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    def _openai_whole(self, kind: str, choice: Json) -> Json:
        handover = self.core.kv_handover(self.ask.get("kv_transfer_params") or {}, self.identity)
        more = {} if handover is None else {"kv_transfer_params": handover}
        return self._openai(kind, choice | {"finish_reason": "length"}, usage=self.usage, **more)

    def _openai(self, kind: str, choice: Json, **more: Any) -> Json:
        return self._said(kind, [{"index": 0, "logprobs": None} | choice], **more)

    def _said(self, kind: str, choices: list[Json], **more: Any) -> Json:
        return {
            "id": self.identity,
            "object": kind,
            "created": self.created,
            "model": self.ask.get("model", self.core.spec.model),
            "choices": choices,
            **more,
        }

    def _asked_usage(self, kind: str) -> Json | None:
        asks = (self.ask.get("stream_options") or {}).get("include_usage")
        return self._said(kind, [], usage=self.usage) if asks else None


class ChatAnswer(Answer):
    """`/v1/chat/completions`."""

    @property
    def prompt(self) -> str:
        return " ".join(str(message.get("content", "")) for message in self.ask.get("messages", []))

    def chunk(self, token: str) -> Json:
        delta = {"content": token} if len(self.tokens) > 1 else {"role": "assistant", "content": token}
        return self._openai("chat.completion.chunk", {"delta": delta, "finish_reason": None})

    def ending(self) -> Json:
        return self._openai("chat.completion.chunk", {"delta": {}, "finish_reason": "length"})

    def last_usage(self) -> Json | None:
        return self._asked_usage("chat.completion.chunk")

    def whole(self) -> Json:
        message = {"role": "assistant", "content": self.text}
        return self._openai_whole("chat.completion", {"message": message})


class TextAnswer(Answer):
    """`/v1/completions`."""

    @property
    def prompt(self) -> str:
        return str(self.ask.get("prompt", ""))

    def chunk(self, token: str) -> Json:
        return self._openai("text_completion", {"text": token, "finish_reason": None})

    def ending(self) -> Json:
        return self._openai("text_completion", {"text": "", "finish_reason": "length"})

    def last_usage(self) -> Json | None:
        return self._asked_usage("text_completion")

    def whole(self) -> Json:
        return self._openai_whole("text_completion", {"text": self.text})


class GenerateAnswer(Answer):
    """SGLang's `/generate`: each event repeats the text so far."""

    @property
    def max_tokens(self) -> int:
        return int(self.ask.get("sampling_params", {}).get("max_new_tokens") or DEFAULT_MAX_TOKENS)

    @property
    def prompt(self) -> str:
        return str(self.ask.get("text", ""))

    def chunk(self, token: str) -> Json:
        done = len(self.tokens) == self.max_tokens
        return self._native({"type": "length", "length": self.max_tokens} if done else None)

    def ending(self) -> None:
        return None

    def whole(self) -> Json:
        return self._native({"type": "length", "length": self.max_tokens})

    def _native(self, finish_reason: Json | None) -> Json:
        usage = self.usage
        return {
            "text": self.text,
            "meta_info": {
                "id": self.identity,
                "finish_reason": finish_reason,
                "prompt_tokens": usage["prompt_tokens"],
                "completion_tokens": usage["completion_tokens"],
                "cached_tokens": 0,
                "weight_version": "default",
            },
        }


OPENAI_PATHS: Mapping[str, type[Answer]] = {"/v1/chat/completions": ChatAnswer, "/v1/completions": TextAnswer}
NATIVE_PATHS: Mapping[str, type[Answer]] = {"/generate": GenerateAnswer}


async def respond(answer: Answer, request: web.BaseRequest, headers: Mapping[str, str]) -> web.StreamResponse:
    """Answer one inference request, as a stream of events if it asks for one."""
    if answer.ask.get("stream"):
        return await _stream(answer, request, headers)
    async for token in answer.core.tokens(answer.max_tokens):
        answer.tokens.append(token)
    return web.json_response(answer.whole(), headers=headers)


async def _stream(answer: Answer, request: web.BaseRequest, headers: Mapping[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    async for token in answer.core.tokens(answer.max_tokens):
        answer.tokens.append(token)
        await response.write(_event(json.dumps(answer.chunk(token), separators=(",", ":"))))
    for last in (answer.ending(), answer.last_usage()):
        if last is not None:
            await response.write(_event(json.dumps(last, separators=(",", ":"))))
    await response.write(_event("[DONE]"))
    await response.write_eof()
    return response


def _event(payload: str) -> bytes:
    return f"data: {payload}\n\n".encode()
