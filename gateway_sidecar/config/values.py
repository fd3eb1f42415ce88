"""The small values that settings are made of: addresses, port ranges, directories, socket patterns.

Each `parse_*` takes what YAML gave and returns the value or raises `ValueError`, whose text is the second
half of a problem line: what is wrong, a semicolon, the cure.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath

REPLICA = "{replica}"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
INTERFACE_PATTERN = r"^[A-Za-z0-9._-]{1,15}$"
RUN_DIR_BYTES = 80
"""A socket below `run_dir` must fit in the 108 bytes that the kernel has for a socket's path."""

_BRIDGE_PORTS_MOST = 10_000
"""nginx starts with 5,000 in 0.15 to 0.65 s and takes 12 MB: twice as many are still bearable."""
# nginx's configuration and systemd's unit files give these a meaning of their own, quoted or not.
_UNSAFE_IN_DIRECTORY = re.compile(r"[\s\"'$;{}\\#%*?\[\]\x00-\x1f\x7f]")


class NotTextError(ValueError):
    """YAML read something else than a text; the message is the cure alone."""


def parse_own_address(value: object) -> str:
    """An IP address of this machine, in its shortest spelling. Raises ValueError."""
    try:
        address = ipaddress.ip_address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None or address.is_unspecified or address.is_multicast:
        raise ValueError(f"{show(value)} is not an address of one machine; use one such as 10.0.0.1")
    return str(address)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP address to listen on. `host` is an IP address in its shortest spelling, without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def clashes(self, other: Endpoint) -> bool:
        """Whether the kernel would refuse the second of the two."""
        return self.port == other.port and hosts_clash(self.host, other.host)


@dataclass(frozen=True, slots=True)
class PortRange:
    """TCP ports from `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def overlaps(self, other: PortRange) -> bool:
        """Whether any port is in both."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class PathPattern:
    """An absolute path with exactly one `{replica}`, which stands for one or more characters but `/`."""

    text: str

    def __str__(self) -> str:
        return self.text

    def path_of(self, replica: str) -> Path:
        """The socket's path for this replica id."""
        return Path(self.text.replace(REPLICA, replica))

    def replica_of(self, path: Path) -> str | None:
        """The replica id in `path`, or None where the path is not one of this pattern's."""
        before, _, after = self.text.partition(REPLICA)
        text = str(path)
        if len(text) <= len(before) + len(after) or not (text.startswith(before) and text.endswith(after)):
            return None
        replica = text[len(before) : len(text) - len(after)]
        return None if "/" in replica else replica

    def shared_path(self, other: PathPattern) -> str | None:
        """A path that both patterns match, or None where there is none."""
        parts = []
        for mine, theirs in zip_longest(self.text.split("/"), other.text.split("/")):
            common = None if mine is None or theirs is None else _shared_component(mine, theirs)
            if common is None:
                return None
            parts.append(common)
        return "/".join(parts)


def hosts_clash(one: str, other: str) -> bool:
    """Whether the same port on both hosts is one and the same to the kernel.

    `::` does not cover IPv4 here: nginx and asyncio both set IPV6_V6ONLY.
    """
    a, b = ipaddress.ip_address(one), ipaddress.ip_address(other)
    return a == b or (a.version == b.version and (a.is_unspecified or b.is_unspecified))


def parse_endpoint(value: object) -> Endpoint:
    """`HOST:PORT` or `[HOST]:PORT`; `localhost` is read as 127.0.0.1."""
    if isinstance(value, Endpoint):
        return value
    cure = "use HOST:PORT, for example 127.0.0.1:30000 or [::1]:30000"
    text = text_in(_digits(value), cure)
    if re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError(f"{text} has no host; use 127.0.0.1:{text}, or 0.0.0.0:{text} for all interfaces")
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise ValueError(f"{show(text)} has no port; {cure}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{show(text)} is an IPv6 address without brackets; {cure}")
    if host in ("", "*"):
        raise ValueError(f"{show(text)} has no host; use 0.0.0.0:{port_text} for all interfaces")
    if not re.fullmatch(r"[0-9]{1,9}", port_text):
        raise ValueError(f"{show(text)} has no port number after the last colon; {cure}")
    if not 1 <= int(port_text) <= 65535:
        raise ValueError(f"port {port_text} leaves the port range; use 1-65535")
    return Endpoint(_host(host, text), int(port_text))


def parse_peer_address(value: object) -> Endpoint:
    """`HOST:PORT` where a replica's peers find it."""
    cure = "use the address that the replica's peers know it by, for example 10.0.0.5:8000"
    if not isinstance(value, str):
        raise NotTextError(cure)
    endpoint = parse_endpoint(value)
    host = ipaddress.ip_address(endpoint.host)
    if host.is_unspecified or host.is_multicast:
        raise ValueError(f"{show(value)} is not the address of a single machine; {cure}")
    return endpoint


def parse_network(value: object) -> str:
    """An IP network in its plain spelling, such as 10.0.0.0/8."""
    cure = "use ADDRESS/LENGTH, for example 10.0.0.0/8 or fd00::/8"
    text = text_in(value, cure)
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"{show(text)} is not a network ({error}); {cure}") from None


def parse_interface(value: object) -> str:
    """A network interface's name that the kernel accepts and no other interface uses."""
    cure = "use a name of its own such as gwsc0: letters, digits and - _ . , 15 characters at most"
    text = text_in(value, cure)
    if not re.fullmatch(INTERFACE_PATTERN, text) or text in ("lo", ".", "..", "all", "default"):
        raise ValueError(f"{show(text)} is not a name for the daemon's interface; {cure}")
    return text


def parse_bridge_host(value: object) -> str:
    """One IP address of this machine, as bridges are named to the router by it."""
    cure = "use one IP address of this machine, for example 127.0.0.1"
    text = text_in(value, cure)
    host = _host(text.removeprefix("[").removesuffix("]"), text)
    if ipaddress.ip_address(host).is_unspecified:
        raise ValueError(f"{show(text)} stands for every address, and the router needs one to connect to; {cure}")
    return host


def parse_ports(value: object) -> PortRange:
    """`FIRST-LAST`, or one port."""
    if isinstance(value, PortRange):
        return value
    cure = "use FIRST-LAST, for example 24001-24999"
    text = text_in(_digits(value), cure)
    found = re.fullmatch(r"([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?", text)
    if not found:
        raise ValueError(f"{show(text)} is not a port range; {cure}")
    first, last = int(found[1]), int(found[2] or found[1])
    if not (1 <= first <= 65535 and 1 <= last <= 65535):
        raise ValueError(f"{show(text)} leaves the port range; use 1-65535")
    if first > last:
        raise ValueError(f"{show(text)} ends before it begins; use {last}-{first}")
    if last - first >= _BRIDGE_PORTS_MOST:
        raise ValueError(
            f"{show(text)} holds {last - first + 1} ports, and each is a listening socket;"
            f" use {_BRIDGE_PORTS_MOST} at most"
        )
    return PortRange(first, last)


def parse_directory(value: object) -> Path:
    """An absolute directory whose path nginx and systemd accept unquoted."""
    cure = "use an absolute path such as /var/lib/gateway-sidecar"
    path = parse_path(str(value) if isinstance(value, Path) else value, cure)
    if path == Path("/"):
        raise ValueError(f"'/' cannot belong to the daemon alone; {cure}")
    if unsafe := _UNSAFE_IN_DIRECTORY.search(str(path)):
        raise ValueError(
            f"{show(str(path))} holds {unsafe[0]!r}, which nginx's configuration cannot carry;"
            " use letters, digits and - _ . / only"
        )
    return path


def parse_run_dir(value: object) -> Path:
    """A directory short enough for the sockets in it."""
    path = parse_directory(value)
    if len(str(path).encode()) > RUN_DIR_BYTES:
        raise ValueError(
            f"{show(str(path))} is {len(str(path).encode())} bytes long, too long for the sockets below it;"
            f" use {RUN_DIR_BYTES} bytes at most"
        )
    return path


def parse_path(value: object, cure: str) -> Path:
    """An absolute path in its plain spelling."""
    text = text_in(value, cure)
    if text.startswith("~"):
        raise ValueError(f"{show(text)} begins with ~, which only a shell replaces; {cure}")
    if not text.startswith("/"):
        raise ValueError(f"{show(text)} is relative, and a daemon has no current directory to begin from; {cure}")
    if "\0" in text:
        raise ValueError(f"{show(text)} holds a NUL character; {cure}")
    if ".." in PurePosixPath(text).parts:
        raise ValueError(f"{show(text)} holds '..'; write the path that it leads to")
    return Path(text.replace("//", "/"))


def parse_file(value: object) -> str:
    """A file's absolute path."""
    return str(parse_path(value, "use an absolute path such as /etc/gateway-sidecar/admin.crt"))


def parse_command(value: object) -> str:
    """The name of a program that PATH has, or its absolute path."""
    cure = "use a name found in PATH or an absolute path"
    text = text_in(value, cure)
    if text != text.strip() or "\0" in text:
        raise ValueError(f"{show(text)} begins or ends with a space, or holds a NUL; {cure}")
    if "/" in text and not text.startswith("/"):
        raise ValueError(
            f"{show(text)} is a relative path, and a daemon has no current directory to begin from; {cure}"
        )
    if text.startswith("-") or (" " in text and "/" not in text):
        raise ValueError(f"{show(text)} is not one program's name; {cure} (options go elsewhere)")
    return text


def parse_name(value: object) -> str:
    """A service's name: it becomes a directory, a label and an nginx variable's part."""
    cure = "use a-z, 0-9 and -, beginning and ending with a letter or digit, 63 characters at most"
    text = text_in(value, cure)
    if not re.match(NAME_PATTERN, text) or text.endswith("\n"):
        raise ValueError(f"{show(text)} is not a service name; {cure}")
    return text


def parse_pattern(value: object) -> PathPattern:
    """An absolute path with exactly one `{replica}`."""
    if isinstance(value, PathPattern):
        return value
    cure = "use an absolute path such as /run/replicas/chat/{replica}.sock"
    text = text_in(value, cure)
    if text.count(REPLICA) != 1:
        many = "no" if REPLICA not in text else "more than one"
        raise ValueError(f"{show(text)} has {many} {{replica}}; write it once, where the replica's id stands")
    path = str(parse_path(text, cure))
    rest = path.replace(REPLICA, "")
    if odd := re.search(r"[*?\[\]{}]", rest):
        raise ValueError(f"{show(text)} holds {odd[0]!r}; {{replica}} is the only wildcard")
    if text.endswith("/"):
        raise ValueError(f"{show(text)} is a directory; name the socket in it, for example {text}engine.sock")
    return PathPattern(path)


def show(value: object) -> str:
    """A value as a problem line shows it: quoted, on one line, cut where it is long."""
    return shorten(repr(value))


def shorten(text: str) -> str:
    """The beginning and the end of what is too long for a line."""
    return text if len(text) <= 72 else f"{text[:60]}...{text[-6:]}"


def _digits(value: object) -> object:
    """A port number is an int to YAML; here it is text like the rest."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def text_in(value: object, cure: str) -> str:
    """A value that is to be a text with something in it. Raises ValueError; `NotTextError` for what is none."""
    if not isinstance(value, str):
        raise NotTextError(cure)
    if not value:
        raise ValueError(f"is an empty text; {cure}")
    return value


def _host(host: str, text: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{show(text)}: host {show(host)} is not an IP address; use an IP address of this machine or localhost"
        ) from None
    if "%" in host:
        raise ValueError(f"{show(text)} names an interface after %; use an address without one")
    return str(address)


def _shared_component(one: str, other: str) -> str | None:
    if REPLICA not in one and REPLICA not in other:
        return one if one == other else None
    if REPLICA not in one:
        one, other = other, one
    before, _, after = one.partition(REPLICA)
    if REPLICA not in other:
        fits = other.startswith(before) and other.endswith(after) and len(other) > len(before) + len(after)
        return other if fits else None
    before2, _, after2 = other.partition(REPLICA)
    head, tail = max(before, before2, key=len), max(after, after2, key=len)
    if all(head.startswith(part) for part in (before, before2)) and all(
        tail.endswith(part) for part in (after, after2)
    ):
        return f"{head}x{tail}"
    return None
