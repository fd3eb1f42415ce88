"""One service's keys and certificate: what changed in their files is put where nginx looks. All of it blocks. A few
changed keys are handled by themselves, so revoking one of 10,000 takes 3 ms instead of 20.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.errors import FrontendError
from gateway_sidecar.frontend.certificate import covers, names_in, read_certificate, read_client_ca
from gateway_sidecar.frontend.file_stats import FileStats, changed_at, directories, file_stats
from gateway_sidecar.frontend.keys import PLAN_LINK, Key, key_of, parse_keys, read_content
from gateway_sidecar.frontend.last_used import KEPT_EVERY_S, keep_copy, read_copy, read_links
from gateway_sidecar.frontend.served_files import change_keys, place_certificate, place_client_ca, place_keys

KEYS, CERTIFICATE, CLIENT_CA = "keys", "certificate", "client_ca"
_FEW = 100
"""So many changed lines are looked at by themselves."""


@dataclass(frozen=True, slots=True)
class KeysTaken:
    """What a look made of the file of keys: how many there are, and how many came and went."""

    keys: int
    added: int
    removed: int


@dataclass(frozen=True, slots=True)
class CertificateTaken:
    """What a look made of a certificate and its key.

    begins_at, expires_at: seconds since 1970. wrong_for: names of the service that it is not for.
    """

    begins_at: float
    expires_at: float
    is_new: bool
    wrong_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClientCaTaken:
    """What a look made of the authorities of client certificates: how many there are."""

    certificates: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What one look brought. None is a part that is as it was; an error is one that cannot be used."""

    keys: KeysTaken | FrontendError | OSError | None
    certificate: CertificateTaken | FrontendError | OSError | None
    client_ca: ClientCaTaken | FrontendError | OSError | None
    directories: frozenset[Path]


class FrontendFiles:
    """The files of one service. `links` is the directory of keys, `pem` and `client_ca` are files that nginx opens.

    used: where it is kept when each key was last used; None for nowhere.
    """

    def __init__(self, links: Path, pem: Path, client_ca: Path, used: Path | None = None) -> None:
        self._keys = _KeyFile(links, used)
        self._certificate = _CertificateFiles(pem)
        self._client_ca = _ClientCaFile(client_ca)

    def look(self, settings: FrontendSettings, now: float, *, again: Collection[str] = ()) -> Found:
        """Takes in what changed. `again`: parts to be read even if their files are as they were."""
        keys: KeysTaken | FrontendError | OSError | None = None
        certificate: CertificateTaken | FrontendError | OSError | None = None
        paths: list[Path] = []
        if settings.auth is not None and settings.auth.keys_file is not None:
            paths.append(settings.auth.keys_file)
            try:
                keys = self._keys.look(settings.auth.keys_file, again=KEYS in again)
                self._keys.keep_uses(now)
            except (FrontendError, OSError) as error:
                keys = error
        if settings.tls is not None:
            paths += settings.tls.certificate_files
            try:
                certificate = self._certificate.look(settings, now, again=CERTIFICATE in again)
            except (FrontendError, OSError) as error:
                certificate = error
        client_ca: ClientCaTaken | FrontendError | OSError | None = None
        if settings.tls is not None and settings.tls.client_ca is not None:
            paths.append(settings.tls.client_ca)
            try:
                client_ca = self._client_ca.look(settings.tls.client_ca, now, again=CLIENT_CA in again)
            except (FrontendError, OSError) as error:
                client_ca = error
        return Found(keys, certificate, client_ca, directories(paths))

    def keep_uses(self) -> None:
        """Keeps when each key was last used: the links are about to go."""
        self._keys.keep_uses(None)

    def forget_keys(self) -> None:
        """The links are gone."""
        self._keys = _KeyFile(self._keys.links, self._keys.used_path)

    def forget_certificate(self) -> None:
        """The certificate is gone."""
        self._certificate = _CertificateFiles(self._certificate.place)

    def forget_client_ca(self) -> None:
        """The authorities are gone."""
        self._client_ca = _ClientCaFile(self._client_ca.place)


class _KeyFile:
    def __init__(self, links: Path, used_path: Path | None) -> None:
        self.links = links
        self.used_path = used_path
        self._used: dict[str, float] | None = None
        self._kept_at = 0.0
        self._read: tuple[Path, FileStats] | None = None
        self._lines: frozenset[bytes] = frozenset()
        self._line_count = 0
        self._names: set[str] = set()
        self._there: dict[str, str] | None = None
        self._there_at: int | None = None

    def look(self, file: Path, *, again: bool) -> KeysTaken | None:
        now = (file, file_stats(file))
        is_ours = self._there is not None and self._there_at == changed_at(self.links)
        if self._read == now and is_ours and not again:
            return None
        self._read = now
        content = read_content(file)
        lines = content.split(b"\n")
        taken = self._few_changed(lines) if is_ours else None
        if taken is None:
            said = parse_keys(content, str(file))
            links = dict(said.links())
            added, removed = place_keys(self.links, links, self._there if is_ours else None, self._uses())
            self._there, self._names = links, set(said.keys)
            taken = KeysTaken(len(self._names), added, removed)
        self._lines, self._line_count = frozenset(lines), len(lines)
        self._there_at = changed_at(self.links)
        return taken

    def keep_uses(self, now: float | None) -> None:
        """Keeps when each key was last used: every few minutes, or now. A disk that does not take it fails nothing."""
        if self.used_path is None or (now is not None and 0 <= now - self._kept_at < KEPT_EVERY_S):
            return
        self._kept_at = now or 0.0
        with suppress(OSError):
            used = self._uses()
            for name, at in read_links(self.links).items():
                used[name] = max(at, used.get(name, 0.0))
            keep_copy(self.used_path, used)

    def _uses(self) -> dict[str, float]:
        if self._used is None:
            self._used = {}
            if self.used_path is not None:
                with suppress(OSError):
                    self._used = read_copy(self.used_path)
        return self._used

    def _few_changed(self, lines: list[bytes]) -> KeysTaken | None:
        """What came of it if a few lines with keys are gone or new, and nothing is wrong; None if it is not so."""
        assert self._there is not None
        left = frozenset(lines)
        old, new = self._lines - left, left - self._lines
        if not 0 < len(old) + len(new) < _FEW or len(lines) != self._line_count - len(old) + len(new):
            return None
        gone, fresh = [list(map(key_of, each)) for each in (old, new)]
        keys_gone, keys_fresh = [key for key in gone if key], [key for key in fresh if key]
        if len(keys_gone) + len(keys_fresh) != len(old) + len(new):
            return None  # A comment, a plan, or a mistake.
        links_gone, links_fresh = _links(keys_gone), _links(keys_fresh)
        names = self._names - {key.name for key in keys_gone} | {key.name for key in keys_fresh}
        before = {name: links_gone[name] for name in links_fresh if name in links_gone}
        if (
            len(names) != len(self._names) - len(keys_gone) + len(keys_fresh)
            or sum(1 for key in keys_fresh for _ in key.links()) != len(links_fresh)
            or not links_gone.keys() <= self._there.keys()
            or any(name in self._there and name not in links_gone for name in links_fresh)
            or any(PLAN_LINK + key.words["plan"] not in self._there for key in keys_fresh if "plan" in key.words)
        ):
            return None
        only_gone = {name: text for name, text in links_gone.items() if name not in links_fresh}
        added = {name: text for name, text in links_fresh.items() if before.get(name) != text}
        counts = change_keys(self.links, only_gone, added, before, self._uses())
        for name in only_gone:
            del self._there[name]
        self._there.update(added)
        self._names = names
        return KeysTaken(len(names), *counts)


def _links(keys: Iterable[Key]) -> dict[str, str]:
    return {name: text for key in keys for name, text in key.links()}


class _CertificateFiles:
    def __init__(self, place: Path) -> None:
        self.place = place
        self._read: tuple[Path, Path, tuple[str, ...], FileStats] | None = None

    def look(self, settings: FrontendSettings, now: float, *, again: bool) -> CertificateTaken | None:
        assert settings.tls is not None
        chain, key = settings.tls.certificate_files
        if settings.tls.acme and not chain.exists():
            return None  # It is being ordered.
        if settings.tls.store is not None and not chain.exists():
            name = settings.tls.store
            cure = f"put it there with `gateway-sidecar certificate put {name} --cert FILE --key FILE`"
            raise FrontendError([f"the store has no certificate '{name}'; {cure}"])
        seen = (chain, key, settings.server_names, file_stats(chain, key))
        if self._read == seen and not again and self.place.exists():
            return None
        self._read = seen
        found = read_certificate(chain, key, now)
        wrong_for = tuple(name for name in settings.server_names if not found.covers(name))
        served = self._served()
        if wrong_for and served and served != found.pem and _is_for(served, settings.server_names):
            raise FrontendError([f"{chain}: is not for {', '.join(wrong_for)}; put the certificate of that name there"])
        is_new = place_certificate(self.place, found.pem)
        return CertificateTaken(found.begins_at, found.expires_at, is_new, wrong_for)

    def _served(self) -> bytes | None:
        try:
            return self.place.read_bytes()
        except FileNotFoundError:
            return None


class _ClientCaFile:
    def __init__(self, place: Path) -> None:
        self.place = place
        self._read: tuple[Path, FileStats] | None = None

    def look(self, file: Path, now: float, *, again: bool) -> ClientCaTaken | None:
        seen = (file, file_stats(file))
        if self._read == seen and not again and self.place.exists():
            return None
        self._read = seen
        pem, certificates = read_client_ca(file, now)
        return ClientCaTaken(certificates, place_client_ca(self.place, pem))


def _is_for(pem: bytes, names: Iterable[str]) -> bool:
    theirs = names_in(pem)
    return all(covers(theirs, name) for name in names)
