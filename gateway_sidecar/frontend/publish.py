"""Puts keys and certificates where nginx looks at run time. Each step is one system call: nothing is half there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gateway_sidecar.config.frontend_values import NAME
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import is_unfinished, replace_file, replace_link
from gateway_sidecar.frontend.keys import PLAN_LINK, Links
from gateway_sidecar.frontend.last_used import note_use

_LINK = re.compile(rf"[0-9a-f]{{64}}|{PLAN_LINK}{NAME}")


def publish_keys(
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
        publish_keys(directory, {})
        for left in filter(is_unfinished, os.listdir(directory)):
            (directory / left).unlink(missing_ok=True)
        with suppress(OSError):
            directory.rmdir()


def publish_pem(path: Path, pem: bytes) -> bool:
    """Puts a certificate with its key there, for this user alone; False if it was there already."""
    with suppress(FileNotFoundError):
        if path.read_bytes() == pem:
            return False
    replace_file(path, pem)
    return True


def publish_client_ca(path: Path, pem: bytes) -> bool:
    """Puts certificates of authorities there, and their number before them; False if they were there already."""
    return publish_pem(path, b"# " + hashlib.sha256(pem).hexdigest()[:16].encode() + b"\n" + pem)
