"""What ACME servers ask for over HTTP (HTTP-01): a file for each token, where nginx looks. All of it blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file

TOKEN = re.compile(r"[A-Za-z0-9_-]{22,200}")
Answers = Callable[[Mapping[str, str]], AbstractContextManager[None]]
"""Has the server find these texts, by their tokens, meanwhile. Raises OSError, StoreError."""


def put_answers(at: Path, texts: Mapping[str, str]) -> None:
    """Has these files be there, and no others, such as a daemon that died left. Raises OSError."""
    if texts:
        make_directory(at, 0o700)
    for left in list(at.iterdir()) if at.is_dir() else []:
        if left.name not in texts:
            left.unlink()
    for token, text in texts.items():
        replace_file(at / token, text)
    if not texts:
        with suppress(FileNotFoundError):
            at.rmdir()


@contextmanager
def answered_at(at: Path, texts: Mapping[str, str]) -> Iterator[None]:
    """The `Answers` of a gateway that works alone. Raises OSError."""
    put_answers(at, texts)
    try:
        yield
    finally:
        with suppress(OSError):
            put_answers(at, {})
