"""Orders certificates of an ACME server (RFC 8555), with certbot's own library. All of it blocks, for minutes perhaps.

The names are proved over HTTP (HTTP-01), at this gateway or at any other (`Answers`).
"""

from __future__ import annotations

import binascii
import datetime
import io
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self

import josepy.errors
import requests
from acme import challenges, errors, messages
from acme.client import ClientNetwork, ClientV2
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from josepy.b64 import b64decode
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC
from requests.adapters import HTTPAdapter

from gateway_sidecar import __version__
from gateway_sidecar.config import AcmeSettings
from gateway_sidecar.config.text_file import read_file
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.trust import OTHERS
from gateway_sidecar.errors import AcmeError, ConfigError
from gateway_sidecar.frontend.acme_state import AcmeState, Wanted
from gateway_sidecar.frontend.certificate import today
from gateway_sidecar.frontend.challenges import TOKEN, Answers

_TIMEOUT_S = 30  # A choice: for one answer; it is shorter than the library's own 45 s, and an order takes several.
_ORDER_S = 180.0
"""For all names to be proved and the certificate to be issued: the library's own bound is 90 s, and a server may try to
reach a name several times."""
_NONCES = 10
"""Times two tries: a server may refuse a nonce at any time, and then gives another (RFC 8555, 6.5)."""
_MOST_KEY_BYTES = 4096  # A choice: such a key has some dozens of bytes.
_MOST_CA_BYTES = _MOST_ANSWER_BYTES = 1024 * 1024
"""As of a certificate's file (`x509.py`): an answer is a chain of them at most."""
_RESOURCES = ("newNonce", "newAccount", "newOrder")
_NEEDS_EAB = "accounts there need external account binding; give acme.eab, with the key that the authority gave you"
_CURES = {
    "connection": "let it reach port 80 of that name, which must lead to frontend.redirect",
    "dns": "have that name resolve to this machine",
    "unauthorized": "have that name lead to frontend.redirect of this machine, at port 80",
    "rejectedIdentifier": "use names for which this certificate authority issues",
    "caa": "have the CAA record of that name allow this certificate authority",
}
"""The kinds of problems (RFC 8555, 6.7) about which somebody here can do something."""


@dataclass(frozen=True, slots=True)
class Directory:
    """What an ACME server says of itself. terms: the URL of its terms of service, if it has any."""

    terms: str | None
    needs_eab: bool


def read_hmac_key(path: Path) -> str:
    """The key of the external account binding, in base64url. Raises AcmeError, which never shows it."""
    name = "acme.eab.hmac_key_file"
    try:
        file = read_file(path, _MOST_KEY_BYTES)
    except ConfigError as error:
        raise AcmeError(f"{name}: {error}".replace(", or name another with --config", "")) from None
    if file.mode & OTHERS:
        raise AcmeError(f"{name}: {path}: others may read or change it (mode {file.mode:04o}); use chmod 0600 or 0640")
    text = file.content.decode("ascii", "replace").strip().rstrip("=")
    try:
        usable = bool(text) and bool(re.fullmatch(r"[A-Za-z0-9_-]+", text)) and bool(b64decode(text))
    except (binascii.Error, ValueError):
        usable = False
    if not usable:
        raise AcmeError(f"{name}: {path}: holds no key in base64url; write the HMAC key there, and nothing else")
    return text


def read_directory(settings: AcmeSettings) -> Directory:
    """What the server says of itself. Raises AcmeError."""
    with _Session(settings) as session:
        meta = session.client().directory.meta
        return Directory(meta.terms_of_service, bool(meta.external_account_required))


def order(
    settings: AcmeSettings,
    state: AcmeState,
    wanted: Wanted,
    answers: Answers,
    told: Callable[[str], None] = lambda _: None,
) -> bytes:
    """A new certificate: its chain and its key, in PEM. Raises AcmeError, OSError, StoreError.

    answers: has the server find what it asks for. told: hears of a new account's URL.
    """
    key = _key_of(state.pem(wanted))
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in wanted.names])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
    csr = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    with _Session(settings) as session:
        account = _Account(settings, state)
        client = session.client(account.key)
        account.use(client, told)
        try:
            started = client.new_order(csr)
        except messages.Error as error:
            if error.code != "accountDoesNotExist":
                raise
            account.make(client, told)  # The server has lost it. Its key is as good as before.
            started = client.new_order(csr)
        asked = list(_asked(account.key, started.authorizations))
        with answers({challenge.chall.encode("token"): text for challenge, _, text in asked}):
            for challenge, response, _ in asked:
                client.answer_challenge(challenge, response)
            chain = client.poll_and_finalize(started, _deadline()).fullchain_pem
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return str(chain).encode().rstrip() + b"\n" + secret


def _key_of(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key of the certificate that is there, which clients may have pinned; or a new one."""
    with suppress(OSError, ValueError, TypeError, UnsupportedAlgorithm):
        key = load_pem_private_key(path.read_bytes(), None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key
    return ec.generate_private_key(ec.SECP256R1())


def suggested_renewal(settings: AcmeSettings, pem: bytes) -> tuple[float | None, float]:
    """When the server would have the certificate renewed (ARI, RFC 9773), in seconds since 1970, None where it does not
    say; and in how many seconds it may be asked again. Raises AcmeError.
    """
    with _Session(settings) as session:
        suggested, again = session.client().renewal_time(pem)
    return None if suggested is None else suggested.timestamp(), again.timestamp() - today()


class _Network(ClientNetwork):
    """The library's, which asks again more often where the server refuses a nonce."""

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        """As the library's."""
        for _ in range(_NONCES - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


class _Bounded(HTTPAdapter):
    """Reads no more of an answer than any of an ACME server has."""

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        """As the library's. Raises RequestException for a longer answer."""
        response = super().send(*args, **kwargs)
        with response.raw as raw:
            content = raw.read(_MOST_ANSWER_BYTES + 1, decode_content=True)
        if len(content) > _MOST_ANSWER_BYTES:
            raise requests.exceptions.RequestException(f"its answer is longer than {_MOST_ANSWER_BYTES // 1024} KiB")
        response.raw = io.BytesIO(content)
        return response


class _Session:
    """What is said to one server. It translates what goes wrong meanwhile into AcmeError."""

    def __init__(self, settings: AcmeSettings) -> None:
        self._url = settings.directory
        self._ca_file = settings.ca_file
        self._net: _Network | None = None
        self._asked_s = 0.0

    def client(self, key: JWKEC | None = None) -> ClientV2:
        """For the account with this key; without one it can only read. Raises AcmeError."""
        net = _Network(key, alg=ES256, user_agent=f"gateway-sidecar/{__version__}", timeout=_TIMEOUT_S)
        if self._ca_file is not None:
            net.verify_ssl = _checked(self._ca_file)  # type: ignore[assignment]  # requests takes a path, too.
        net.session.mount("https://", _Bounded())
        net.session.mount("http://", _Bounded())
        net.session.hooks["response"].append(self._note)
        self._net = net
        said = net.get(self._url).json()
        if not isinstance(said, dict) or not all(isinstance(said.get(name), str) for name in _RESOURCES):
            raise AcmeError(f"{self._url} answers, and is no ACME directory; use the URL that the authority names")
        return ClientV2(messages.Directory.from_json(said), net)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._net is not None:
            self._net.session.close()
        if isinstance(error, AcmeError):
            return
        if isinstance(error, (requests.RequestException, errors.Error, josepy.errors.Error)):
            raise AcmeError(f"{self._url}: {_described(error)}", asked_s=self._asked_s) from None
        if isinstance(error, (LookupError, TypeError, ValueError, AttributeError, x509.ExtensionNotFound)):
            # What the library makes of an answer that lacks what it must have.
            raise AcmeError(f"{self._url} gave an answer that makes no sense: {printable(repr(error))}") from error

    def _note(self, response: requests.Response, *_: object, **__: object) -> None:
        """How long the server wants to be left alone, if it refused."""
        after = "" if response.ok else response.headers.get("Retry-After", "")
        self._asked_s = 0.0
        with suppress(ValueError, TypeError):
            self._asked_s = float(int(after)) if after.isdigit() else parsedate_to_datetime(after).timestamp() - today()


class _Account:
    """The account at the server, and its key, which is kept before the server hears of it."""

    def __init__(self, settings: AcmeSettings, state: AcmeState) -> None:
        self._settings = settings
        self._state = state
        self._key_id = settings.eab.key_id if settings.eab is not None else None
        self._said = state.account(settings.directory, self._key_id)
        self.key: JWKEC
        try:
            self.key = JWKEC.fields_from_json(self._said["key"])
        except (KeyError, TypeError, ValueError, josepy.errors.Error):
            self.key = JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
            self._keep(uri=None, email=None)

    def use(self, client: ClientV2, told: Callable[[str], None]) -> None:
        """Has the client speak for it, made if need be. Raises AcmeError, OSError."""
        if not isinstance(uri := self._said.get("uri"), str):
            self.make(client, told)
            return
        client.net.account = messages.RegistrationResource(uri=uri, body=messages.Registration())
        if self._said.get("email") != self._settings.email:
            try:
                client.update_registration(client.net.account, messages.Registration(contact=self._contact))
            except messages.Error as error:
                if error.code != "accountDoesNotExist":
                    raise
                self.make(client, told)
            else:
                self._keep(uri=uri, email=self._settings.email)

    def make(self, client: ClientV2, told: Callable[[str], None]) -> None:
        """Makes it, or finds the one that this key has already. Raises AcmeError, OSError."""
        client.net.account = None
        eab = None
        if self._settings.eab is not None:
            hmac_key = read_hmac_key(self._settings.eab.hmac_key_file)
            eab = messages.ExternalAccountBinding.from_data(
                self.key.public_key(), self._settings.eab.key_id, hmac_key, client.directory
            )
        elif client.external_account_required():
            raise AcmeError(f"{self._settings.directory}: {_NEEDS_EAB}")
        registration = messages.NewRegistration(
            contact=self._contact, terms_of_service_agreed=True, external_account_binding=eab
        )
        try:
            uri = client.new_account(registration).uri
        except errors.ConflictError as error:
            uri = error.location
            client.net.account = messages.RegistrationResource(uri=uri, body=messages.Registration())
        self._keep(uri=uri, email=self._settings.email)
        told(uri)

    @property
    def _contact(self) -> tuple[str, ...]:
        return (f"mailto:{self._settings.email}",) if self._settings.email is not None else ()

    def _keep(self, *, uri: str | None, email: str | None) -> None:
        self._said = {"key": self.key.to_json(), "uri": uri, "email": email}
        self._state.keep_account(self._settings.directory, self._key_id, self._said)


def _asked(
    key: JWK, authorizations: Sequence[messages.AuthorizationResource]
) -> Iterator[tuple[messages.ChallengeBody, challenges.ChallengeResponse, str]]:
    """What the server asks for, the answer to it, and the text that it is to find. Raises AcmeError."""
    for authorization in authorizations:
        if authorization.body.status == messages.STATUS_VALID:
            continue
        offered = [it for it in authorization.body.challenges if isinstance(it.chall, challenges.HTTP01)]
        if not offered:
            name = printable(authorization.body.identifier.value)
            raise AcmeError(f"the server offers no HTTP-01 for {name}, and nothing else is done here")
        response, text = offered[0].chall.response_and_validation(key)
        token = offered[0].chall.encode("token")
        if not TOKEN.fullmatch(token):
            raise AcmeError(f"the server asks for {printable(token)}, which is no token (RFC 8555, 8.3)")
        yield offered[0], response, text


def _checked(ca_file: Path) -> str:
    """The file, if it holds CA certificates. Raises AcmeError."""
    try:
        ssl.create_default_context(cadata=read_file(ca_file, _MOST_CA_BYTES).content.decode("ascii", "replace"))
    except ConfigError as error:
        raise AcmeError(f"acme.ca_file: {error}".replace(", or name another with --config", "")) from None
    except ssl.SSLError:
        raise AcmeError(
            f"acme.ca_file: {ca_file}: holds no CA certificate in PEM; put those that vouch there"
        ) from None
    return str(ca_file)


def _deadline() -> datetime.datetime:
    return datetime.datetime.fromtimestamp(today() + _ORDER_S)  # noqa: DTZ006 - as the library has it


def _described(error: Exception) -> str:
    """In words for people, with a cure where there is one here."""
    if isinstance(error, errors.ValidationError):
        told = [
            f"{authorization.body.identifier.value}: {_problem(challenge.error)}"
            for authorization in error.failed_authzrs
            for challenge in authorization.body.challenges
            if challenge.error is not None
        ]
        return "; ".join(told) or "a name was not proved"
    if isinstance(error, errors.IssuanceError):
        return _problem(error.error)
    if isinstance(error, messages.Error):
        return _problem(error)
    if isinstance(error, errors.TimeoutError):
        return f"the names were not proved, or the certificate not issued, within {_ORDER_S:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return f"{_innermost(error)}; if the server is a private one, name its CA in acme.ca_file"
    if isinstance(error, requests.RequestException):
        return f"cannot be reached: {_innermost(error)}"
    if isinstance(error, errors.ClientError) and error.args and isinstance(error.args[0], requests.Response):
        return f"answered with status {error.args[0].status_code}"
    return printable(f"{type(error).__name__}: {error}")


def _problem(error: messages.Error) -> str:
    """What the server said, and of which names; foreign text."""
    rows = [error, *(error.subproblems or ())]
    told = [f"{it.identifier.value}: {it.detail}" if it.identifier else it.detail or it.title or it.typ for it in rows]
    cure = _CURES.get(error.code or "")
    return printable(", ".join(told)) + (f"; {cure}" if cure else "")


def _innermost(error: BaseException) -> str:
    """The reason without the calls around it."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return printable(re.sub(r"^(<.*?>|\w+\(.*?\)): ", "", str(error)))
