"""The command line at a daemon of another version: what its answer lacks is told, and is no traceback."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from gateway_sidecar import __version__
from gateway_sidecar.api.client import Client
from gateway_sidecar.api.event_lines import event_line
from gateway_sidecar.api.table import render_fleet, render_status, render_usage
from gateway_sidecar.errors import AdminError

OLD = {"gateways": [{"name": "gw-1"}], "services": []}


@contextmanager
def daemon(directory: Path, said: object) -> Iterator[Client]:
    """One that always says this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(said).encode() + b"\n"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A Unix socket has no address to log."""

    with socketserver.UnixStreamServer(str(directory / "admin.sock"), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Client(directory / "admin.sock")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (lambda client: render_fleet(client.fleet()), "gone_s"),
        (lambda client: render_status(client.status()), "nginx"),
        (lambda client: render_usage(client.usage({})), "rows"),
        (lambda client: client.leaving()["phase"], "phase"),
    ],
)
def test_what_an_earlier_daemon_does_not_say_is_told(
    tmp_path: Path, ask: Callable[[Client], object], name: str
) -> None:
    """With the cure: between an upgrade and a restart the daemon is the earlier one."""
    with daemon(tmp_path, OLD) as client, pytest.raises(AdminError) as told:
        ask(client)
    assert f"has no '{name}': it is of another version than this command ({__version__})" in str(told.value)


def test_an_answer_is_otherwise_what_came(tmp_path: Path) -> None:
    """`--json` prints that, `watch` compares copies, and what may be missing is asked for as ever."""
    with daemon(tmp_path, OLD) as client:
        answer: Any = client.fleet()
        assert json.loads(json.dumps(answer)) == deepcopy(answer) == answer == OLD
        assert answer.get("other") is None
        with pytest.raises(AdminError):
            deepcopy(answer)["gateways"][0]["gone_s"]
        with client.following() as stream:
            (event,) = stream
    assert event_line(event)
    with pytest.raises(AdminError, match="has no 'event'"):
        event["event"]


def test_an_answer_that_is_no_object_is_refused(tmp_path: Path) -> None:
    """Also among events."""
    with daemon(tmp_path, [1]) as client:
        with pytest.raises(AdminError, match="not an object"):
            client.status()
        with client.following() as stream, pytest.raises(AdminError, match="not an object"):
            list(stream)
