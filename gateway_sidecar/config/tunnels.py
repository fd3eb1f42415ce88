"""How an SSH tunnel to a replica is written down, in the configuration and in inventories."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from gateway_sidecar.config.section import Section
from gateway_sidecar.config.values import parse_path, show, text_in
from gateway_sidecar.domain.tunnels import AGENT_OF_ENVIRONMENT, SshRoute, SshServer, Tunnel

FIRST_USE = "trust-on-first-use"
MOST_ID_BYTES = 200  # As of a socket's name (`sources/socket_pattern.py`).
_SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,253}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,127}")
_PUBLIC_KEY = re.compile(r"(ssh-[a-z0-9-]+|ecdsa-sha2-[a-z0-9-]+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/]+={0,3}( [^\r\n]*)?")
_SAFE_PATH = re.compile(r"/[^\s\"'$;{}\\#%*?\[\]\x00-\x1f\x7f]+")
_FAR_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")


def parse_host(value: object) -> str:
    """A host's name or address, without user and port."""
    cure = "use a host's name or address, for example gpu7.example.net"
    text = text_in(value, cure)
    if not _HOST.fullmatch(text):
        raise ValueError(f"{show(text)} is not a host; {cure} (user and port have settings of their own)")
    return text


def parse_user(value: object) -> str:
    """A user's name on the far side."""
    cure = "use a user's name on that host"
    text = text_in(value, cure)
    if not _USER.fullmatch(text):
        raise ValueError(f"{show(text)} is not a user's name; {cure}")
    return text


def parse_plain_path(value: object) -> str:
    """An absolute path that ssh's configuration can carry as it stands."""
    cure = "use an absolute path such as /etc/gateway-sidecar/id_ed25519"
    path = str(parse_path(value, cure))
    if not _SAFE_PATH.fullmatch(path):
        raise ValueError(
            f"{show(path)} holds a character that ssh gives a meaning; use letters, digits and - _ . / only"
        )
    return path


def parse_socket(value: object) -> str:
    """A Unix socket on this machine."""
    return str(parse_path(value, "use an absolute path such as /run/replicas/r1.sock"))


def parse_agent(value: object) -> str:
    """An agent's socket."""
    return AGENT_OF_ENVIRONMENT if value == AGENT_OF_ENVIRONMENT else parse_plain_path(value)


def parse_host_key(value: object) -> str:
    """A public key, or trust on first use."""
    cure = f"use a public key such as 'ssh-ed25519 AAAA...', or {FIRST_USE}"
    text = text_in(value, cure).strip()
    if text != FIRST_USE and not _PUBLIC_KEY.fullmatch(text):
        raise ValueError(f"{show(text)} is not a public key; {cure}")
    return text if text == FIRST_USE else " ".join(text.split()[:2])


def parse_forward(value: object) -> str:
    """Where the engine listens, as the far side sees it."""
    cure = "use HOST:PORT or a Unix socket's path there, for example 127.0.0.1:8000"
    text = text_in(value, cure)
    if text.startswith("/"):
        if ":" in text:
            raise ValueError(f"{show(text)} holds ':', which ssh gives a meaning; use a path without one")
        return parse_plain_path(text)
    found = _FAR_PORT.fullmatch(text)
    if not found or not 1 <= int(found[2]) <= 65535:
        raise ValueError(f"{show(text)} is not an engine's address; {cure}")
    return text


def parse_id(value: str) -> str:
    """A replica's id, as it may also stand in a socket's path."""
    if not value.strip() or not value.isprintable() or "/" in value or value in (".", ".."):
        raise ValueError(f"{show(value)} cannot be a replica's id; use printable characters without /, and a word")
    if len(value.encode()) > MOST_ID_BYTES:
        raise ValueError(f"{show(value)} is too long for a replica's id; use {MOST_ID_BYTES} bytes at most")
    return value


def _schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern})


PlainPathValue = Annotated[str, PlainValidator(parse_plain_path), _schema("^/")]
SocketValue = Annotated[str, PlainValidator(parse_socket), _schema("^/")]
HostValue = Annotated[str, PlainValidator(parse_host), _schema(f"^{_HOST.pattern}$")]
UserValue = Annotated[str, PlainValidator(parse_user), _schema(f"^{_USER.pattern}$")]
AgentValue = Annotated[str, PlainValidator(parse_agent), _schema(f"^(/|{AGENT_OF_ENVIRONMENT}$)")]
HostKeyValue = Annotated[str, PlainValidator(parse_host_key), _schema(f"^({FIRST_USE}|{_PUBLIC_KEY.pattern})$")]
ForwardValue = Annotated[str, PlainValidator(parse_forward), _schema(rf"^(/|{_FAR_PORT.pattern}$)")]

_USER_TEXT = "The user to log in as. By default it is the daemon's own."
_KEY_TEXT = "A private key, mode 0600, without a passphrase."
_AGENT_TEXT = (
    f"The socket of an SSH agent, or `{AGENT_OF_ENVIRONMENT}` for the agent that the daemon's environment names."
)
_KNOWN_TEXT = f"A file of the keys that hosts must have. By default it is `{_SYSTEM_KNOWN_HOSTS}`."


class SshServerSettings(Section):
    """One SSH server, and how both sides prove who they are."""

    host: HostValue = Field(description="The server's name or address.", examples=["gpu7.example.net"])
    port: int | None = Field(default=None, ge=1, le=65535, description="The server's SSH port. By default it is 22.")
    user: UserValue | None = Field(default=None, description=_USER_TEXT, examples=["tunnel"])
    key_file: PlainPathValue | None = Field(default=None, description=_KEY_TEXT, examples=["/etc/gateway-sidecar/key"])
    agent: AgentValue | None = Field(default=None, description=_AGENT_TEXT, examples=["/run/agent.sock"])
    known_hosts: PlainPathValue | None = Field(
        default=None, description=_KNOWN_TEXT, examples=["/etc/gateway-sidecar/known_hosts"]
    )
    host_key: HostKeyValue | None = Field(
        default=None,
        description=f"The host's public key itself, or `{FIRST_USE}`: then a host that `known_hosts` does not list is"
        " believed and entered there.",
        examples=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA", FIRST_USE],
    )


JumpValue = Annotated[tuple[SshServerSettings, ...], Field(strict=False)]


class SshDefaults(Section):
    """What SSH replicas of a service, and the servers they jump over, have in common."""

    port: int = Field(default=22, ge=1, le=65535, description="The SSH port of servers that name none.")
    user: UserValue | None = Field(default=None, description=_USER_TEXT, examples=["tunnel"])
    key_file: PlainPathValue | None = Field(default=None, description=_KEY_TEXT, examples=["/etc/gateway-sidecar/key"])
    agent: AgentValue | None = Field(default=None, description=_AGENT_TEXT, examples=["/run/agent.sock"])
    known_hosts: PlainPathValue | None = Field(
        default=None, description=_KNOWN_TEXT, examples=["/etc/gateway-sidecar/known_hosts"]
    )
    host_key: Literal["trust-on-first-use"] | None = Field(
        default=None, description="Whether hosts that `known_hosts` does not list are believed and entered there."
    )
    jump: JumpValue = Field(
        default=(), description="SSH servers to pass through, in order.", examples=[[{"host": "gate.example.net"}]]
    )
    keepalive_s: int = Field(
        default=4,
        ge=1,
        le=300,
        description="After this long without a byte, a server is asked for a sign of life. A path is dead after this"
        " time times `keepalive_failures` plus 1.",
    )
    keepalive_failures: int = Field(
        default=2, ge=1, le=20, description="At most this many of these questions in a row may go unanswered."
    )
    connect_timeout_s: int = Field(
        default=10, ge=1, le=300, description="One server may take this long to accept the login."
    )
    backend: Literal["auto", "openssh", "asyncssh"] = Field(
        default="auto",
        description="Which SSH client is used. `openssh` is the program `ssh`, `asyncssh` needs"
        " `gateway-sidecar[ssh]`, and `auto` is `openssh` if there is one.",
    )


class SshReplica(SshServerSettings):
    """One replica behind an SSH server."""

    forward: ForwardValue = Field(
        description="The address at which the engine listens, as that host sees it: HOST:PORT, or the path of a Unix"
        " socket.",
        examples=["127.0.0.1:8000", "/run/engine.sock"],
    )
    jump: JumpValue | None = Field(
        default=None, description="SSH servers to pass through, in order; `[]` for none.", examples=[[]]
    )


def tunnel_to(owner: str, ssh: SshReplica, defaults: SshDefaults) -> Tunnel:
    """The tunnel that these settings describe. Raises ValueError if something is missing."""
    jumps = defaults.jump if ssh.jump is None else ssh.jump
    route = SshRoute(
        tuple(_server(server, defaults) for server in (*jumps, ssh)),
        defaults.keepalive_s,
        defaults.keepalive_failures,
        defaults.connect_timeout_s,
        defaults.backend,
    )
    return Tunnel(owner, route, ssh.forward)


def _server(said: SshServerSettings, defaults: SshDefaults) -> SshServer:
    key_file, agent = said.key_file, said.agent
    if key_file is None and agent is None:
        key_file, agent = defaults.key_file, defaults.agent
    if key_file is None and agent is None:
        raise ValueError(f"{said.host} has neither key_file nor agent; give it one, or set it in ssh_defaults")
    host_key = said.host_key or (None if said.known_hosts else defaults.host_key)
    known_hosts = said.known_hosts or defaults.known_hosts
    if host_key == FIRST_USE and known_hosts is None:
        raise ValueError(f"{said.host}: {FIRST_USE} needs a known_hosts file to enter keys in; name one")
    pinned = host_key if host_key != FIRST_USE else None
    return SshServer(
        said.host,
        said.port or defaults.port,
        said.user or defaults.user,
        key_file,
        agent,
        None if pinned else known_hosts or _SYSTEM_KNOWN_HOSTS,
        pinned,
        host_key == FIRST_USE,
    )


def check_ids(value: object) -> object:
    """Replica ids as keys of a mapping."""
    if isinstance(value, Mapping):
        for key in value:
            parse_id(str(key))
    return value


SshReplicas = Annotated[dict[str, SshReplica], BeforeValidator(check_ids)]
