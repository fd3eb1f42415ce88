"""One service's keys and certificate: what changed in their files is put where nginx looks. All of it blocks. A removed
key is handled by itself, so revoking one of 10,000 takes 3 ms instead of 20.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.errors import FrontendError
from gateway_sidecar.frontend.certificate import covers, names_in, read_certificate
from gateway_sidecar.frontend.keys import digest_of, parse_keys, read_content
from gateway_sidecar.frontend.publish import publish_keys, publish_pem, remove_keys
from gateway_sidecar.frontend.signature import Signature, changed_at, directories, signature

KEYS, CERTIFICATE = "keys", "certificate"


@dataclass(frozen=True, slots=True)
class KeysTaken:
    """What a look made of the file of keys: how many there are, and how many came and went."""

    keys: int
    added: int
    removed: int


@dataclass(frozen=True, slots=True)
class PairTaken:
    """What a look made of a certificate and its key.

    begins_at, expires_at: seconds since 1970. wrong_for: names of the service that it is not for.
    """

    begins_at: float
    expires_at: float
    is_new: bool
    wrong_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What one look brought. None is a part that is as it was; an error is one that cannot be used."""

    keys: KeysTaken | FrontendError | OSError | None
    pair: PairTaken | FrontendError | OSError | None
    directories: frozenset[Path]


class FrontendFiles:
    """The files of one service. `links` is the directory of keys, `pem` the file that nginx opens."""

    def __init__(self, links: Path, pem: Path) -> None:
        self._keys = _KeyFile(links)
        self._pair = _PairFiles(pem)

    def look(self, settings: FrontendSettings, now: float, *, again: Collection[str] = ()) -> Found:
        """Takes in what changed. `again`: parts to be read even if their files are as they were."""
        keys: KeysTaken | FrontendError | OSError | None = None
        pair: PairTaken | FrontendError | OSError | None = None
        paths: list[Path] = []
        if settings.auth is not None and settings.auth.keys_file is not None:
            paths.append(settings.auth.keys_file)
            try:
                keys = self._keys.look(settings.auth.keys_file, again=KEYS in again)
            except (FrontendError, OSError) as error:
                keys = error
        if settings.tls is not None:
            paths += settings.tls.pair
            try:
                pair = self._pair.look(settings, now, again=CERTIFICATE in again)
            except (FrontendError, OSError) as error:
                pair = error
        return Found(keys, pair, directories(paths))

    def forget_keys(self) -> None:
        """The links are gone."""
        self._keys = _KeyFile(self._keys.links)

    def forget_pair(self) -> None:
        """The certificate is gone."""
        self._pair = _PairFiles(self._pair.place)


class _KeyFile:
    def __init__(self, links: Path) -> None:
        self.links = links
        self._read: tuple[Path, Signature] | None = None
        self._lines: frozenset[bytes] = frozenset()
        self._line_count = 0
        self._there: dict[str, str] | None = None
        self._there_at: int | None = None

    def look(self, file: Path, *, again: bool) -> KeysTaken | None:
        now = (file, signature(file))
        is_ours = self._there is not None and self._there_at == changed_at(self.links)
        if self._read == now and is_ours and not again:
            return None
        self._read = now
        content = read_content(file)
        lines = content.split(b"\n")
        taken = self._only_removed(lines) if is_ours else None
        if taken is None:
            keys = dict(parse_keys(content, str(file)))
            added, removed = publish_keys(self.links, keys, self._there if is_ours else None)
            self._there = keys
            taken = KeysTaken(len(keys), added, removed)
        self._lines, self._line_count = frozenset(lines), len(lines)
        self._there_at = changed_at(self.links)
        return taken

    def _only_removed(self, lines: list[bytes]) -> KeysTaken | None:
        """What came of it if lines with keys are gone and nothing else is new; None if it is not so."""
        assert self._there is not None
        left = frozenset(lines)
        gone = self._lines - left
        if not gone or not left <= self._lines or len(lines) != self._line_count - len(gone):
            return None
        digests = [digest_of(line) for line in gone]
        known = [digest for digest in digests if digest in self._there]
        if len(known) != len(digests):
            return None
        remove_keys(self.links, known)
        for digest in known:
            del self._there[digest]
        return KeysTaken(len(self._there), 0, len(known))


class _PairFiles:
    def __init__(self, place: Path) -> None:
        self.place = place
        self._read: tuple[Path, Path, tuple[str, ...], Signature] | None = None

    def look(self, settings: FrontendSettings, now: float, *, again: bool) -> PairTaken | None:
        assert settings.tls is not None
        chain, key = settings.tls.pair
        if settings.tls.acme and not chain.exists():
            return None  # It is being ordered.
        seen = (chain, key, settings.server_names, signature(chain, key))
        if self._read == seen and not again and self.place.exists():
            return None
        self._read = seen
        pair = read_certificate(chain, key, now)
        wrong_for = tuple(name for name in settings.server_names if not pair.covers(name))
        served = self._served()
        if wrong_for and served and served != pair.pem and _is_for(served, settings.server_names):
            raise FrontendError([f"{chain}: is not for {', '.join(wrong_for)}; put the certificate of that name there"])
        return PairTaken(pair.begins_at, pair.expires_at, publish_pem(self.place, pair.pem), wrong_for)

    def _served(self) -> bytes | None:
        try:
            return self.place.read_bytes()
        except FileNotFoundError:
            return None


def _is_for(pem: bytes, names: Iterable[str]) -> bool:
    theirs = names_in(pem)
    return all(covers(theirs, name) for name in names)
