"""The command line's side of the admin API. Plain `http.client`, over a Unix socket or TLS: one request, then done."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway_sidecar.errors import AdminError, DaemonAway


@dataclass(frozen=True, slots=True)
class Remote:
    """A daemon's `admin.listen`, and the files that prove us to it and it to us."""

    url: str
    certificate: Path
    key: Path
    ca: Path

    def connection(self, timeout_s: float | None) -> http.client.HTTPConnection:
        """Not connected yet. Raises AdminError for an address or files that cannot be used."""
        try:
            parts = urlsplit(self.url)
            host, port, extra = parts.hostname, parts.port, parts.path.strip("/") + parts.query
        except ValueError as error:
            raise AdminError(f"{self.url}: {error}; use https://HOST:PORT") from error
        if parts.scheme != "https" or host is None or port is None or extra:
            raise AdminError(f"{self.url} is not the address of an admin API; use https://HOST:PORT")
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ValueError) as error:
            files = f"{self.certificate}, {self.key} and {self.ca}"
            raise AdminError(f"cannot use {files}: {error}; give PEM files: --cert, --key and --ca") from error
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)

    def __str__(self) -> str:
        return self.url


Place = Path | Remote
"""Where a daemon's admin API is."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("gateway-sidecar", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask_daemon(
    path: Place, method: str, target: str, *, body: object = None, timeout_s: float | None = 10.0
) -> tuple[int, dict[str, Any]]:
    """Status code and JSON answer of the daemon at `path`. Raises AdminError, DaemonAway if there is none."""
    connection = path.connection(timeout_s) if isinstance(path, Remote) else _UnixConnection(path, timeout_s)
    try:
        if body is None:
            connection.request(method, target)
        else:
            connection.request(method, target, json.dumps(body).encode(), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
    except FileNotFoundError as error:
        raise DaemonAway(f"{path} does not exist: the daemon does not run, or it has another run_dir") from error
    except ConnectionRefusedError as error:
        raise DaemonAway(f"nobody listens at {path}: the daemon does not run") from error
    except PermissionError as error:
        raise AdminError(f"no permission for {path}: run this as the daemon's user, root, or in its group") from error
    except ssl.SSLError as error:
        raise AdminError(f"{path}: no trust between us and the daemon: {error}") from error
    except TimeoutError as error:
        raise AdminError(f"the daemon did not answer at {path} within {timeout_s:g} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AdminError(f"no usable answer at {path}: {error}") from error
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise AdminError(f"no usable answer at {path}: not an object")
    return response.status, answer
