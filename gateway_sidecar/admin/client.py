"""The command line's side of the admin API. Plain `http.client` over a Unix socket: one request, then done."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from gateway_sidecar.errors import AdminError


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("gateway-sidecar", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask_daemon(path: Path, method: str, target: str, *, timeout_s: float | None = 10.0) -> tuple[int, dict[str, Any]]:
    """Status code and JSON answer of the daemon behind the socket `path`. Raises AdminError."""
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except FileNotFoundError as error:
        raise AdminError(f"{path} does not exist: the daemon does not run, or it has another run_dir") from error
    except ConnectionRefusedError as error:
        raise AdminError(f"nobody listens at {path}: the daemon does not run") from error
    except PermissionError as error:
        raise AdminError(f"no permission for {path}: run this as the daemon's user, root, or in its group") from error
    except TimeoutError as error:
        raise AdminError(f"the daemon did not answer at {path} within {timeout_s:g} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AdminError(f"no usable answer at {path}: {error}") from error
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise AdminError(f"no usable answer at {path}: not an object")
    return response.status, answer
