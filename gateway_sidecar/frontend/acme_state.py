"""What is kept of ACME: the account, the certificates with their keys, and the orders that failed. All of it blocks.

Each file belongs to this user alone and is replaced as a whole: STATE_DIR/acme/NAME-ID.pem has chain and key,
NAME-ID.json the failed orders, account-ID.json the account. ID is of the ACME server's directory too, since another
server's certificate is another certificate.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.renewal import Tries, Validity
from gateway_sidecar.domain.store_memory import NOT_OURS
from gateway_sidecar.errors import AcmeError, FrontendError
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file, unfinished
from gateway_sidecar.frontend.certificate import prove_certificate, read_certificate, validity_in

_ID_DIGITS = 12  # 48 bits of a SHA-256: certificates of the same first name do not meet by chance.
_NAME_LENGTH = 200  # A host name may have 253 characters, and a file's 255.
_NONE = Tries()
_FILE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9.-]{{0,{_NAME_LENGTH - 1}}}-[0-9a-f]{{{_ID_DIGITS}}}\.(pem|json)")
_ACCOUNT = "account-"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A certificate: for which names (sorted), by which ACME server (the URL of its directory)."""

    names: tuple[str, ...]
    directory: str

    @classmethod
    def of(cls, names: Sequence[str], directory: str) -> Wanted:
        """One certificate for the same names, however they are ordered."""
        return cls(tuple(sorted(set(names))), directory)

    def __str__(self) -> str:
        return f"{self.names[0][:_NAME_LENGTH]}-{_digest(self.directory, *self.names)}"


@dataclass(frozen=True, slots=True)
class Held:
    """What is there of a certificate: since when and until when it is good, its share of the spread, what failed.

    suggested_at: when the server would have it renewed, if it was asked and says so.
    """

    validity: Validity | None = None
    share: float = 0.0
    tries: Tries = _NONE
    suggested_at: float | None = None

    @property
    def renewal_at(self) -> float:
        """When the next one is to be ordered; at once where there is none."""
        return 0.0 if self.validity is None else self.validity.renewal_at(self.share, self.suggested_at)


class AcmeState:
    """The files below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writing = Lock()

    def pem(self, wanted: Wanted) -> Path:
        """Where the certificate is, with its key in the same file."""
        return self._directory / f"{wanted}.pem"

    def read(self, wanted: Wanted, now: float) -> Held:
        """What is there. A file that cannot be used is as good as none: another one is ordered.

        One that is not good yet is none of these: then the clock is wrong, and another one would be no better. What
        failed before this certificate came is over.
        """
        path = self.pem(wanted)
        tries, before = _NONE, _digest_of(path)
        with suppress(OSError, *NOT_OURS):
            said = json.loads(self._tries(wanted).read_text("utf-8"))
            tries = Tries.of(said["tries"]) if said["before"] == before else _NONE
        try:
            if (found := validity_in(path.read_bytes())) is None:
                return Held(tries=tries)
            read_certificate(path, path, max(now, found[0]))
        except (OSError, FrontendError):
            return Held(tries=tries)
        return Held(Validity(*found), int(before, 16) / 16**_ID_DIGITS, tries)

    def note(self, wanted: Wanted, tries: Tries) -> str:
        """Writes down what failed, so that it counts after a restart; what that file has then. Raises OSError."""
        text = json.dumps({"before": _digest_of(self.pem(wanted)), "tries": asdict(tries)})
        self._write(self._tries(wanted), text.encode())
        return text

    def prove(self, wanted: Wanted, pem: bytes, now: float) -> None:
        """Raises AcmeError if the key does not fit, or a name, or the certificate or its issuer's has expired."""
        now = max(now, (validity_in(pem) or (now,))[0])
        try:
            it = prove_certificate(pem, now)
        except FrontendError as error:
            why = error.problems[0].partition("; ")[0].partition(": ")[2]
            raise AcmeError(f"what {wanted.directory} issued cannot be used: it {why}") from None
        missing = [name for name in wanted.names if not it.covers(name)]
        if missing:
            raise AcmeError(f"what {wanted.directory} issued is not for {', '.join(missing)}")
        if it.issuer_expires_at <= now:
            raise AcmeError(f"what {wanted.directory} issued is of an issuer whose own certificate has expired")

    def keep(self, wanted: Wanted, pem: bytes, now: float) -> None:
        """Puts a new certificate in the place of the old one, once it is proved good. Raises AcmeError, OSError."""
        self.prove(wanted, pem, now)
        self._write(self.pem(wanted), pem)

    def texts(self) -> dict[str, str]:
        """The accounts and the certificates, by the names of their files."""
        found = {}
        for path in (*self._directory.glob(f"{_ACCOUNT}*.json"), *self._directory.glob("*.pem")):
            with suppress(OSError, UnicodeDecodeError):
                if _FILE.fullmatch(path.name):  # What else somebody keeps there is nobody else's.
                    found[path.name] = path.read_text("utf-8")
        return found

    def take_in(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Puts the files of other gateways here, too; which cannot be used, and why. Others stay. Raises OSError.

        A certificate that has expired is one, too: `read` finds it as good as none.
        """
        refused = {}
        for name, text in texts.items():
            path, content = self._directory / name, text.encode()
            if not _FILE.fullmatch(name):
                refused[printable(name)] = "is no name of a file of ACME"
            elif why := _unusable(name, content):
                refused[name] = why
            elif _content(path) != content:
                self._write(path, content)
        return refused

    def account(self, directory: str, key_id: str | None) -> dict[str, Any]:
        """The account that was made there, as it was kept; empty if there is none."""
        try:
            said = json.loads(self._account(directory, key_id).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def keep_account(self, directory: str, key_id: str | None, account: dict[str, Any]) -> None:
        """Raises OSError."""
        self._write(self._account(directory, key_id), json.dumps(account).encode())

    def sweep(self, wanted: Sequence[Wanted], now: float) -> list[str]:
        """Removes what no service needs any more, once it has expired: a name may come back before. Which files."""
        gone: list[str] = []
        kept = {str(it) for it in wanted}
        for path in list(self._directory.glob("*.pem")):
            if path.stem in kept or path.name.startswith("."):
                continue
            with suppress(OSError):
                try:
                    read_certificate(path, path, now)
                except FrontendError:
                    for left in (path, path.with_suffix(".json"), unfinished(path)):
                        left.unlink(missing_ok=True)
                        gone.append(left.name)
        return gone

    def _write(self, path: Path, content: bytes) -> None:
        with self._writing:  # An order does, and what other gateways have brought.
            make_directory(self._directory, 0o700)
            replace_file(path, content, synced=True)

    def _tries(self, wanted: Wanted) -> Path:
        return self._directory / f"{wanted}.json"

    def _account(self, directory: str, key_id: str | None) -> Path:
        return self._directory / f"{_ACCOUNT}{_digest(directory, key_id or '')}.json"


def _unusable(name: str, content: bytes) -> str:
    """Why a file of another gateway cannot be used; empty if it can."""
    try:
        if name.endswith(".pem"):
            prove_certificate(content, (validity_in(content) or (0.0,))[0])
        elif not isinstance(said := json.loads(content), dict):
            return "is no object"
        elif not name.startswith(_ACCOUNT):
            return _no_tries(said)
    except FrontendError as error:
        return str(error)
    except (ValueError, RecursionError):
        return "is no JSON"
    return ""


def _no_tries(said: Mapping[str, Any]) -> str:
    try:
        Tries.of(said["tries"])
    except NOT_OURS:
        return "does not say which orders failed"
    return ""


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:_ID_DIGITS]


def _digest_of(path: Path) -> str:
    """A file's; another one if there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:_ID_DIGITS]
    except OSError:
        return "none"
