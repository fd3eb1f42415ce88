"""Changes the file of keys, one line at a time: comments, order, owner and mode stay. The file is replaced whole, while
other editors are kept out. A symlink stays, and what it leads to is replaced. All of it raises FrontendError.
"""

from __future__ import annotations

import codecs
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from gateway_sidecar.config.frontend_values import NAME
from gateway_sidecar.config.values import show
from gateway_sidecar.domain.trust import trouble_with_links
from gateway_sidecar.errors import FrontendError
from gateway_sidecar.files.follow import follow, ours
from gateway_sidecar.files.replace import put_in_place, write_beside
from gateway_sidecar.frontend.keys import Key, KeyFile, no_plan, parse_keys, shown_date
from gateway_sidecar.frontend.words import NONE, check_word, parse_words, written

_HEAD = "# Keys of gateway-sidecar: NAME:SHA256, one a line. Change them with `gateway-sidecar key`.\n"
_AS_THEY_ARE = "surrogateescape"

Changes = Mapping[str, str | None]
"""A word -> its value; None where the word goes."""


class KeyPlace(Protocol):
    """Where else than in a file the lines of keys may be. As a text, it is what messages call it."""

    def edited(self) -> AbstractContextManager[str]:
        """The lines, while they are changed. Raises FrontendError."""
        ...

    def put(self, text: str) -> None:
        """Has these lines take the place of those that `edited` gave. Raises FrontendError."""
        ...


def add_key(path: Path | KeyPlace, name: str, key: str | None = None, **words: str | None) -> str:
    """Adds a key of this name, made here unless it is given, and returns it."""
    _check_name(name, "key")
    key, digest = _secret(key)
    with _edited(path) as text:
        file = _parsed(path, text)
        if name in file.keys:
            raise FrontendError([f"{path}: has a key {show(name)} already; revoke it first, or use another name"])
        _refuse_twice(path, file, digest)
        end = "" if not text or text.endswith("\n") else "\n"
        said = _changed({}, words, file)
        _check_length(said)
        line = f"{name}:{digest}{written(said)}\n"
        _replace(path, f"{text or _HEAD}{end}{line}")
    return key


def change_key(path: Path | KeyPlace, name: str, changes: Changes) -> Key:
    """Changes what bounds a key, or what is noted of it."""
    with _edited(path) as text:
        file = _parsed(path, text)
        key = _known(path, file, name)
        return _put(path, text, Key(name, key.digest, _changed(key.words, changes, file)))


def rotate_key(
    path: Path | KeyPlace, name: str, *, keep_old_s: float, now: float, secret: str | None = None
) -> tuple[str, bool]:
    """Gives a key another secret, and returns it. The old one counts for this long beside it; whether that ends an
    older one.
    """
    secret, digest = _secret(secret)
    with _edited(path) as text:
        file = _parsed(path, text)
        key = _known(path, file, name)
        _refuse_twice(path, file, digest)
        words = {word: value for word, value in key.words.items() if word not in ("old", "old_until")}
        if keep_old_s > 0:
            words |= {"old": key.digest, "old_until": shown_date(now + keep_old_s)}
        _put(path, text, Key(name, digest, words))
    return secret, (key.old_until or 0) > now


def revoke_key(path: Path | KeyPlace, name: str) -> None:
    """Removes the key of this name, also where the file has mistakes elsewhere.

    The rest of the file is checked afterwards, so that the key ends without delay.
    """
    with _edited(path) as text:
        kept = _line_of(name).sub("", text)
        if kept == text:
            _parsed(path, text)
            raise FrontendError([f"{path}: has no key {show(name)}; `gateway-sidecar key list` names them"])
        _replace(path, kept or _HEAD)
    try:
        _parsed(path, kept)
    except FrontendError as error:
        first = f"{path}: {show(name)} is removed from the file but still accepted until these errors are fixed:"
        raise FrontendError([first, *error.problems]) from None


def change_plan(path: Path | KeyPlace, name: str, changes: Changes) -> Mapping[str, str]:
    """Makes a plan, or changes it; its bounds."""
    _check_name(name, "plan")
    if name == NONE:
        raise FrontendError(
            [f"{show(name)} is no plan's name: for a key it says that it has no plan; use another name"]
        )
    with _edited(path) as text:
        file, text = _with_plan(path, text, name)
        words = _changed(file.plans.get(name, {}), changes, file)
        line = f"plan {name}{written(words)}\n"
        if name in file.plans:
            fresh = _plan_line(name).sub(lambda _: line, text)
        else:
            end = "" if not text or text.endswith("\n") else "\n"
            fresh = f"{text or _HEAD}{end}{line}"
        _check_length(words, of_plan=True)
        _replace(path, fresh)
        return words


def _with_plan(path: Path | KeyPlace, text: str, name: str) -> tuple[KeyFile, str]:
    """What a file says, and its text. If nothing but this plan is missing, that is there, and has no bounds."""
    try:
        return _parsed(path, text), text
    except FrontendError:
        end = "" if text.endswith("\n") else "\n"
        made = f"{text}{end}plan {name}\n"
        with suppress(FrontendError):
            return _parsed(path, made), made
        raise


def remove_plan(path: Path | KeyPlace, name: str) -> None:
    """Removes a plan that no key has any more."""
    with _edited(path) as text:
        file = _parsed(path, text)
        if name not in file.plans:
            raise FrontendError([f"{path}: has no plan {show(name)}; `gateway-sidecar key list` names them"])
        users = [key.name for key in file.keys.values() if key.words.get("plan") == name]
        if users:
            more = f" and {len(users) - 3} more" if len(users) > 3 else ""
            cure = "give them another one with `gateway-sidecar key set NAME --plan`"
            raise FrontendError([f"{path}: plan {show(name)} is that of {', '.join(users[:3])}{more}; {cure}"])
        _replace(path, _plan_line(name).sub("", text) or _HEAD)


def _check_name(name: str, what: str) -> None:
    if not re.fullmatch(NAME, name):
        raise FrontendError([f"{show(name)} is not a {what}'s name; use letters, digits and . _ -, 64 at most"])


def _secret(given: str | None) -> tuple[str, str]:
    """A secret, and its hash."""
    key = given or f"sk-{secrets.token_urlsafe(32)}"
    if not re.fullmatch(r"[\x21-\x7e]{16,4096}", key):
        raise FrontendError(["a key has 16 to 4096 printable characters without spaces; use another"])
    return key, hashlib.sha256(key.encode()).hexdigest()


def _refuse_twice(path: Path | KeyPlace, file: KeyFile, digest: str) -> None:
    for other in file.keys.values():
        if digest in (other.digest, other.words.get("old")):
            raise FrontendError([f"{path}: has this very key already, as {show(other.name)}"])


def _known(path: Path | KeyPlace, file: KeyFile, name: str) -> Key:
    if name not in file.keys:
        raise FrontendError([f"{path}: has no key {show(name)}; `gateway-sidecar key list` names them"])
    return file.keys[name]


def _changed(words: Mapping[str, str], changes: Changes, file: KeyFile) -> dict[str, str]:
    after = dict(words)
    for word, value in changes.items():
        if value is None:
            after.pop(word, None)
            continue
        try:
            if value or word != "paused":
                check_word(word, value)
        except ValueError as error:
            raise FrontendError([f"--{word.replace('_', '-')}: {error}"]) from None
        after[word] = value
    plan = after.get("plan")
    if plan is not None and plan not in file.plans:
        raise FrontendError([f"--plan: {no_plan(plan, file.plans)}"])
    return after


def _put(path: Path | KeyPlace, text: str, key: Key) -> Key:
    line = f"{key.name}:{key.digest}{written(key.words)}\n"
    _check_length(key.words)
    _replace(path, _line_of(key.name).sub(lambda _: line, text))
    return key


def _line_of(name: str) -> re.Pattern[str]:
    digest = r"(?:sha256:)?[0-9A-Fa-f]{64}"
    return re.compile(rf"^[ \t]*{re.escape(name)}[ \t]*:[ \t]*{digest}(?:[ \t\r][^\n]*)?(?:\n|\Z)", re.MULTILINE)


def _plan_line(name: str) -> re.Pattern[str]:
    return re.compile(rf"^[ \t]*plan[ \t]+{re.escape(name)}(?:[ \t\r][^\n]*)?(?:\n|\Z)", re.MULTILINE)


@contextmanager
def _edited(path: Path | KeyPlace) -> Iterator[str]:
    """The file's text, or an empty one, with other editors kept out."""
    if not isinstance(path, Path):
        with path.edited() as text:
            yield text
        return
    real = _real(path)
    try:
        directory = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FrontendError([f"{real.parent}: {error.strerror}; make the directory first"]) from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield _text(real)
    finally:
        os.close(directory)


def _real(path: Path) -> Path:
    """Where the file lies that a path leads to. A symlink counts only if its maker could change that file, too."""
    try:
        followed = follow(str(path.absolute()))
    except FileNotFoundError:
        if path.is_symlink():
            target = path.readlink()
            raise FrontendError(
                [f"{path}: is a symlink to {target}, which is not there; make that file, or name another with --file"]
            ) from None
        return path
    except OSError as error:
        raise FrontendError([f"{path}: {error.strerror}; name another with --file"]) from error
    if trouble := trouble_with_links(followed.links, followed.owned, ours()):
        raise FrontendError([f"{path}: {trouble}"])
    return Path(followed.real)


def _text(path: Path) -> str:
    """Bytes that are no UTF-8, as in a comment of an old editor's, stay as they are; a byte order mark goes."""
    if not path.exists():
        return ""
    if not path.is_file():
        raise FrontendError([f"{path}: is not a file; name one with --file"])
    return path.read_bytes().removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").decode("utf-8", _AS_THEY_ARE)


def _parsed(path: Path | KeyPlace, text: str) -> KeyFile:
    return parse_keys(text.encode("utf-8", _AS_THEY_ARE), str(path))


def _check_length(words: Mapping[str, str], *, of_plan: bool = False) -> None:
    """Each word has been looked at; all together may be too long."""
    try:
        parse_words(written(words), of_plan=of_plan)
    except ValueError as error:
        raise FrontendError([f"--{error}"]) from None


def _replace(path: Path | KeyPlace, text: str) -> None:
    """Writes the file whole or not at all; its owner and mode stay."""
    if not isinstance(path, Path):
        path.put(text)
        return
    path = _real(path)
    before = path.stat() if path.exists() else None
    content = text.encode("utf-8", _AS_THEY_ARE)
    fresh = write_beside(path, content, 0o600 if before is None else before.st_mode & 0o777, synced=True)
    if before is not None and os.geteuid() == 0:
        os.chown(fresh, before.st_uid, before.st_gid, follow_symlinks=False)
    put_in_place(fresh, path, synced=True)
