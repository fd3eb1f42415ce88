"""How nginx reads the model that a request names, held to the parsers of routers and engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.contract.lua_in_nginx import LuaInNginx, lua_in_nginx

# A shared address in an nginx whose Lua module reads no body: it raises this error over HTTP/2.
_UNREADABLE = """
    local models, read = require "models", ngx.req.read_body
    models.address("api", "/nowhere", "", "@router")
    models.model("api", "tiny", "", "")
    ngx.req.read_body = function() error("http2 requests are not supported without content-length header") end
    ngx.ctx.read = read
    models.lead("api")
"""

# Which service each of 10,000 requests for a model gets: one digit each.
_CHOICES = """
    local models, found = require "models", {}
    local weights = ngx.var.arg_weights
    models.address("api", "/nowhere", "", "@router")
    local model = {name = "m", total = 0}
    for weight in string.gmatch(weights, "%d+") do
        model[#model + 1] = {service = tostring(#model), sent = "", weight = tonumber(weight)}
        model.total = model.total + tonumber(weight)
    end
    for at = 1, 10000 do found[at] = models.choose(model).service end
    ngx.print(table.concat(found))
"""

# Answers with what it was asked to read: the name, and where it stands, or a word for what is wrong.
_ANSWER = """
    ngx.req.read_body()
    local ffi, models = require "ffi", require "models"
    local body, boundary = ngx.req.get_body_data() or "", ngx.var.http_x_boundary
    local look = models[boundary and "in_form" or "in_json"]
    local name, from, to = look(ffi.cast("const uint8_t *", body), #body, boundary)
    ngx.header["X-Places"] = name and from .. " " .. to or from or "nothing"
    ngx.print(name or "", string.sub(body, 1, 0))
"""

# A list of models, as a key sees it.
_SHORTENED = """
    ngx.req.read_body()
    local models, may = require "models", {}
    for name in string.gmatch(ngx.var.http_x_may or "", "[^,]+") do may[name] = true end
    ngx.print(models.shortened(ngx.req.get_body_data() or "", may))
"""


class Reader:
    """The script, at the paths of its questions."""

    def __init__(self, nginx: LuaInNginx) -> None:
        self._nginx = nginx

    def refusal(self) -> tuple[int, str]:
        """The answer of a shared address that cannot read a body."""
        found, _ = self._nginx.ask("/unreadable", b"{}", status=411)
        return 411, json.loads(found)["error"]["code"]

    def choices(self, *weights: int) -> str:
        """The number of the service that each of 10,000 requests gets."""
        return self._nginx.ask(f"/choices?weights={','.join(map(str, weights))}")[0].decode()

    def ask(self, body: bytes, boundary: str | None = None) -> tuple[bytes, str]:
        """What it finds."""
        found, head = self._nginx.ask("/", body, {"X-Boundary": boundary} if boundary else {})
        return found, head["X-Places"]

    def shortened(self, answer: bytes, *may: str) -> bytes:
        """A list of models as a key sees it that may use these."""
        return self._nginx.ask("/shortened", answer, {"X-May": ",".join(may)})[0]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    directory = tmp_path_factory.mktemp("lua")
    own = {
        "answer.lua": _ANSWER, "unreadable.lua": _UNREADABLE, "choices.lua": _CHOICES, "shortened.lua": _SHORTENED
    }  # fmt: skip
    locations = f"""
        location / {{ content_by_lua_file {directory}/answer.lua; }}
        location /choices {{ content_by_lua_file {directory}/choices.lua; }}
        location /shortened {{ content_by_lua_file {directory}/shortened.lua; }}
        location /unreadable {{
            access_by_lua_file {directory}/unreadable.lua;
            log_by_lua_block {{ ngx.req.read_body = ngx.ctx.read }}
        }}
    """
    with lua_in_nginx(directory, "models.lua", "bounds.lua", "tokens.lua", own=own, locations=locations) as nginx:
        yield Reader(nginx)


def as_parsers_read(body: bytes) -> tuple[bytes, str] | None:
    """What Python's parser, which is most engines' own, makes of it; None if it is no JSON to it."""
    try:
        value = json.loads(body.decode())
    except ValueError:
        return None
    if not isinstance(value, dict):
        return b"", "no_json"
    if "model" not in value:
        return b"", "nothing"
    name = value["model"]
    return (name.encode("utf-8", "surrogatepass"), "") if isinstance(name, str) else (b"", "no_text")


def judge(reader: Reader, body: bytes) -> None:
    """What is JSON is read as parsers read it, and the name stands where it is said to stand."""
    wanted = as_parsers_read(body)
    name, places = reader.ask(body)
    if wanted is None:
        return  # Whatever is made of it, the engine refuses it.
    if wanted[1]:
        assert (name, places) == wanted, body
        return
    begin, end = map(int, places.split())
    # Lone halves of pairs are no text; they are read all the same, and match no name.
    assert name == wanted[0], body
    assert json.loads(body[begin:end]).encode("utf-8", "surrogatepass") == name


_KEYS = st.sampled_from(
    ["model", "mod\\u0065l", "\\u006d\\u006f\\u0064\\u0065\\u006c", "Model", "models", "mode", "", "x"]
)
_TEXTS = st.text(max_size=90).map(json.dumps) | st.text(max_size=90).map(lambda it: json.dumps(it, ensure_ascii=False))
_ESCAPES = st.lists(st.sampled_from(["\\\\", '\\"', "\\u00e9", "\\ud83d\\ude00", "\\ud83d", "\\/", "a", "}", "]", ":"]))
_SCALARS = st.sampled_from(["0", "-1.5e+3", "true", "false", "null", "NaN", "Infinity"])
_SPACE = st.sampled_from(["", " ", "\n\t ", "\r\n"])


def _object(pairs: list[tuple[str, str, str]]) -> str:
    return "{" + ",".join(f'{space}"{key}"{space}:{space}{value}{space}' for space, key, value in pairs) + "}"


_STRINGS = _TEXTS | _ESCAPES.map(lambda it: f'"{"".join(it)}"')
_VALUES = st.recursive(
    _STRINGS | _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda it: f"[{', '.join(it)}]")
        | st.lists(st.tuples(_SPACE, _KEYS, inner), max_size=3).map(_object)
    ),
    max_leaves=12,
)
_OBJECTS = st.lists(st.tuples(_SPACE, _KEYS, _VALUES), max_size=5).map(_object)


@given(body=_OBJECTS)
@example(body='{"model": "' + "\\\\" * 100 + '", "x": "' + 'a\\"' * 200 + '"}')
@example(body='{"x": [' + "1234567890, " * 5000 + '1], "model": "m"}')
@example(body='{"x": ' + "[" * 500 + "]" * 500 + ', "model": "m"}')
def test_the_model_is_the_one_that_parsers_read(reader: Reader, body: str) -> None:
    """Nested ones are none, of two the last counts, escapes are undone."""
    judge(reader, body.encode())


@given(body=_OBJECTS, cut=st.integers(0, 400), put=st.sampled_from(['"', "\\", "{", "}", "[", "]", ",", ":", " ", "x"]))
def test_what_is_not_quite_json_is_never_read_otherwise(reader: Reader, body: str, cut: int, put: str) -> None:
    """A change of one character may make another JSON of it, or none."""
    judge(reader, (body[:cut] + put + body[cut + 1 :]).encode())
    judge(reader, body[:cut].encode())


@given(body=st.binary(max_size=300))
def test_any_bytes_have_an_answer(reader: Reader, body: bytes) -> None:
    """None of them ends nginx."""
    reader.ask(body)
    reader.ask(body, "b")


_FIELDS = st.sampled_from(["model", "file", "prompt", "Model", "models"])


@st.composite
def forms(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Fields and files, some of them with a boundary's beginning in them."""
    pieces = st.lists(st.sampled_from([b"--b", b"\r\n--", b"\r\n", b"--", b"x" * 300, b"\x00", b"model"])).map(b"".join)
    count = draw(st.integers(0, 5))
    return [
        {"name": draw(_FIELDS), "file": draw(st.booleans()), "value": draw(pieces).replace(b"\r\n--b", b"\r\n-b")}
        for _ in range(count)
    ]


@given(parts=forms(), preamble=st.sampled_from([b"", b"\r\n", b"not a part\r\n"]))
def test_the_field_is_the_one_that_parsers_read(reader: Reader, parts: list[dict[str, Any]], preamble: bytes) -> None:
    """Of fields of this name the last counts; a file of this name is none."""
    body = preamble
    for part in parts:
        file = b'; filename="model"' if part["file"] else b""
        body += b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n' % (part["name"].encode(), file)
        body += b"Content-Type: text/plain\r\n\r\n" + part["value"] + b"\r\n"
    body += b"--b--\r\n"
    parsed = BytesParser(policy=HTTP).parsebytes(b'Content-Type: multipart/form-data; boundary="b"\r\n\r\n' + body)
    fields = [it for it in parts if it["name"] == "model" and not it["file"]]
    name, places = reader.ask(body, "b")
    if any(it["value"].startswith(b"--b") for it in parts):
        assert (name, places) == (b"", "no_form"), "some parsers take that for the part's end"
        return
    assert len(parsed.get_payload()) == len(parts) or not parts
    if not fields:
        assert (name, places) == (b"", "nothing")
        return
    begin, end = map(int, places.split())
    assert body[begin:end] == fields[-1]["value"]
    assert name == fields[-1]["value"][:1024]


def test_a_body_that_lua_cannot_read_has_an_answer(reader: Reader) -> None:
    """Some versions of the module raise an error where others read."""
    assert reader.refusal() == (411, "length_required")
    assert reader.ask(b'{"model": "m"}')[0] == b"m"


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ('Content-Disposition: form-data; name="model"', b"m"),
        ("content-disposition:form-data;name=model", b"m"),
        ('Content-Disposition: form-data; name="model"; filename="x"', b""),
        ("Content-Disposition: form-data; name=model; filename*=utf-8''x", b""),
        ('Content-Disposition: form-data; name="model"; name="x"', b""),
        ('Content-Disposition: form-data; name="x; name=model"', b""),
        ('Content-Disposition: form-data; name="model\\"; x="', b""),
        ('Content-Disposition: form-data; name="model"\r\nContent-Disposition: form-data; name="x"', b""),
        ("Content-Type: text/plain", b""),
    ],
)
def test_a_part_is_the_model_only_where_all_parsers_agree(reader: Reader, head: str, found: bytes) -> None:
    """What one of them could read as another field, or as a file, is not the model."""
    body = f"--b\r\n{head}\r\n\r\nm\r\n--b--\r\n".encode()
    assert reader.ask(body, "b")[0] == found


@pytest.mark.parametrize("weights", [(9, 1), (1, 1), (99, 1), (6, 3, 1), (1, 0, 2)])
def test_each_service_gets_its_share_of_any_few_requests(reader: Reader, weights: tuple[int, ...]) -> None:
    """A canary of 10 % gets 1,000 of 10,000, and ten of any hundred, give or take four."""
    choices = reader.choices(*weights)
    assert len(choices) == 10_000
    for at, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(choices.count(str(at)) - 10_000 * share) <= 4
        for begin in range(0, 9_900, 50):
            assert abs(choices[begin : begin + 100].count(str(at)) - 100 * share) <= 4
    every_second = choices[::2]
    assert abs(every_second.count("0") - 5_000 * weights[0] / sum(weights)) <= 8, "a client that comes in turn with one"


_MODELS = st.sampled_from(["m", "a/b", "x", "\u00e9"])


def _list(*names: str) -> bytes:
    entries = [{"id": name, "object": "model", "meta": {"id": "x", "parent": [None, "]"]}} for name in names]
    return json.dumps({"data": entries, "object": "list", "models": [{"name": name} for name in names]}).encode()


@given(st.lists(_MODELS, max_size=5), st.lists(st.sampled_from(["m", "a/b", "x"]), max_size=3), st.booleans())
def test_a_key_sees_only_its_models_in_a_list(reader: Reader, names: list[str], may: list[str], indent: bool) -> None:
    """As they were listed, and in their order; nothing else of the answer, which may have them a second time."""
    answer = json.loads(_list(*names))
    got = json.loads(reader.shortened(json.dumps(answer, indent=2 if indent else None).encode(), *may))
    assert got == {"object": "list", "data": [it for it in answer["data"] if it["id"] in may]}


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"{}", b"[]", b"null", b'{"data": {}}', b'{"data": 1}', _list("m")[:-1], b"\x1f\x8b\x08",
        b'{"data": ["m"]}',
        b'{"data": [{"id": "m"} {"id": "m"}]}', b'{"data": [{"id": "m"]}', b'{"data": [{"name": "m"}, {"id": ["m"]}]}',
        b'{"data": ["' + b"x" * 1_100_000 + b'", {"id": "m"}]}',
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_read_shows_nothing(reader: Reader, answer: bytes) -> None:
    """Whatever it says; the client gets a list in any case."""
    assert json.loads(reader.shortened(answer, "m")) == {"object": "list", "data": []}
