"""Puts keys and certificates where nginx looks at run time. Each step is one system call: nothing is half there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import is_unfinished, replace_file, replace_link
from gateway_sidecar.frontend.keys import Keys

_DIGEST = re.compile(r"[0-9a-f]{64}")


def publish_keys(directory: Path, keys: Keys, present: Keys | None = None) -> tuple[int, int]:
    """Makes the links of a directory say just this; how many keys were added (or renamed), and removed.

    `present` is what is known to be there, to spare looking at each link.
    Revoked keys go first, so that an interruption never leaves a revoked key valid.
    """
    make_directory(directory, 0o700)
    if present is None:
        names = [name for name in os.listdir(directory) if _DIGEST.fullmatch(name)]
        present = {name: os.readlink(f"{directory}/{name}") for name in names}  # noqa: PTH115 - thousands of them
    gone = present.keys() - keys.keys()
    remove_keys(directory, gone)
    added = [digest for digest, name in keys.items() if present.get(digest) != name]
    for digest in added:
        replace_link(directory / digest, keys[digest])
    return len(added), len(gone)


def remove_keys(directory: Path, digests: Iterable[str]) -> None:
    """Revokes these keys."""
    for digest in digests:
        os.unlink(f"{directory}/{digest}")  # noqa: PTH108 - thousands of them


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
