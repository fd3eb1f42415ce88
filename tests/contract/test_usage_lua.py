"""How nginx asks for the usage of streams, reads it, and hides it: any body, and a stream in any pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from http.client import HTTPMessage
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.contract.lua_in_nginx import LuaInNginx, lua_in_nginx

_SCRIPTS = ("access_log.lua", "bounds.lua", "models.lua", "tokens.lua", "usage.lua")

# Answers a body with the one that would go on.
_QUESTION = """
    ngx.req.read_body()
    local ffi, usage = require "ffi", require "usage"
    local body = ngx.req.get_body_data() or ""
    local words, from, to = usage.question(ffi.cast("const uint8_t *", body), #body)
    if words then body = string.sub(body, 1, from) .. words .. string.sub(body, to + 1) end
    ngx.print(body)
"""

# Answers a stream as a client gets it that did not ask, in pieces of these lengths, each with what it got so far.
_CUT = """
    ngx.req.read_body()
    local usage = require "usage"
    local text, held, within, at = ngx.req.get_body_data() or "", "", false, 1
    local got = {}
    for length in string.gmatch(ngx.var.http_x_pieces .. " 100000000", "%d+") do
        local now
        now, held, within = usage.cut(held .. string.sub(text, at, at + length - 1), within)
        got[#got + 1] = now
        at = at + length
        ngx.header["X-Got"] = (ngx.header["X-Got"] or "") .. #table.concat(got) .. " "
    end
    ngx.header["X-Tokens"] = ngx.var.gateway_tokens_in .. " " .. ngx.var.gateway_tokens_out
    ngx.print(table.concat(got), held)
"""

# Says which tokens an answer in pieces says.
_READ = """
    ngx.req.read_body()
    local text, at = ngx.req.get_body_data() or "", 1
    for length in string.gmatch(ngx.var.http_x_pieces .. " 100000000", "%d+") do
        ngx.print(string.sub(text, at, at + length - 1))
        ngx.flush(true)
        at = at + length
    end
"""


_MAPS = """
    map "" $gateway_tokens_in { default null; }
    map "" $gateway_tokens_out { default null; }
    map "$gateway_tokens_in$gateway_tokens_out" $gateway_named { default ""; }
"""
_READS = """
    require("tokens").answers()
    if ngx.arg[2] then ngx.arg[1] = "\\nsaid:" .. ngx.var.gateway_tokens_in .. " " .. ngx.var.gateway_tokens_out end
"""


class Reader:
    """The scripts, each at a path of its own."""

    def __init__(self, nginx: LuaInNginx) -> None:
        self._nginx = nginx

    def ask(self, path: str, body: bytes, pieces: Sequence[int] = ()) -> tuple[bytes, HTTPMessage]:
        """The answer's body and head."""
        return self._nginx.ask(path, body, {"X-Pieces": " ".join(map(str, pieces))})


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    directory = tmp_path_factory.mktemp("lua")
    own = {"question_.lua": _QUESTION, "cut_.lua": _CUT, "read_.lua": _READ, "reads_.lua": _READS}
    locations = f"""
        location /question {{ content_by_lua_file {directory}/question_.lua; }}
        location /cut {{ content_by_lua_file {directory}/cut_.lua; }}
        location /read {{
            content_by_lua_file {directory}/read_.lua;
            body_filter_by_lua_file {directory}/reads_.lua;
        }}
    """
    with lua_in_nginx(directory, *_SCRIPTS, own=own, locations=locations, maps=_MAPS) as nginx:
        yield Reader(nginx)


# -- the question

_KEYS = st.sampled_from(["stream", "str\\u0065am", "stream_options", "streams", "include_usage", "model", "x"])
_SPACE = st.sampled_from(["", " ", "\n\t "])
_SCALARS = st.sampled_from(["true", "false", "null", "0", '"true"', '"a \\" } ,"', "1.5e3"])


def _object(pairs: list[tuple[str, str, str]]) -> str:
    return "{" + ",".join(f'{space}"{key}"{space}:{space}{value}{space}' for space, key, value in pairs) + "}"


def _objects(values: st.SearchStrategy[str], keys: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    unique = st.lists(st.tuples(_SPACE, keys, values), max_size=4, unique_by=lambda it: json.loads(f'"{it[1]}"'))
    return unique.map(_object)


_OPTIONS = _objects(_SCALARS, st.sampled_from(["include_usage", "include\\u005fusage", "continuous_usage_stats", "x"]))
_VALUES = _SCALARS | _OPTIONS | st.lists(_OPTIONS, max_size=2).map(lambda it: f"[{','.join(it)}]")
_BODIES = _objects(_VALUES, _KEYS)


def with_question(ask: dict[str, Any]) -> dict[str, Any]:
    """What is to go on."""
    options = ask.get("stream_options")
    if ask.get("stream") is not True or not (options is None or isinstance(options, dict)):
        return ask
    options = dict(options or {})
    if all(options.get("include_usage") is not it for it in (None, False)):
        return ask
    if "continuous_usage_stats" in options:
        options["continuous_usage_stats"] = False
    return ask | {"stream_options": options | {"include_usage": True}}


@given(body=_BODIES)
@example(body='{"stream":true}')
@example(body='{"stream" : true , "stream_options" : { } }')
@example(body='{"stream":true,"stream_options":{"include_usage":0}}')
def test_a_stream_is_asked_for_its_usage_and_nothing_else_changes(reader: Reader, body: str) -> None:
    """As engines' parsers read it, with each member once; what is no stream goes on byte for byte."""
    got, _ = reader.ask("/question", body.encode())
    before = json.loads(body)
    wanted = with_question(before)
    assert json.loads(got) == wanted
    assert json.loads(got, object_pairs_hook=len) == len(wanted)
    if wanted == before:
        assert got == body.encode()


@given(body=st.binary(max_size=60) | _BODIES.map(lambda it: it.encode()[:-1]))
def test_what_is_no_json_goes_on_as_it_came(reader: Reader, body: bytes) -> None:
    """The engine refuses it, and says why."""
    try:
        json.loads(body)
    except ValueError:
        assert reader.ask("/question", body)[0] == body


# -- hiding

_CONTENTS = st.text(max_size=20) | st.sampled_from(['"usage":{"completion_tokens":9}', '"choices":[]', "\n\n", "\\"])


def _chunk(choices: list[Any], **more: Any) -> dict[str, Any]:
    return {"id": "1", "object": "chat.completion.chunk", "choices": choices, **more}


_TOKENS = _CONTENTS.map(lambda text: _chunk([{"index": 0, "delta": {"content": text}}]))
_NULLS = _CONTENTS.map(lambda text: _chunk([{"index": 0, "delta": {"content": text}}], usage=None))
_USAGES = st.integers(0, 10**6).map(
    lambda it: _chunk([], usage={"prompt_tokens": 7, "completion_tokens": it, "completion_tokens_details": {"x": [1]}})
)
_FIRST = st.just(_chunk([], prompt_filter_results=[]))
_LINES = st.sampled_from([b"\n\n", b"\r\n\r\n"])


@given(st.data())
def test_a_usage_that_nobody_asked_for_is_left_out_whatever_the_pieces(reader: Reader, data: st.DataObject) -> None:
    """All else passes byte for byte, and an event as soon as it is whole. What the usage says is noted."""
    end = data.draw(_LINES)
    compact = data.draw(st.booleans())
    chunks = data.draw(st.lists(_TOKENS | _NULLS | _FIRST, max_size=6)) + data.draw(st.lists(_USAGES, max_size=2))
    events: list[tuple[dict[str, Any] | None, bytes]] = []
    for chunk in chunks:
        text = json.dumps(chunk, separators=(",", ":") if compact else None)
        events.append((chunk, b"data: " + text.encode() + end))
    events += [(None, b": ping" + end), (None, b"data: [DONE]" + end)]
    stream = b"".join(text for _, text in events)
    pieces = data.draw(st.lists(st.integers(1, 80), max_size=30))
    got, head = reader.ask("/cut", stream, pieces)

    def is_hidden(chunk: dict[str, Any] | None) -> bool:
        return chunk is not None and not chunk["choices"] and bool(chunk.get("usage"))

    assert got == b"".join(text for chunk, text in events if not is_hidden(chunk))
    hidden = [chunk for chunk, _ in events if chunk is not None and is_hidden(chunk)]
    said = f"7 {hidden[-1]['usage']['completion_tokens']}" if hidden else "null null"
    assert head["X-Tokens"] == said
    at = 0
    for length, passed in zip(pieces, map(int, head["X-Got"].split()), strict=False):
        at += length
        ends, due = 0, 0
        for each, event in events:
            ends += len(event)
            due += len(event) if ends <= at and not is_hidden(each) else 0
        assert passed >= due


def test_a_long_event_does_not_wait_for_its_end(reader: Reader) -> None:
    """One that cannot be the usage passes as it comes, and what comes behind it is looked at again."""
    long = b"data: " + json.dumps(_chunk([{"index": 0, "delta": {"content": "x" * 200_000}}])).encode() + b"\n\n"
    usage = b"data: " + json.dumps(_chunk([], usage={"prompt_tokens": 1, "completion_tokens": 2})).encode() + b"\n\n"
    got, head = reader.ask("/cut", long + usage + b"data: [DONE]\n\n", [100_000, 50_000])
    assert got == long + b"data: [DONE]\n\n"
    assert head["X-Got"].split()[:2] == ["100000", "150000"]
    assert head["X-Tokens"] == "1 2"


# -- reading

_BETWEEN = st.sampled_from(["", " ", "\n  "])


@given(
    numbers=st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)),
    pieces=st.lists(st.integers(1, 60), max_size=30),
    space=_BETWEEN,
    names=st.sampled_from([("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")]),
    behind=st.booleans(),
)
def test_tokens_are_read_whatever_the_pieces(
    reader: Reader, numbers: tuple[int, int], pieces: list[int], space: str, names: tuple[str, str], behind: bool
) -> None:
    """Of the answer's own `usage`, and of nothing that a client has put there."""
    details = {"prompt_tokens_details": {"cached_tokens": 5}}
    usage = {**details, names[0]: numbers[0], names[1]: numbers[1], "total_tokens": 3}
    forged = {"tools": [{"prompt_tokens": 1, "output_tokens": 2}], "text": '"usage":{"prompt_tokens":3}'}
    whole = {**forged, "usage": usage, "last": 1} if behind else {"usage": usage, **forged}
    text = json.dumps(whole, separators=(f"{space},{space}", f":{space}"))
    got, _ = reader.ask("/read", text.encode(), pieces)
    assert got.decode().endswith(f"said:{numbers[0]} {numbers[1]}"), text


@given(
    numbers=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    pieces=st.lists(st.integers(1, 200), max_size=12),
    end=_LINES,
)
@example(numbers=(3, 2), pieces=[], end=b"\n\n")
def test_tokens_that_two_events_say_are_read_whatever_the_pieces(
    reader: Reader, numbers: tuple[int, int], pieces: list[int], end: bytes
) -> None:
    """Anthropic's API says the prompt's in the first event and the answer's in the last: one read may have both."""
    events = [
        {"type": "message_start", "message": {"usage": {"input_tokens": numbers[0], "output_tokens": 1}}},
        {"type": "content_block_delta", "delta": {"text": '"usage": {"input_tokens": 9}'}},
        {"type": "message_delta", "usage": {"output_tokens": numbers[1]}},
        {"type": "message_stop"},
    ]
    stream = b"".join(b"data: " + json.dumps(event).encode() + end for event in events)
    got, _ = reader.ask("/read", stream, pieces)
    assert got.decode().endswith(f"said:{numbers[0]} {numbers[1]}")
