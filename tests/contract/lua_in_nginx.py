"""Lua scripts of ours in an nginx of their own, and one kept connection to it: a thousand questions take a second."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pytest

from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.server import find_nginx


class LuaInNginx:
    """The kept connection."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._connection = http.client.HTTPConnection("x")

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        self._connection.sock = sock

    def close(self) -> None:
        self._connection.close()

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, *, status: int = 200
    ) -> tuple[bytes, http.client.HTTPMessage]:
        """The answer's body and head; a POST if there is a body."""
        self._connection.request("GET" if body is None else "POST", path, body, headers or {})
        answer = self._connection.getresponse()
        found = answer.read()
        assert answer.status == status, found
        return found, answer.headers


@contextmanager
def lua_in_nginx(
    directory: Path, *shipped: str, own: Mapping[str, str], locations: str, maps: str = ""
) -> Iterator[LuaInNginx]:
    """nginx with these scripts of ours, and `own`: name -> text. Skips the test where nginx has no Lua."""
    try:
        program = asyncio.run(find_nginx("nginx"))
    except NginxError as error:
        pytest.skip(str(error))
    if program.lua_modules is None:
        pytest.skip("nginx has no Lua module; `make test` installs it")
    for name in shipped:
        (directory / name).write_text((resources.files("gateway_sidecar") / "share" / name).read_text())
    for name, text in own.items():
        (directory / name).write_text(text)
    temp = " ".join(f"{it}_temp_path {directory};" for it in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (directory / "nginx.conf").write_text(f"""
        daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log; worker_processes 1;
        {"user root;" if os.geteuid() == 0 else ""}
        {" ".join(f"load_module {module};" for module in program.lua_modules)}
        events {{ worker_connections 64; }}
        http {{
            access_log off; {temp} lua_package_path "{directory}/?.lua;;"; keepalive_requests 1000000;
            client_body_buffer_size 2m; client_max_body_size 2m;
            {maps}
            server {{ listen unix:{directory}/lua.sock; {locations} }}
        }}
    """)
    process = subprocess.Popen([program.path, "-p", str(directory), "-c", str(directory / "nginx.conf")])
    found = LuaInNginx(directory / "lua.sock")
    try:
        while True:
            try:
                found.connect()
                break
            except OSError:
                assert process.poll() is None, (directory / "error.log").read_text()
                time.sleep(0.01)
        yield found
    finally:
        found.close()
        process.terminate()
        process.wait()
