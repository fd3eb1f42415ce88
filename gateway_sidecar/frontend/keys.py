"""The file of hashed keys: one `NAME:SHA256` a line, perhaps with ` expires=DATE` after it. Keys themselves are in no
file: each is shown once.

SHA-256 without salt or stretching is enough for keys that nobody can guess, such as those made here (256 random bits).
"""

from __future__ import annotations

import codecs
import datetime
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gateway_sidecar.config.frontend_values import NAME
from gateway_sidecar.config.text_file import FileText, read_file
from gateway_sidecar.config.values import show
from gateway_sidecar.errors import ConfigError, FrontendError
from gateway_sidecar.files.replace import put_in_place, write_beside

MOST_BYTES = 64 * 1024 * 1024
_MOST_PROBLEMS = 10
_OTHERS = 0o007
_GROUP_WRITES = 0o020
_LINE = re.compile(rf"({NAME})\s*:\s*(?:sha256:)?([0-9A-Fa-f]{{64}})(?:\s+expires=(\S+))?")
_PAIRS = re.compile(rf"^[ \t]*({NAME})[ \t]*:[ \t]*(?:sha256:)?([0-9A-Fa-f]{{64}})[ \t\r]*$".encode(), re.MULTILINE)
_HEAD = "# Keys of gateway-sidecar: NAME:SHA256, one a line. Change them with `gateway-sidecar key`.\n"

Keys = Mapping[str, str]
"""SHA-256 of a key, in lower-case hex -> the key's name; where it expires, with `:` and the seconds since 1970."""


def name_of(owner: str) -> str:
    """The key's name."""
    return owner.partition(":")[0]


def expiry_of(owner: str) -> int | None:
    """When the key expires, in seconds since 1970; None for never."""
    expires = owner.partition(":")[2]
    return int(expires) if expires else None


def described(owner: str) -> str:
    """The name, and when the key expires, for people."""
    expires = expiry_of(owner)
    if expires is None:
        return name_of(owner)
    return f"{name_of(owner)}  until {datetime.datetime.fromtimestamp(expires, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_expiry(text: str) -> int:
    """Seconds since 1970. A day alone is its first moment in UTC. Raises ValueError."""
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{show(text)} is not a date; use one such as 2027-01-31 or 2027-01-31T12:00Z") from None
    return int((at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp())


def read_keys(path: Path) -> Keys:
    """The keys of a file. Raises FrontendError, with a line for each mistake."""
    return parse_keys(read_content(path), str(path))


def read_content(path: Path) -> bytes:
    """What the file holds, if it may be believed at all. Raises FrontendError."""
    try:
        file = read_file(path, MOST_BYTES)
    except ConfigError as error:
        raise FrontendError([line.replace(", or name another with --config", "") for line in error.problems]) from None
    if trouble := _trouble(file):
        raise FrontendError([f"{path}: {trouble}"])
    if not file.content.removeprefix(codecs.BOM_UTF8).strip():
        # A file that is being written is empty for a moment, and that must lock nobody out.
        raise FrontendError([f"{path}: is empty; if no key is wanted, write a line that begins with #"])
    return file.content


def digest_of(line: bytes) -> str | None:
    """The SHA-256 that a line with a key has; None for any other line."""
    match = _LINE.fullmatch(line.strip().decode("utf-8", "replace"))
    return None if match is None else match[2].lower()


def parse_keys(content: bytes, name: str) -> Keys:
    """The keys of a file's content. Raises FrontendError, with a line for each mistake that shows no key or hash."""
    content = content.removeprefix(codecs.BOM_UTF8)
    pairs = _PAIRS.findall(content)
    if len(pairs) == sum(1 for line in content.split(b"\n") if line.strip() and not line.lstrip().startswith(b"#")):
        # All is well, most likely: found so 10,000 keys take 5 ms, which somebody who revokes one waits for.
        found = {digest.decode().lower(): owner.decode() for owner, digest in pairs}
        if len(found) == len(pairs) == len(set(found.values())):
            return found
    keys: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    for number, raw in enumerate(content.split(b"\n"), 1):
        text = raw.strip().decode("utf-8", "replace")
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            problems.append(f"{name}:{number}: is not NAME:SHA256; make it with `gateway-sidecar key add NAME`")
            continue
        owner, digest = match[1], match[2].lower()
        expires = ""
        if match[3] is not None:
            try:
                expires = f":{parse_expiry(match[3])}"
            except ValueError as error:
                problems.append(f"{name}:{number}: expires: {error}")
                continue
        if owner in lines:
            problems.append(f"{name}:{number}: {show(owner)} is named in line {lines[owner]} already; use another name")
        elif digest in keys:
            problems.append(
                f"{name}:{number}: {show(owner)} has the same key as {show(name_of(keys[digest]))}; remove one of them"
            )
        else:
            keys[digest], lines[owner] = f"{owner}{expires}", number
    if problems:
        further = len(problems) - _MOST_PROBLEMS
        raise FrontendError(problems[:_MOST_PROBLEMS] + ([f"{name}: and {further} more"] if further > 0 else []))
    return keys


def add_key(path: Path, name: str, key: str | None = None, *, expires: str | None = None) -> str:
    """Adds a key of this name, made here unless it is given, and returns it. Raises FrontendError."""
    if expires is not None:
        try:
            parse_expiry(expires)
        except ValueError as error:
            raise FrontendError([f"--expires: {error}"]) from None
    if not re.fullmatch(NAME, name):
        raise FrontendError([f"{show(name)} is not a key's name; use letters, digits and . _ -, 64 at most"])
    key = key or f"sk-{secrets.token_urlsafe(32)}"
    if not re.fullmatch(r"[\x21-\x7e]{16,4096}", key):
        raise FrontendError(["a key has 16 to 4096 printable characters without spaces; use another"])
    digest = hashlib.sha256(key.encode()).hexdigest()
    with _edited(path) as text:
        keys = parse_keys(text.encode(), str(path))
        if name in map(name_of, keys.values()):
            raise FrontendError([f"{path}: has a key {show(name)} already; revoke it first, or use another name"])
        if digest in keys:
            raise FrontendError([f"{path}: has this very key already, as {show(name_of(keys[digest]))}"])
        end = "" if not text or text.endswith("\n") else "\n"
        _replace(path, f"{text or _HEAD}{end}{name}:{digest}{f' expires={expires}' if expires else ''}\n")
    return key


def revoke_key(path: Path, name: str) -> None:
    """Removes the key of this name. Raises FrontendError, also where the key is removed from a file with mistakes.

    The rest of the file is checked afterwards, so that the key ends without delay.
    """
    with _edited(path) as text:
        lines = re.compile(rf"^[ \t]*{re.escape(name)}[ \t]*:[^\n]*(?:\n|\Z)", re.MULTILINE)
        kept = lines.sub(lambda line: "" if _LINE.fullmatch(line[0].strip()) else line[0], text)
        if kept == text:
            parse_keys(text.encode(), str(path))
            raise FrontendError([f"{path}: has no key {show(name)}; `gateway-sidecar key list` names them"])
        _replace(path, kept or _HEAD)
    try:
        parse_keys(kept.encode(), str(path))
    except FrontendError as error:
        first = f"{path}: {show(name)} is removed from the file but still accepted until these errors are fixed:"
        raise FrontendError([first, *error.problems]) from None


def _trouble(file: FileText) -> str | None:
    if file.mode & _OTHERS or file.mode & _GROUP_WRITES:
        return f"others may read or change it (mode {file.mode:04o}); use chmod 0640 or 0600"
    if file.owner not in (0, os.geteuid()):
        return f"belongs to user {file.owner}; it must be root's or the daemon's (user {os.geteuid()})"
    return None


@contextmanager
def _edited(path: Path) -> Iterator[str]:
    """The file's text, or an empty one, with other editors kept out."""
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FrontendError([f"{path.parent}: {error.strerror}; make the directory first"]) from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield path.read_text() if path.exists() else ""
    finally:
        os.close(directory)


def _replace(path: Path, text: str) -> None:
    """Writes the file whole or not at all; its owner and mode stay."""
    before = path.stat() if path.exists() else None
    fresh = write_beside(path, text, 0o600 if before is None else before.st_mode & 0o777, synced=True)
    if before is not None and os.geteuid() == 0:
        os.chown(fresh, before.st_uid, before.st_gid, follow_symlinks=False)
    put_in_place(fresh, path, synced=True)
