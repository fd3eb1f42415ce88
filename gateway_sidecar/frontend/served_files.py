"""Puts keys and certificates where nginx looks at run time. Each step is one system call: nothing is half there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from gateway_sidecar.config.frontend_values import NAME
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import is_unfinished, replace_file, replace_link
from gateway_sidecar.frontend.keys import PLAN_LINK, Links
from gateway_sidecar.frontend.last_used import note_use

_ENDING = ".certificate"
_DIGITS = 16  # 64 bits of a SHA-256: two texts never have the same by chance.
_LINK = re.compile(rf"[0-9a-f]{{64}}|{PLAN_LINK}{NAME}")


def place_keys(
    directory: Path, links: Links, present: Links | None = None, used: dict[str, float] | None = None
) -> tuple[int, int]:
    """Makes the links of a directory say just this; how many keys were added (or changed), and removed.

    `present` is what is known to be there, to spare looking at each link. `used`: when each name was last used; it is
    noted there for what is removed, and a new link says it.
    Revoked keys go first, so that an interruption never leaves a revoked key valid; a plan is there before its keys.
    """
    make_directory(directory, 0o700)
    if present is None:
        names = [name for name in os.listdir(directory) if _LINK.fullmatch(name)]
        present = {name: os.readlink(f"{directory}/{name}") for name in names}  # noqa: PTH115 - thousands of them
    gone = {name: text for name, text in present.items() if name not in links}
    added = {name: text for name, text in links.items() if present.get(name) != text}
    before = {name: present[name] for name in added if name in present}
    return change_keys(directory, gone, added, before, {} if used is None else used)


def change_keys(directory: Path, gone: Links, added: Links, before: Links, used: dict[str, float]) -> tuple[int, int]:
    """Removes these links, and makes those; `before`: what of the latter is there, and says something else."""
    keys_gone = [name for name in gone if not name.startswith(PLAN_LINK)]
    for name, text in (*((name, gone[name]) for name in keys_gone), *before.items()):
        note_use(f"{directory}/{name}", text, used)
    _remove(directory, keys_gone)
    for name, text in added.items():
        replace_link(directory / name, text)
        said = used.get(text.partition(" ")[0], 0.0)
        os.utime(f"{directory}/{name}", (said, said), follow_symlinks=False)
    _remove(directory, gone.keys() - set(keys_gone))
    return sum(1 for name in added if not name.startswith(PLAN_LINK)), len(keys_gone)


def _remove(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        os.unlink(f"{directory}/{name}")  # noqa: PTH108 - thousands of them


def withdraw_keys(directory: Path) -> None:
    """No key is good any more, and the directory is gone."""
    if directory.is_dir():
        place_keys(directory, {})
        for left in filter(is_unfinished, os.listdir(directory)):
            (directory / left).unlink(missing_ok=True)
        with suppress(OSError):
            directory.rmdir()


def place_certificate(place: Path, pem: bytes) -> bool:
    """Makes `place` lead to a certificate with its key, for this user alone; False if it does so already.

    nginx reads the certificate and then the key. It asks once where the link leads, and a file is never written again:
    so no handshake meets the certificate of one file and the key of another.
    """
    with suppress(FileNotFoundError):
        if place.is_symlink() and place.read_bytes() == pem:
            return False
    file = place.with_name(f"{place.stem}.{hashlib.sha256(pem).hexdigest()[:_DIGITS]}{_ENDING}")
    replace_file(file, pem)
    before = os.readlink(place) if place.is_symlink() else ""  # noqa: PTH115 - the name alone
    replace_link(place, file.name)
    _remove_unused(place, {file.name, before})
    return True


def withdraw_certificate(place: Path) -> None:
    """No certificate is there any more, nor a key."""
    place.unlink(missing_ok=True)
    _remove_unused(place, ())


def _remove_unused(place: Path, kept: Collection[str]) -> None:
    """But for one that handshakes may be about to read."""
    pattern = re.compile(rf"{re.escape(place.stem)}\.[0-9a-f]{{{_DIGITS}}}{re.escape(_ENDING)}")
    for name in os.listdir(place.parent) if place.parent.is_dir() else ():
        if pattern.fullmatch(name) and name not in kept:
            (place.parent / name).unlink(missing_ok=True)


def place_client_ca(path: Path, pem: bytes) -> bool:
    """Puts certificates of authorities there, and their number before them; False if they were there already."""
    content = b"# " + hashlib.sha256(pem).hexdigest()[:_DIGITS].encode() + b"\n" + pem
    with suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return False
    replace_file(path, content)
    return True
