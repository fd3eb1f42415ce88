"""What a simulated engine is (`EngineSpec`), how it behaves (`Behaviour`), and both read from settings.

An `EngineSpec` holds for an engine's life. A `Behaviour` can be changed while it runs. The command line, the
control API and tests use the same names: the fields below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=1, le=65535)]


class EngineKind(StrEnum):
    """Which engine is simulated, and over which protocol."""

    SGLANG_HTTP = "sglang-http"
    SGLANG_GRPC = "sglang-grpc"
    VLLM_HTTP = "vllm-http"
    VLLM_GRPC = "vllm-grpc"
    TRTLLM_HTTP = "trtllm-http"
    TRTLLM_GRPC = "trtllm-grpc"
    MLX_GRPC = "mlx-grpc"
    TOKENSPEED_GRPC = "tokenspeed-grpc"
    OPENAI_HTTP = "openai-http"
    DYNAMO_HTTP = "dynamo-http"
    OLLAMA_HTTP = "ollama-http"
    LMSTUDIO_HTTP = "lmstudio-http"
    TEI_HTTP = "tei-http"

    @property
    def is_grpc(self) -> bool:
        return self.value.endswith("-grpc")

    @property
    def meets_peers(self) -> bool:
        """Whether a decode engine of this kind goes to its prefill engine itself (`bootstrap.py`)."""
        return self.value.startswith(("sglang-", "tokenspeed-"))

    @property
    def is_vllm(self) -> bool:
        return self.value.startswith("vllm-")


class Role(StrEnum):
    """The part an engine plays in disaggregation."""

    REGULAR = "regular"
    PREFILL = "prefill"
    DECODE = "decode"
    ENCODE = "encode"


class Lie(StrEnum):
    """What an engine answers instead of the truth.

    All but `types` are told on every HTTP path, inference included. Over gRPC `garbage` and `huge` spoil
    every message, the frame around it stays right; `endless` is the same as `huge`, and `redirect` and
    `not_an_engine` speak HTTP/1.1 to a client that expects HTTP/2. Connections that are open keep the
    protocol they have.
    """

    HUGE = "huge"
    """64 MiB more than anybody wants."""
    ENDLESS = "endless"
    """A JSON list that never ends."""
    EMPTY = "empty"
    """Status 200 and no body; over gRPC, a message with no field set."""
    GARBAGE = "garbage"
    """Status 200, and a body that is neither JSON nor UTF-8, nor a protobuf message."""
    TYPES = "types"
    """The right keys with values of the wrong types, in what the engine says of itself."""
    REDIRECT = "redirect"
    """302 to another path, for ever."""
    TRUNCATED = "truncated"
    """Half an answer, then the connection closes."""
    NOT_AN_ENGINE = "not_an_engine"
    """A web server's welcome page, with 200, on every path."""
    SLOW_DRIP = "slow_drip"
    """The true answer, one byte each second."""


DEFAULT_VERSIONS: Mapping[EngineKind, str] = {
    EngineKind.SGLANG_HTTP: "0.5.23",
    EngineKind.SGLANG_GRPC: "0.5.23",
    EngineKind.VLLM_HTTP: "0.32.0",
    EngineKind.VLLM_GRPC: "0.32.0",
    EngineKind.TRTLLM_HTTP: "1.2.0",
    EngineKind.TRTLLM_GRPC: "1.2.0",
    EngineKind.TOKENSPEED_GRPC: "0.1.0",
}
KV_ROLES = {Role.REGULAR: "", Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer", Role.ENCODE: ""}


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What an engine is. Everything but `kind` and `socket` has a default; `name` is the socket's stem.

    `kv_connector`, `kv_role` and `kv_engine_id` are vLLM's: a prefill or decode vLLM is given
    NixlConnector, the role's `kv_role` and an engine id of its own where they are not set. `bootstrap_port`
    is SGLang's, who names one even when it is not disaggregated. With a `transfer_timeout_s` a
    disaggregated SGLang really meets its peer (`bootstrap.py`): a prefill engine listens on
    `bootstrap_listen`, a decode engine connects to where its requests say, and a request whose engines do
    not meet in that time fails. `leave_socket` says that a stopped engine leaves its socket file behind, as
    vLLM over HTTP does. `dev_mode` makes vLLM over HTTP answer `/server_info`. `vision` makes TokenSpeed take images.
    `prefix` is where an engine over HTTP has its API in place of `/v1`. `certificate` is a PEM file with a key and a
    certificate: the engine speaks TLS only.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: EngineKind
    socket: Path
    name: str = ""
    model: str = "tiny"
    role: Role = Role.REGULAR
    version: str = ""
    bootstrap_port: Port = 8998
    bootstrap_listen: str = "127.0.0.1"
    transfer_timeout_s: Seconds = 0.0
    kv_connector: str = ""
    kv_role: str = ""
    kv_engine_id: str = ""
    dp_size: Annotated[int, Field(ge=1)] = 1
    leave_socket: bool | None = None
    dev_mode: bool = False
    vision: bool = False
    prefix: str = "/v1"
    certificate: Path | None = None

    def __post_init__(self) -> None:
        self._default("name", self.socket.stem)
        self._default("version", DEFAULT_VERSIONS.get(self.kind, ""))
        if self.kind.is_vllm and self.role is not Role.REGULAR:
            self._default("kv_connector", "NixlConnector")
            self._default("kv_role", KV_ROLES[self.role])
        if self.kv_connector:
            self._default("kv_engine_id", f"engine-of-{self.name}")
        if self.leave_socket is None:
            self._default("leave_socket", self.kind is EngineKind.VLLM_HTTP)

    def _default(self, name: str, value: object) -> None:
        if not getattr(self, name):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How an engine behaves now. The default is a healthy engine that answers as fast as it can.

    Attributes:
        listen_delay_s: The socket file exists and nobody listens for this long. Counts at the start only.
        load_s: Listening, telling what it is, and not healthy for this long; set again, loading begins again.
        hang: Connections are accepted, nothing is answered, and open streams stand still, until this is
            false.
        slow_s: Every answer comes this much later.
        accept_close: Connections, the open ones too, are closed at once: an SSH forward whose far end is
            dead.
        dead_core: Says what it is, is never healthy, fails inference: a vLLM whose engine core died.
        hung_core: Says that it is well, no inference gets on, its counters stand still: a vLLM whose engine core hangs.
        lie: What is answered instead of the truth.
        require_key: A key to be shown as `Authorization: Bearer KEY` (gRPC: `authorization` metadata). Asked
            for where the real engine asks; gRPC engines have none, there it guards all but health and
            reflection.
        guard_all: The key is asked for everywhere, health and reflection too, as by a proxy before the engine.
        fail_rate: The share of inference requests that fail; 0.25 fails every fourth.
        token_interval_s: The time before each token.
        grace_s: How long a graceful stop waits for requests in flight.
        asleep: vLLM's sleep mode: `/is_sleeping` says so, `/health` says 200, inference fails.
        first_info_s: How long vLLM over HTTP takes until it first answers `/server_info`.
        words: What the page for health says with 200, such as `unhealthy`.
        names: What it lists beside its model, with commas between: further names, and adapters.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    listen_delay_s: Seconds = 0.0
    load_s: Seconds = 0.0
    hang: bool = False
    slow_s: Seconds = 0.0
    accept_close: bool = False
    dead_core: bool = False
    hung_core: bool = False
    lie: Lie | None = None
    require_key: str | None = None
    guard_all: bool = False
    fail_rate: Share = 0.0
    token_interval_s: Seconds = 0.0
    grace_s: Seconds = 5.0
    asleep: bool = False
    first_info_s: Seconds = 0.0
    words: str | None = None
    names: str = ""


_SPECS = TypeAdapter(EngineSpec)
_BEHAVIOURS = TypeAdapter(Behaviour)
_Described = TypeVar("_Described")
BEHAVIOUR_NAMES = frozenset(f.name for f in fields(Behaviour))


def engine_from(settings: Mapping[str, object]) -> tuple[EngineSpec, Behaviour]:
    """Read one flat mapping, values as text or typed.

    Raises:
        ValueError: a setting is unknown, missing or of the wrong type.
    """
    identity = {name: value for name, value in settings.items() if name not in BEHAVIOUR_NAMES}
    conduct = {name: value for name, value in settings.items() if name in BEHAVIOUR_NAMES}
    return _validated(_SPECS, identity), _validated(_BEHAVIOURS, conduct)


def checked_changes(changes: Mapping[str, object]) -> dict[str, object]:
    """The same changes with their values typed.

    Raises:
        ValueError: a name is not a behaviour's, or a value does not fit.
    """
    behaviour = _validated(_BEHAVIOURS, changes)
    return {name: getattr(behaviour, name) for name in changes}


def settings_from_text(text: str) -> dict[str, str | None]:
    """Read `kind=vllm-grpc,socket=/run/r1.sock,lie=`; an empty value means none.

    Raises:
        ValueError: a part is not `name=value`.
    """
    settings: dict[str, str | None] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not name=value")
        settings[name.strip().replace("-", "_")] = value.strip() or None
    return settings


def _validated(described: TypeAdapter[_Described], settings: Mapping[str, object]) -> _Described:
    try:
        return described.validate_python(dict(settings))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ValueError("; ".join(problems)) from None
