"""What an engine's answers prove: Ready, Loading, Foreign or Unknown. Pure; `engines/` does the asking.

A wrong identification is worse than a retry: an answer that proves nothing is Unknown, and only an answer that no
engine would give is Foreign. Only health shows readiness, never an info call that happens to answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from gateway_sidecar.domain.model import EngineFacts, Foreign, Loading, ProbeResult, Ready, Unknown


class Failure(Enum):
    """Why a question got no answer that can be read."""

    ABSENT = "no such socket"
    NOT_A_SOCKET = "not a socket"
    DENIED = "permission denied"
    REFUSED = "connection refused"
    CROWDED = "its queue of waiting connections is full"
    CLOSED = "closed without an answer"
    CUT = "closed in the middle of an answer"
    MALFORMED = "malformed HTTP"
    OTHER_PROTOCOL = "speaks another protocol"
    TOO_LARGE = "answer too large"
    UNREACHABLE = "cannot be reached"
    NO_TLS = "does not speak TLS, as health.tls says"


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A question that got no answer; `detail` adds what the failure's own words leave open."""

    failure: Failure
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.failure.value}: {self.detail}" if self.detail else self.failure.value


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One HTTP answer, read to its end."""

    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class RpcAnswer:
    """One gRPC answer: the status code's name and, with OK, the message's fields that are set."""

    code: str
    fields: Mapping[str, object]
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.code == "OK"


class Protocol(Enum):
    """What the first bytes from a server show, when the first thing it was sent is an HTTP/1.1 request."""

    HTTP1 = "HTTP/1"
    HTTP2 = "HTTP/2"
    OTHER = "neither HTTP/1 nor HTTP/2"


FRAME_HEADER_BYTES = 9  # RFC 9113, 4.1
LARGEST_FRAME_BYTES = 16384  # RFC 9113, 4.2: what a client that says nothing of it allows
_SETTINGS, _GOAWAY = 4, 7  # RFC 9113, 6


def protocol_of(first: bytes) -> Protocol | None:
    """Tell the protocol from the first bytes of a server; None where more bytes are needed to tell.

    An HTTP/2 server opens with a SETTINGS frame on stream 0, whatever the client sent (RFC 9113, 3.4); after a client's
    error it may send GOAWAY.
    """
    if first.startswith(b"HTTP/"):
        return Protocol.HTTP1
    if b"HTTP/".startswith(first):
        return None
    if len(first) < FRAME_HEADER_BYTES:
        return None if first.startswith(b"\0") else Protocol.OTHER
    length, kind, stream = int.from_bytes(first[:3]), first[3], int.from_bytes(first[5:9])
    frame = length <= LARGEST_FRAME_BYTES and kind in (_SETTINGS, _GOAWAY) and stream == 0
    return Protocol.HTTP2 if frame else Protocol.OTHER


def unanswered(silence: NoAnswer, asked: str = "") -> ProbeResult:
    """Judge a question that got no readable answer. `asked` is set where the server had answered others before.

    Refusing and accept-and-close are how an engine looks before it listens, directly or behind an SSH forward.
    What makes an unknown occupant Foreign proves nothing about an occupant that was an engine a moment ago.
    """
    reason = str(silence)
    match silence.failure:
        case Failure.REFUSED | Failure.CLOSED:
            return Loading(reason, refused=True, closed=silence.failure is Failure.CLOSED)
        case Failure.NOT_A_SOCKET:
            return Foreign(reason)
        case Failure.OTHER_PROTOCOL | Failure.NO_TLS | Failure.TOO_LARGE | Failure.MALFORMED | Failure.CUT if asked:
            return Unknown(f"{asked}: {reason}")
        case Failure.OTHER_PROTOCOL | Failure.NO_TLS | Failure.TOO_LARGE:
            return Foreign(reason)
        case Failure.UNREACHABLE:
            return Unknown(reason, ours=True)
        case _:
            return Unknown(reason)


# --- HTTP ---------------------------------------------------------------------------------------------------


MOST_VALUES = 100_000
"""In one JSON document. A real SGLang's `/server_info` has some 600 per data-parallel rank. So many are read in 20 ms
and take 25 MB at the worst; a document of 4 MiB may have a million."""


_MOST_DIGITS = 100
"""A choice: 64-bit numbers have 20, the longest double some 310, and nothing that is read is such a one."""
_LARGE_BYTES = 256 * 1024
"""Below, numbers of thousands of digits cost 5 ms at the most; to look at each number costs more than to read it."""


def document(answer: HttpAnswer) -> object:
    """Parse an answer's body as JSON; None where it is none (JSON's own null is of no use to us either)."""
    if not answer.body or sum(map(answer.body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        return None
    try:
        return json.loads(answer.body, parse_int=_whole if len(answer.body) > _LARGE_BYTES else None)
    except (ValueError, RecursionError):  # ValueError includes bad UTF-8
        return None


def _whole(digits: str) -> int:
    """Python reads a number of thousands of digits in quadratic time, and nothing that is read here has that many."""
    if len(digits) > _MOST_DIGITS:
        raise ValueError("a number of too many digits")
    return int(digits)


@dataclass(frozen=True, slots=True)
class ModelList:
    """An OpenAI model list. `owned_by` is the first model's."""

    ids: tuple[str, ...]
    owned_by: str | None = None

    @property
    def only(self) -> str | None:
        """The model's name where there is exactly one: a list of several does not say which one is served."""
        return self.ids[0] if len(self.ids) == 1 else None


LONGEST_NAME = 1024
"""Characters. No model, version or engine id is longer; what is longer is not one."""


def name(value: object) -> str | None:
    """A value as a name: a string that is not blank, not endless, and can be printed and sent on."""
    if isinstance(value, str) and value.strip() and len(value) <= LONGEST_NAME and value.isprintable():
        return value
    return None


def read_models(answer: HttpAnswer, path: str = "/v1/models") -> ModelList | Loading | Foreign | Unknown:
    """Read `GET /v1/models`: a list of models or their names, under `data`, `models` or by itself, as servers have it.

    An empty list is not yet evidence of an engine; nor is an empty body, which mlx_lm.server sends where it has
    no model cache to list. The caller asks on.
    """
    if answer.status != 200:
        return _refused(path, answer.status)
    if not answer.body:
        return ModelList(())
    body = document(answer)
    entries = body.get("data", body.get("models", body)) if isinstance(body, dict) else body
    if entries is None and isinstance(body, dict):
        return ModelList(())  # Ollama without models
    if not isinstance(entries, list):
        return Foreign(f"HTTP, but {path} is no OpenAI model list; {_CURE}")
    ids = tuple(found for entry in entries if (found := _id_of(entry)))
    if len(ids) != len(entries):
        return Foreign(f"HTTP, but {path} lists a model without a usable id; {_CURE}")
    owner = entries[0].get("owned_by") if entries and isinstance(entries[0], dict) else None
    return ModelList(tuple(dict.fromkeys(ids)), name(owner))


_CURE = "if it is an engine, set `model` or, where its API is elsewhere, `health: {prefix: PATH}`"


def _id_of(entry: object) -> str | None:
    """The name of one entry; Ollama's own lists call it `name` and `model`."""
    if not isinstance(entry, dict):
        return name(entry)
    return next((found for key in ("id", "model", "name") if (found := name(entry.get(key)))), None)


ABSENT = frozenset((404, 405, 501))
"""How a server says that it has no such page."""


def _refused(path: str, status: int) -> Loading | Foreign | Unknown:
    if status in (401, 403):
        return Unknown(needs_key(f"{path} answers {status}"))
    if status == 503:
        return Loading(f"{path} answers 503")
    if status in (408, 425, 429) or status >= 500:
        return Unknown(f"{path} answers {status}")
    return Foreign(f"HTTP, but no OpenAI API: {path} answers {status}; {_CURE}")


def needs_key(seen: str) -> str:
    """The reason and the cure where an engine wants an API key, or another one."""
    return f"{seen}: the engine wants an API key; set api_key_file in the replica's yaml file"


def is_absent(answer: HttpAnswer) -> bool:
    """Whether a server says that it has no such page. LM Studio answers 200 to whatever it does not know."""
    said = document(answer) if answer.status == 200 else None
    unknown = isinstance(said, dict) and str(said.get("error", "")).startswith("Unexpected endpoint")
    return answer.status in ABSENT or unknown


def judge_http_health(
    facts: EngineFacts, answer: HttpAnswer, path: str = "/health", expect: str | None = None
) -> Ready | Loading | Unknown:
    """Read the page for the health of a known engine. expect: what its body must contain to be good."""
    asked = f"{path} answers {answer.status}"
    if answer.status in (200, 204):
        if expect is not None:
            is_good = expect in answer.body.decode("utf-8", "replace")
            return Ready(facts) if is_good else Loading(f"{asked} without {expect!r} (health.expect)", facts)
        if not _is_plain(answer.body):
            return Unknown(f"{asked} with no engine's words")
        ill = says_ill(answer)
        return Ready(facts) if ill is None else Loading(f"{asked}, but says {ill}", facts, asleep=_ASLEEP in ill)
    if answer.status == 503:
        return Loading(asked, facts)
    if answer.status in (401, 403):
        return Unknown(needs_key(asked))
    return Unknown(f"{asked}, which tells nothing about readiness; set health.path to a page that does")


def _is_plain(body: bytes) -> bool:
    """Nothing, JSON or a word: a web page, which answers 200 everywhere, tells nothing about an engine."""
    try:
        return not body.decode().lstrip().startswith("<")
    except UnicodeDecodeError:
        return False


_ILL = re.compile(
    r"(?:(?:the )?(?:service|server|engine|model|backend|worker)[ _-]?(?:is )?)?"
    r"(?:un(?:healthy|available|ready|loaded|responsive|reachable|initiali[sz]ed)|not[ _-]?\w+|nok?|ko|false|down"
    r"|dead\w*|asleep|bad|broken|inactive|disconnected|internal[ _]server[ _]error|sick|hung"
    r"|(?:re)?(?:start|load|boot|initiali[sz]|warm|connect)ing|(?:stop|shut|terminat|drain|sleep|fail|crash)\w*"
    r"|errors?|critical|offline|pending|maintenance|out[ _-]of[ _-]service)\b(?! slot)",
    re.IGNORECASE,
)
"""How a verdict begins that is a bad one. llama.cpp's `no slot available` is not: it is busy."""
_ASLEEP = "is_sleeping: true"
_SUBJECT = re.compile(r"^(?:is|model|engine|server|service)[ _-]?(?=[a-z])")
"""What may stand before a verdict's name: `is_ready`, `isHealthy`, `engine_status`."""
_YES_OR_NO = frozenset(("healthy", "ready", "ok", "alive", "live", "success", "available"))
_VERDICTS = _YES_OR_NO | {"status", "state", "health", "code", "data"}
_WORDS = frozenset(("message", "msg", "detail", "result"))
"""Free text: a verdict only where it is nothing else."""
_COMPLAINTS = frozenset(("error", "is_sleeping", "sleeping", "is_paused", "paused", "loading", "unhealthy"))
_SHORT = 200  # A choice: a page that is longer is prose, or HTML, and no verdict.
_DEEP = 3  # A choice: verdicts in verdicts, such as `status: {health: {code: ...}}`; deeper is somebody's data.


def says_ill(answer: HttpAnswer) -> str | None:
    """What in the body of a good answer says that the engine is not well; None if nothing does."""
    body = document(answer)
    if body is None:
        text = answer.body.decode("utf-8", "replace").strip()
        return repr(text) if len(text) <= _SHORT and _is_ill(text) else None
    if isinstance(body, list):
        complaints = [_complaint(one, _DEEP) if isinstance(one, dict) else None for one in body]
        return complaints[0] if all(complaints) and complaints else None
    return _complaint(body, _DEEP) if isinstance(body, dict) else (repr(body) if _is_ill(body) else None)


def _complaint(said: Mapping[str, object], deep: int) -> str | None:
    for key, value in said.items():
        word = key.lower()
        shown = f"{key}: {json.dumps(value)}"[:_SHORT]
        if word in _COMPLAINTS and value:
            return shown
        word = _SUBJECT.sub("", word)
        if word in _WORDS and isinstance(value, str) and _ILL.fullmatch(value.strip(" .!\n")):
            return shown
        if word in _YES_OR_NO and type(value) is int and value == 0:
            return shown
        if word in _VERDICTS:
            if isinstance(value, dict):
                if deep and (found := _complaint(value, deep - 1)) is not None:
                    return found
            elif _is_ill(value):
                return shown
    # LiteLLM counts the engines behind it: one that is well can answer.
    if said.get("healthy_count") == 0 and said.get("unhealthy_count"):
        return "healthy_count: 0"
    return None


def _is_ill(value: object) -> bool:
    """Whether a verdict is a bad one."""
    if isinstance(value, str):
        return _ILL.match(value.strip()) is not None
    return value is False or (type(value) is int and value >= _LEAST_FAILURE)


_LEAST_FAILURE = 400
"""An HTTP status as a verdict: `{"status": 503}`."""


# --- gRPC ---------------------------------------------------------------------------------------------------

SERVING, NOT_SERVING = 1, 2
"""`grpc.health.v1.HealthCheckResponse.ServingStatus`"""


@dataclass(frozen=True, slots=True)
class Serving:
    """What a health answer says. `ready` None: it proves neither."""

    ready: bool | None
    reason: str


HealthReader = Callable[[RpcAnswer], Serving]


def read_standard_health(answer: RpcAnswer) -> Serving:
    """Read `grpc.health.v1.Health/Check`."""
    if not answer.ok:
        return Serving(None, rpc_failure("grpc.health.v1", answer))
    status = answer.fields.get("status", 0)  # 0, the default, is not sent
    if status == SERVING:
        return Serving(True, "SERVING")
    if status == NOT_SERVING:
        return Serving(False, "grpc.health.v1 says NOT_SERVING")
    return Serving(None, f"grpc.health.v1 says status {status}")


def judge_grpc_health(facts: EngineFacts, serving: Serving) -> Ready | Loading | Unknown:
    """Judge a known engine by its health."""
    if serving.ready is None:
        return Unknown(serving.reason)
    return Ready(facts) if serving.ready else Loading(serving.reason, facts)


def rpc_failure(asked: str, answer: RpcAnswer) -> str:
    """Say what a failed call means, with the cure where there is one."""
    if answer.code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return needs_key(f"{asked} answers {answer.code}")
    return f"{asked} answers {answer.code}" + (f" ({answer.detail})" if answer.detail else "")


# --- both ---------------------------------------------------------------------------------------------------


def decisive(result: ProbeResult | NoAnswer) -> bool:
    """Whether one side's result decides: what is Foreign as HTTP may be an engine over gRPC."""
    return not isinstance(result, NoAnswer | Foreign)


def judge(results: Sequence[ProbeResult | NoAnswer], protocol: Protocol | None) -> ProbeResult:
    """Judge a socket where no side is decisive: HTTP's result first, gRPC's after it.

    `protocol` is what the first bytes showed.
    """
    silences = []
    for result in results:
        if not isinstance(result, NoAnswer):
            return result
        silences.append(result)
    if protocol is Protocol.HTTP2:
        return Unknown(f"speaks HTTP/2, but no gRPC call gets through: {silences[-1]}")
    return unanswered(silences[0])
