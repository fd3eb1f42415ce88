"""Orders at a real ACME server, pebble, with a plain HTTP server in nginx's place; and at servers that lie."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography import x509

from gateway_sidecar.check import acme_findings
from gateway_sidecar.config import AcmeSettings, EabSettings, parse_config
from gateway_sidecar.domain.findings import Level
from gateway_sidecar.errors import AcmeError
from gateway_sidecar.frontend.acme_client import order, read_directory, read_hmac_key, suggested_renewal
from gateway_sidecar.frontend.acme_state import AcmeState, Wanted
from gateway_sidecar.frontend.challenges import answered_at
from tests.certificates import Authority, chain_and_key
from tests.pebble import Pebble, needs_pebble, pebble
from tests.system.gateway import PortBlock

NAME, OTHER = "api.example.com", "b.example.com"
HMAC_KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


class Place:
    """Where an order keeps its things, and a server that answers as nginx does, for the names that it knows."""

    def __init__(self, directory: Path, port: int) -> None:
        self.challenges = directory / "challenges"
        self.state = AcmeState(directory / "acme")
        self.names = {NAME, OTHER}
        self.accounts: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def order(self, server: Pebble, *names: str, **changes: Any) -> bytes:
        """An order of these names, as the daemon makes it."""
        settings = AcmeSettings(directory=server.url, accept_terms=True, ca_file=server.ca_file)
        wanted = Wanted.of(names or (NAME,), server.url)
        changed = settings.model_copy(update=changes)
        return order(changed, self.state, wanted, partial(answered_at, self.challenges), self.accounts.append)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        place = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                file = place.challenges / self.path.rpartition("/")[2]
                known = self.headers["Host"].partition(":")[0] in place.names
                body = file.read_bytes() if known else b"nothing"
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        return Handler


@pytest.fixture
def port() -> Iterator[int]:
    block = PortBlock()
    yield block.first
    block.release()


@pytest.fixture
def place(tmp_path: Path, port: int) -> Iterator[Place]:
    made = Place(tmp_path, port)
    yield made
    made.close()


@pytest.fixture
def server(tmp_path: Path, port: int) -> Iterator[Pebble]:
    with pebble(tmp_path / "pebble", port) as running:
        yield running


def names_of(pem: bytes) -> set[str]:
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names.get_values_for_type(x509.DNSName))


@needs_pebble
def test_an_order_brings_a_certificate_for_all_names_and_leaves_nothing_behind(place: Place, server: Pebble) -> None:
    """One account is made, and used for the next order, too; its key is for this user alone."""
    wanted = Wanted.of((OTHER, NAME), server.url)
    for _ in range(2):
        pem = place.order(server, NAME, OTHER)
        assert names_of(pem) == {NAME, OTHER}
        place.state.keep(wanted, pem, time.time())
    assert len(place.accounts) == 1
    assert place.state.pem(wanted).read_bytes() == pem
    assert not place.challenges.exists()
    assert {path.stat().st_mode & 0o777 for path in (place.challenges.parent / "acme").iterdir()} == {0o600}


@needs_pebble
def test_a_server_that_refuses_most_nonces_issues_all_the_same(tmp_path: Path, port: int, place: Place) -> None:
    """It may refuse any at any time, and then gives another."""
    with pebble(tmp_path / "pebble", port, nonces_refused=60) as server:
        assert names_of(place.order(server)) == {NAME}


@needs_pebble
def test_an_account_that_the_server_has_lost_is_made_again_with_the_same_key(place: Place, server: Pebble) -> None:
    """As after the restart of a private server. A changed address is told to the server."""
    place.order(server, email="ops@example.com")
    key = place.state.account(server.url, None)["key"]
    server.stop()
    server.start()
    assert names_of(place.order(server, email="ops@example.com")) == {NAME}
    assert place.state.account(server.url, None)["key"] == key
    assert len(place.accounts) == 2
    place.order(server, email="others@example.com")
    assert place.state.account(server.url, None)["email"] == "others@example.com"
    assert len(place.accounts) == 2


@needs_pebble
def test_an_account_whose_answer_was_lost_is_found_again(place: Place, server: Pebble) -> None:
    """Its key was kept before the server heard of it."""
    place.order(server)
    account = place.state.account(server.url, None)
    place.state.keep_account(server.url, None, {**account, "uri": None})
    place.order(server)
    assert place.state.account(server.url, None) == account


@needs_pebble
def test_a_name_that_leads_elsewhere_is_named_with_the_cure(place: Place, server: Pebble) -> None:
    """What the server said, and what to do about it. A later order is not hindered."""
    place.names.discard(OTHER)
    with pytest.raises(AcmeError, match=f"{OTHER}: .*; have that name lead to frontend.redirect") as caught:
        place.order(server, NAME, OTHER)
    assert f"{NAME}:" not in str(caught.value)
    assert not place.challenges.exists()
    place.names.add(OTHER)
    assert names_of(place.order(server, NAME, OTHER)) == {NAME, OTHER}


@needs_pebble
def test_external_account_binding(tmp_path: Path, port: int, place: Place) -> None:
    """With the key from its file, and in no message; without one the message says what is missing."""
    file = tmp_path / "hmac"
    file.write_text(f"{HMAC_KEY}\n")
    file.chmod(0o600)
    eab = EabSettings(key_id="kid-1", hmac_key_file=file)
    with pebble(tmp_path / "pebble", port, eab={"kid-1": HMAC_KEY}) as server:
        settings = AcmeSettings(directory=server.url, accept_terms=True, ca_file=server.ca_file)
        assert read_directory(settings).needs_eab
        with pytest.raises(AcmeError, match=r"need external account binding; give acme\.eab"):
            place.order(server)
        file.write_text(HMAC_KEY[::-1])
        with pytest.raises(AcmeError) as caught:
            place.order(server, eab=eab)
        assert HMAC_KEY[::-1] not in str(caught.value)
        file.write_text(f"{HMAC_KEY}\n")
        assert names_of(place.order(server, eab=eab)) == {NAME}
        file.unlink()  # It is needed once.
        assert names_of(place.order(server, eab=eab)) == {NAME}
        assert HMAC_KEY not in "".join(path.read_text() for path in (tmp_path / "acme").iterdir())


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("not base64!", 0o600, "holds no key in base64url; write the HMAC key there"),
        ("", 0o600, "holds no key in base64url"),
        (HMAC_KEY, 0o644, "others may read or change it \\(mode 0644\\); use chmod 0600"),
        (HMAC_KEY * 100, 0o600, "is larger than 4 KiB"),
        (None, 0o600, "no such file; create it$"),
    ],
)
def test_a_file_without_a_usable_key_is_named_and_not_shown(
    tmp_path: Path, text: str | None, mode: int, expected: str
) -> None:
    """The setting, the file, the cure."""
    file = tmp_path / "hmac"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(AcmeError, match=f"acme.eab.hmac_key_file: {file}: {expected}") as caught:
        read_hmac_key(file)
    assert HMAC_KEY not in str(caught.value)


@needs_pebble
def test_a_private_server_needs_its_ca(tmp_path: Path, place: Place, server: Pebble) -> None:
    """Without the right one nothing is said to it; the message names the setting."""
    for ca_file in (None, Authority(tmp_path, "other").certificate):
        with pytest.raises(
            AcmeError, match=r"certificate verify failed.*; if the server is a private one, name its CA"
        ):
            place.order(server, ca_file=ca_file)
    assert place.accounts == []
    for ca_file, expected in ((tmp_path / "none", "no such file"), (tmp_path / "empty", "holds no CA certificate")):
        (tmp_path / "empty").write_text("# nothing")
        with pytest.raises(AcmeError, match=f"acme.ca_file: {ca_file}: {expected}"):
            place.order(server, ca_file=ca_file)


def config(server: Pebble, **acme: Any) -> str:
    """A file of one service whose certificate is by this server."""
    frontend = {
        "listen": ["0.0.0.0:443"],
        "redirect": ["0.0.0.0:80"],
        "server_names": ["localhost", "nowhere.invalid"],
        "tls": {"acme": True},
    }
    service = {"name": "chat", "listen": "127.0.0.1:30000", "replicas": {}, "frontend": frontend}
    return json.dumps({"acme": {**server.settings, **acme}, "services": [service]})


@needs_pebble
def test_check_says_what_stands_in_the_way(tmp_path: Path, port: int) -> None:
    """An EAB key that is missing, or cannot be read; names that lead nowhere; a server that is away."""

    def found(**acme: Any) -> list[tuple[Level, str]]:
        settings = parse_config(config(running, **acme)).model_copy(update={"state_dir": tmp_path})
        return [(it.level, it.text) for it in acme_findings(settings)]

    nowhere = (Level.WARN, "acme: nowhere.invalid has no address that this machine knows of; make the name lead here")
    none = (Level.WARN, "chat: no certificate yet; start the daemon, which orders it")
    file = tmp_path / "hmac"
    eab = {"key_id": "kid-1", "hmac_key_file": str(file)}
    with pebble(tmp_path / "pebble", port, eab={"kid-1": HMAC_KEY}) as running:
        needed, answers, *rest = found()
        assert needed == (Level.FAIL, f"acme.eab: {running.url} needs external account binding; give it")
        assert answers[0] is Level.OK
        assert "its terms of service, which acme.accept_terms accepts: data:text/plain," in answers[1]
        assert rest == [nowhere, none]
        assert found(eab=eab)[0] == (Level.FAIL, f"acme.eab.hmac_key_file: {file}: no such file; create it")
        file.write_text(HMAC_KEY)
        file.chmod(0o600)
        assert [level for level, _ in found(eab=eab)] == [Level.OK, Level.WARN, Level.WARN]
    away, *_ = found(eab=eab)
    assert away[0] is Level.FAIL
    assert away[1].startswith(f"acme: {running.url}: cannot be reached: ")
    names = ("localhost", "nowhere.invalid")
    AcmeState(tmp_path / "acme").keep(
        Wanted.of(names, running.url), chain_and_key(names, time.time(), time.time() + 90 * 86400), time.time()
    )
    assert found(eab=eab)[-1][0] is Level.OK
    assert "chat: the certificate by ACME expires in 90 days; it is renewed 20" in found(eab=eab)[-1][1]


Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def lying(answer: Callable[[str, str], Answer]) -> Iterator[AcmeSettings]:
    """A server whose answers to method and path these are; over HTTP, which no configuration file may name."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = answer(self.command, self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = _answer  # noqa: N815 - as the base class has it

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/dir"
    try:
        yield AcmeSettings.model_construct(directory=url, accept_terms=True, email=None, ca_file=None, eab=None)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def directory_of(host: str) -> bytes:
    return json.dumps({name: f"{host}/{name}" for name in ("newNonce", "newAccount", "newOrder")}).encode()


@pytest.mark.parametrize(
    ("status", "kind", "body", "expected"),
    [
        (200, "text/html", b"<html>", "ClientError: Unexpected response Content-Type: text/html"),
        (200, "application/json", b"[]", "answers, and is no ACME directory; use the URL that the authority names"),
        (200, "application/json", b"{}", "answers, and is no ACME directory"),
        (404, "text/html", b"nothing", "answered with status 404"),
        (200, "application/json", b" " * 2_000_000 + b"{}", "its answer is longer than 1024 KiB"),
        (500, "application/problem+json", b'{"detail": "no\\u001b[1m", "type": "x"}', "no\\\\x1b\\[1m"),
        (
            200,
            "application/json",
            b'{"newNonce": "a", "newAccount": "b", "newOrder": "c", "meta": 1}',
            "makes no sense",
        ),
    ],
)
def test_what_is_no_directory_is_called_that(status: int, kind: str, body: bytes, expected: str) -> None:
    """Whatever it is; foreign text is made safe."""
    with (
        lying(lambda *_: (status, {"Content-Type": kind}, body)) as settings,
        pytest.raises(AcmeError, match=expected),
    ):
        read_directory(settings)


def test_a_server_that_is_not_there_is_called_that(port: int) -> None:
    """In few words."""
    settings = AcmeSettings(directory=f"https://127.0.0.1:{port}/dir", accept_terms=True)
    with pytest.raises(AcmeError, match=r"/dir: cannot be reached: .*Connection refused$"):
        read_directory(settings)


LIMITED = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many certificates"}


@pytest.mark.parametrize(
    ("after", "least_s", "most_s"), [("7200", 7200, 7200), ("x", 0, 0), (None, 0, 0), ("-5", 0, 0)]
)
def test_a_server_that_names_a_time_is_heard(tmp_path: Path, after: str | None, least_s: float, most_s: float) -> None:
    """Whatever else it writes there."""
    base = ""

    def answer(method: str, path: str) -> Answer:
        if path == "/dir":
            return 200, {"Content-Type": "application/json"}, directory_of(base)
        if method == "HEAD":
            return 200, {"Replay-Nonce": "abcdefghijklmnopqrstuv"}, b""
        retry = {} if after is None else {"Retry-After": after}
        return 429, {"Content-Type": "application/problem+json", **retry}, json.dumps(LIMITED).encode()

    with lying(answer) as settings:
        base = settings.directory.removesuffix("/dir")
        answers = partial(answered_at, tmp_path / "challenges")
        with pytest.raises(AcmeError, match="too many certificates") as caught:
            order(settings, AcmeState(tmp_path), Wanted.of((NAME,), settings.directory), answers)
    assert least_s <= caught.value.asked_s <= most_s


@pytest.mark.parametrize("token", ["../../etc/passwd", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA/../../x", "", "a", "A" * 500])
def test_a_token_is_no_path(tmp_path: Path, token: str) -> None:
    """A server that lies has no file written elsewhere."""
    base = ""
    json_type = {"Content-Type": "application/json", "Replay-Nonce": "abcdefghijklmnopqrstuv"}

    def answer(method: str, path: str) -> Answer:
        if path == "/dir":
            return 200, json_type, directory_of(base)
        if method == "HEAD":
            return 200, json_type, b""
        if path == "/newAccount":
            return 201, {**json_type, "Location": f"{base}/account"}, b'{"status": "valid"}'
        if path == "/newOrder":
            said = {"status": "pending", "authorizations": [f"{base}/authorization"], "finalize": f"{base}/finalize"}
            return 201, {**json_type, "Location": f"{base}/order"}, json.dumps(said).encode()
        challenge = {"type": "http-01", "url": f"{base}/challenge", "token": token, "status": "pending"}
        authorization: dict[str, Any] = {
            "status": "pending",
            "identifier": {"type": "dns", "value": NAME},
            "challenges": [challenge],
        }
        return 200, json_type, json.dumps(authorization).encode()

    with lying(answer) as settings:
        base = settings.directory.removesuffix("/dir")
        state, wanted = AcmeState(tmp_path / "acme"), Wanted.of((NAME,), settings.directory)
        with pytest.raises(AcmeError):
            order(settings, state, wanted, partial(answered_at, tmp_path / "run" / "challenges"))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        path.name for path in (tmp_path / "acme").iterdir()
    ]


def test_a_server_may_say_when_it_would_have_a_certificate_renewed(tmp_path: Path) -> None:
    """And when to ask again. One that fails, or a certificate that names no issuer, brings nothing."""
    base, window, status = "", ("2027-01-15T08:00:00Z", "2027-01-15T09:00:00Z"), 200

    def answer(method: str, path: str) -> Answer:
        if path == "/dir":
            said = json.loads(directory_of(base)) | {"renewalInfo": f"{base}/renewal"}
            return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()
        body = json.dumps({"suggestedWindow": dict(zip(("start", "end"), window, strict=True))}).encode()
        return status, {"Content-Type": "application/json", "Retry-After": "7200"}, body

    pem = Authority(tmp_path, "authority").sign("one")[0].read_bytes()
    with lying(answer) as settings:
        base = settings.directory.removesuffix("/dir")
        suggested_at, again_s = suggested_renewal(settings, pem)
        assert suggested_at is not None
        assert 1800000000 <= suggested_at <= 1800003600
        assert 7100 < again_s <= 7200
        with pytest.raises(AcmeError):
            suggested_renewal(settings, chain_and_key((NAME,), time.time(), time.time() + 1e6))
        window = ("soon", "later")
        with pytest.raises(AcmeError):
            suggested_renewal(settings, pem)
        status = 500
        with pytest.raises(AcmeError):
            suggested_renewal(settings, pem)


@needs_pebble
def test_a_server_that_does_not_say_when_is_asked_again_after_hours(place: Place, server: Pebble) -> None:
    """Pebble 2.4 does not."""
    settings = AcmeSettings(directory=server.url, accept_terms=True, ca_file=server.ca_file)
    suggested_at, again_s = suggested_renewal(settings, place.order(server))
    assert suggested_at is None
    assert 21500 < again_s <= 21600
