"""Problems of an SSH server's settings that can be seen on this machine before a connection is tried. ssh itself
reports most of them only as a refused login, or trusts a host anew each time because it cannot record its key.
"""

from __future__ import annotations

import base64
import binascii
import os
import pwd
import re
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gateway_sidecar.domain.tunnels import AGENT_OF_ENVIRONMENT, PathState, PathStatus, SshServer

_OTHERS = 0o077  # As ssh has it: a key of one's own that group or others may read is refused.
_HIDES = ("/home/", "/root/", "/run/user/", "/tmp/")
_HIDDEN = "; under systemd the daemon sees no /home, /root, /run/user and /tmp"
_MOST_KEY_BYTES = 64 * 1024  # A choice: the longest RSA key, of 16,384 bits, has 13 KB.
_PRIVATE = re.compile(rb"-----BEGIN ([A-Z0-9 ]*)PRIVATE KEY-----\s(.*?)-----END", re.DOTALL)
_OPENSSH = b"openssh-key-v1\0"
_NO_CIPHER = b"\0\0\0\4none"


def user_trouble() -> str | None:
    """What to do if nobody knows the daemon's user: both ssh and asyncssh end without a name for it."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        uid = os.geteuid()
        return f"uid {uid} has no entry in /etc/passwd, and ssh needs one; add it (useradd --uid {uid} NAME)"
    return None


def first_trouble(servers: Sequence[SshServer]) -> PathStatus | None:
    """The first problem to fix before these servers can be reached; None if there is none."""
    if (text := user_trouble()) is not None:
        return PathStatus(PathState.LOCAL_TROUBLE, text)
    return next((trouble for server in servers for trouble in troubles(server)), None)


def troubles(server: SshServer) -> Iterator[PathStatus]:
    """Every problem of one server's files and agent, each with its cure. Changes nothing."""
    if server.key_file is not None and (text := key_trouble(server.key_file, in_agent=server.agent is not None)):
        yield PathStatus(PathState.KEY_UNUSABLE, f"key_file {text}")
    if server.agent is not None and (text := _agent_trouble(server.agent)):
        yield PathStatus(PathState.KEY_UNUSABLE, f"agent {text}")
    if server.known_hosts is not None and (text := _known_hosts_trouble(server)):
        yield PathStatus(PathState.HOST_KEY_UNKNOWN, f"known_hosts {text}")


def key_trouble(path: str, *, in_agent: bool = False) -> str | None:
    """Why a private key's file cannot be used, with the cure; None if it can.

    in_agent: an agent holds the key, and the file, which may be the public one, only says which.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is not a regular file; name the private key's file"
        with Path(path).open("rb") as file:
            content = file.read(_MOST_KEY_BYTES)
    except OSError as error:
        return f"{path}: {error.strerror}; {_must_read(path)}"
    if in_agent:
        return None
    if status.st_uid == os.geteuid() and status.st_mode & _OTHERS:
        return f"{path} may be read by others (mode {stat.S_IMODE(status.st_mode):04o}); use chmod 0600"
    return _content_trouble(path, content)


def _must_read(path: str) -> str:
    hidden = _HIDDEN if path.startswith(_HIDES) else ""
    return f"the daemon's user (uid {os.geteuid()}) must be able to read it{hidden}"


def _content_trouble(path: str, content: bytes) -> str | None:
    found = _PRIVATE.search(content)
    if found is None:
        what = "a public key" if content.startswith((b"ssh-", b"ecdsa-", b"sk-")) else "no private key"
        return f"{path} holds {what}; name the private key's file"
    if _is_encrypted(found[1], found[2]):
        return f"{path} has a passphrase, which the daemon cannot type; make a key without one, or use an agent"
    return None


def _is_encrypted(kind: bytes, body: bytes) -> bool:
    if kind != b"OPENSSH ":
        return kind == b"ENCRYPTED " or b"ENCRYPTED" in body.split(b"\n\n")[0]
    try:
        blob = base64.b64decode(body)
    except binascii.Error:
        return False  # Damaged: ssh says so.
    return blob.startswith(_OPENSSH) and not blob.startswith(_OPENSSH + _NO_CIPHER)


def _agent_trouble(agent: str) -> str | None:
    path = os.environ.get(AGENT_OF_ENVIRONMENT, "") if agent == AGENT_OF_ENVIRONMENT else agent
    if not path:
        return f"{AGENT_OF_ENVIRONMENT} is not set in the daemon's environment; set it, or name the agent's socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(path)
        except BlockingIOError:
            return None  # Busy: it is there.
        except OSError as error:
            why = error.strerror or error  # A path that is too long has no number.
            hidden = _HIDDEN if path.startswith(_HIDES) else ""
            return f"{path}: {why}; start the agent, let uid {os.geteuid()} use it, or name its socket{hidden}"
    return None


def _known_hosts_trouble(server: SshServer) -> str | None:
    assert server.known_hosts is not None
    path = Path(server.known_hosts)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return f"{path} is not a regular file; name the list of the hosts' keys"
        with path.open("rb"):
            pass
    except FileNotFoundError:
        if not server.trust_first_use:
            hidden = _HIDDEN if str(path).startswith(_HIDES) else ""
            return f"{path} is not there; enter the hosts' keys in it (ssh-keyscan), or set host_key{hidden}"
    except OSError as error:
        return f"{path}: {error.strerror}; {_must_read(str(path))}"
    if not server.trust_first_use:
        return None
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK):
        why = "is not there" if not place.exists() else f"may not be written by uid {os.geteuid()}"
        return f"{path}: {place} {why}, so no host's key can be entered; name a file in a directory that may be"
    return None


def finish_last_lines(servers: Sequence[SshServer]) -> None:
    """A list of known hosts that keys are to be entered in ends its last line: else the first would be added to that.

    Raises OSError.
    """
    for server in servers:
        if server.known_hosts is None or not server.trust_first_use:
            continue
        path = Path(server.known_hosts)
        if path.exists() and path.stat().st_size:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")


def with_cure(status: PathStatus, server: SshServer) -> PathStatus:
    """What ssh said of a login or of a host's key, with the file that it is about and what to do there."""
    name = server.host if server.port == 22 else f"[{server.host}]:{server.port}"
    listed = server.known_hosts
    match status.state:
        case PathState.AUTH_FAILED:
            shown = f"the public half of {server.key_file}" if server.key_file else f"a key of agent {server.agent}"
            cure = (
                f"it does not accept {shown}; add it to {server.user or 'our user'}'s authorized_keys there; "
                "tried again at once when the key's file or the settings change, and every 5 minutes"
            )
        case PathState.HOST_KEY_UNKNOWN | PathState.HOST_KEY_CHANGED if "revoked" in status.reason:
            cure = f"so says {listed}"
        case PathState.HOST_KEY_UNKNOWN:
            cure = f"enter the key of {name} in {listed}" if listed else "compare host_key in the settings"
        case PathState.HOST_KEY_CHANGED if listed is not None:
            cure = f"if {name} was set up anew, ssh-keygen -R '{name}' -f {listed} and enter its new key"
        case PathState.HOST_KEY_CHANGED:
            cure = f"if {name} was set up anew, change host_key in the settings"
        case _:
            return status
    return replace(status, reason=f"{status.reason.rstrip('.')}; {cure}")
