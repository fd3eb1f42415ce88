"""The command line's side of the admin API: plain `http.client`, over a Unix socket or TLS, a connection each time."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, urlencode, urlsplit

from gateway_sidecar.api.said import Said, read_said
from gateway_sidecar.errors import AdminError, AdminRefused, ConfigError, DaemonAway, DaemonUnready, NotInForce
from gateway_sidecar.supervision.lock import holder_of

if TYPE_CHECKING:
    from gateway_sidecar.api import models

_PIECE_BYTES = 65536  # More than an event has: one call takes what has come.
_HUNG = (
    "`systemctl restart gateway-sidecar` ends a daemon that hangs, and interrupts no request; one that goes on may "
    "still do what it was asked to"
)
_PATIENCE_S = 30.0
"""So much longer than asked for may an answer to PUT or DELETE take."""


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


class Client:
    """The admin API of the daemon at `place`, with a method for each thing that a command asks for.

    All of them raise DaemonAway if nobody listens there, DaemonUnready if nobody does yet, AdminRefused if the daemon
    refuses the request, and AdminError if no answer comes that can be used.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def status(self) -> models.Status:
        """The whole daemon."""
        return cast("models.Status", self._ask("GET", "/v1/status"))

    def fleet(self) -> models.FleetStatus:
        """All gateways, and what each of them sees."""
        return cast("models.FleetStatus", self._ask("GET", "/v1/fleet", timeout_s=_PATIENCE_S))

    def fleet_usage(self) -> models.FleetUsage:
        """What keys of the store have used at all gateways."""
        return cast("models.FleetUsage", self._ask("GET", "/v1/fleet/usage", timeout_s=_PATIENCE_S))

    def plan(self) -> models.Plan:
        """What the daemon would do next."""
        return cast("models.Plan", self._ask("GET", "/v1/plan"))

    def explain(self, service: str, replica: str) -> models.Explained:
        """Why a replica is where it is."""
        return cast("models.Explained", self._ask("GET", f"{_path(service, replica)}/explain"))

    def events(self, **query: str | int | None) -> models.Events:
        """The last events; `query` as `GET /v1/events` takes it."""
        return cast("models.Events", self._ask("GET", f"/v1/events{_query(query)}"))

    @contextmanager
    def following(self, **query: str | int | None) -> Iterator[Stream]:
        """The events from now on, each as it is logged."""
        connection = _connection(self.place, None)
        try:
            with _translated(self.place, None):
                connection.request("GET", f"/v1/events{_query({**query, 'follow': 1})}")
                response = connection.getresponse()
                if response.status != 200:
                    answer = cast("models.Error", read_said(response.read()))
                    raise AdminRefused(response.status, str(answer.get("error")), [], None)
            yield Stream(self.place, connection.sock, response)
        finally:
            connection.close()

    def usage(self, asked: Mapping[str, str]) -> models.Usage:
        """What clients have used; `asked` are the parameters of the query."""
        return cast("models.Usage", self._ask("GET", f"/v1/usage?{urlencode(asked)}", timeout_s=_PATIENCE_S))

    def reload(self) -> models.Reloaded:
        """Has the configuration read again. Raises ConfigError, NotInForce."""
        try:
            return cast("models.Reloaded", self._ask("POST", "/v1/reload", timeout_s=None))
        except AdminRefused as refused:
            if refused.status == 422:
                raise ConfigError(refused.problems) from refused
            if refused.changes is not None:
                raise NotInForce(refused.problems, refused.changes) from refused
            raise

    def stop(self, *, everything: bool, timeout_s: float) -> models.Stopped:
        """Has the daemon end; with `everything` nginx and the routers too, after `timeout_s` seconds at most."""
        query = f"all=true&timeout_s={timeout_s:g}" if everything else "all=false"
        return cast("models.Stopped", self._ask("POST", f"/v1/stop?{query}"))

    def accept_store(self, *, refill: bool) -> models.Accepted:
        """Has every gateway believe the store; with `refill` after this gateway has put back what it knows."""
        target = f"/v1/store/accept?refill={'true' if refill else 'false'}"
        return cast("models.Accepted", self._ask("POST", target, timeout_s=60.0))

    def stored_keys(self) -> models.StoredKeys:
        """The keys of the store, as the gateway knows them."""
        return cast("models.StoredKeys", self._ask("GET", "/v1/store/keys"))

    def store_key(self, name: str, line: str | None, seen: int | None) -> models.KeyStored:
        """Writes a key's or a plan's line, or removes it for None, if it is still at the revision that was `seen`."""
        target = f"/v1/store/keys/{quote(name, safe='')}"
        body: models.KeyToStore = {"line": line, "seen": seen}
        return cast("models.KeyStored", self._ask("PUT", target, body=body, timeout_s=_PATIENCE_S))

    def stored_certificates(self) -> models.StoredCertificates:
        """The certificates of the store, as the gateway knows them."""
        return cast("models.StoredCertificates", self._ask("GET", "/v1/store/certificates"))

    def store_certificate(self, name: str, pem: str | None, seen: int | None) -> models.CertificateStored:
        """Writes a certificate with its key, or removes it for None, if it is still at the revision that was `seen`."""
        target = f"/v1/store/certificates/{quote(name, safe='')}"
        body: models.CertificateToStore = {"pem": pem, "seen": seen}
        return cast("models.CertificateStored", self._ask("PUT", target, body=body, timeout_s=_PATIENCE_S))

    def leave(self, *, timeout_s: float | None) -> models.Leave:
        """Has the gateway leave, within `timeout_s` seconds where they are given; returns at once."""
        query = "" if timeout_s is None else f"?timeout_s={timeout_s:g}"
        return cast("models.Leave", self._ask("POST", f"/v1/leave{query}"))

    def leaving(self) -> models.Leave:
        """How it stands."""
        return cast("models.Leave", self._ask("GET", "/v1/leave"))

    def join(self) -> models.Joined:
        """Takes a gateway back that is leaving; returns when everything is served."""
        return cast("models.Joined", self._ask("POST", "/v1/join", timeout_s=None))

    def restart_router(self, service: str) -> models.Restarted:
        """Has a service's router replaced; returns when the new one serves."""
        return cast("models.Restarted", self._ask("POST", f"{_path(service)}/router/restart", timeout_s=None))

    def replicas(self, service: str) -> models.Replicas:
        """A service's replicas."""
        return cast("models.Replicas", self._ask("GET", f"{_path(service)}/replicas"))

    def put(self, service: str, replica: str, entry: Mapping[str, object], *, wait_s: float | None) -> models.Put:
        """Adds or changes a replica; with `wait_s` returns when it serves. Raises ConfigError for an invalid entry."""
        query = "" if wait_s is None else f"?wait=serving&timeout_s={wait_s:g}"
        target, timeout_s = f"{_path(service, replica)}{query}", _PATIENCE_S + (wait_s or 0.0)
        try:
            return cast("models.Put", self._ask("PUT", target, body=entry, timeout_s=timeout_s))
        except AdminRefused as refused:
            if refused.status == 422:
                raise ConfigError(refused.problems) from refused
            raise

    def delete(self, service: str, replica: str, *, drain_s: float) -> models.Drained:
        """Removes a replica, after what is in flight has ended or after `drain_s` seconds."""
        target = _path(service, replica) + (f"?drain_s={drain_s:g}" if drain_s else "")
        return cast("models.Drained", self._ask("DELETE", target, timeout_s=_PATIENCE_S + drain_s))

    def preview_drain(self, service: str, replica: str) -> models.Unanswered:
        """What no replica could answer without this one."""
        return cast("models.Unanswered", self._ask("GET", f"{_path(service, replica)}/drain"))

    def drain(self, service: str, replica: str, *, timeout_s: float | None) -> models.Drained:
        """Takes a replica out of rotation; returns when nothing is in flight, or after `timeout_s` seconds."""
        query = "" if timeout_s is None else f"?timeout_s={timeout_s:g}"
        target = f"{_path(service, replica)}/drain{query}"
        return cast("models.Drained", self._ask("POST", target, timeout_s=None, or_status=504))

    def resume(self, service: str, replica: str) -> models.Resumed:
        """Takes a drained replica back into rotation."""
        return cast("models.Resumed", self._ask("POST", f"{_path(service, replica)}/resume"))

    def _ask(
        self, method: str, target: str, *, body: object = None, timeout_s: float | None = 10.0, or_status: int = 200
    ) -> object:
        """The JSON answer, of status 2xx or `or_status`."""
        status, answer = _exchange(self.place, method, target, body, timeout_s)
        if 200 <= status < 300 or status == or_status:
            return answer
        error = cast("models.Error", answer)
        raise AdminRefused(status, str(error.get("error")), error.get("problems", []), error.get("changes"))


def _path(service: str, replica: str | None = None) -> str:
    """The path of a service, or of one of its replicas, whatever bytes the names hold."""
    of_service = f"/v1/services/{quote(os.fsencode(service), safe='')}"
    return of_service if replica is None else f"{of_service}/replicas/{quote(os.fsencode(replica), safe='')}"


def _query(query: Mapping[str, str | int | None]) -> str:
    said = {name: str(value) for name, value in query.items() if value is not None}
    return f"?{urlencode(said, errors='surrogateescape')}" if said else ""


class Stream:
    """Events that are followed. It ends when the daemon does."""

    def __init__(self, place: Place, sock: socket.socket | None, response: http.client.HTTPResponse) -> None:
        self._place = place
        self._sock = sock
        self._response = response

    def wait(self, timeout_s: float) -> bool:
        """Whether an event came within so many seconds; what came is taken, whatever it is. Raises DaemonAway."""
        if self._sock is None or not select.select([self._sock], [], [], timeout_s)[0]:
            return False
        with _translated(self._place, None):
            if not self._response.read1(_PIECE_BYTES):
                raise DaemonAway(f"the daemon at {self._place} has ended")
        return True

    def __iter__(self) -> Iterator[dict[str, object]]:
        with suppress(OSError, http.client.HTTPException):  # However its end looks, the daemon has ended.
            while line := self._response.readline():
                try:
                    event = read_said(line)
                except ValueError as error:
                    raise AdminError(f"no usable answer at {self._place}: {error}") from error
                if not isinstance(event, Said):
                    raise AdminError(f"no usable answer at {self._place}: not an object")
                yield event


def _connection(place: Place, timeout_s: float | None) -> http.client.HTTPConnection:
    return place.connection(timeout_s) if isinstance(place, Remote) else _UnixConnection(place, timeout_s)


def _exchange(
    place: Place, method: str, target: str, body: object, timeout_s: float | None
) -> tuple[int, dict[str, object]]:
    """Status code and JSON answer. Raises AdminError."""
    connection = _connection(place, timeout_s)
    try:
        with _translated(place, timeout_s):
            if body is None:
                connection.request(method, target)
            else:
                connection.request(method, target, json.dumps(body).encode(), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = read_said(response.read())
    finally:
        connection.close()
    if not isinstance(answer, Said):
        raise AdminError(f"no usable answer at {place}: not an object")
    return response.status, answer


@contextmanager
def _translated(place: Place, timeout_s: float | None) -> Iterator[None]:
    """What is wrong with the daemon, or with the way to it, in words. Raises AdminError."""
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError) as error:
        pid = holder_of(place.parent) if isinstance(place, Path) else None
        if pid is not None:
            raise DaemonUnready(
                f"the daemon (pid {pid}) starts, or ends, and does not listen at {place} now; try again in a moment"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise DaemonAway(f"{place} does not exist: the daemon does not run, or it has another run_dir") from error
        raise DaemonAway(f"nobody listens at {place}: the daemon does not run") from error
    except PermissionError as error:
        raise AdminError(f"no permission for {place}: run this as the daemon's user, root, or in its group") from error
    except ssl.SSLError as error:
        raise AdminError(f"{place}: TLS with the daemon failed: {error}") from error
    except TimeoutError as error:
        raise AdminError(f"the daemon did not answer at {place} within {timeout_s or 0:g} s; {_HUNG}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AdminError(f"no usable answer at {place}: {error}") from error
