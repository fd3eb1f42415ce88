"""The key by which routers that somebody else runs show themselves to the bridges."""

from __future__ import annotations

import re
from pathlib import Path

from gateway_sidecar.domain.trust import OTHERS
from gateway_sidecar.errors import NginxError

_KEY = re.compile(r"[A-Za-z0-9_-]{20,200}")
_CURE = "write 20 to 200 letters, digits, - and _ on one line: openssl rand -hex 32"


def read_bridge_key(path: Path) -> str:
    """The key in this file. Raises NginxError. Blocks."""
    try:
        mode, text = path.stat().st_mode, path.read_text("ascii", "replace").strip()
    except OSError as error:
        raise NginxError(f"bridges.key_file: cannot read {path}: {error.strerror}") from error
    if mode & OTHERS:
        raise NginxError(f"bridges.key_file: other users may read {path}; chmod o-rwx {path}")
    if not _KEY.fullmatch(text):
        raise NginxError(f"bridges.key_file: {path} holds no key; {_CURE}")
    return text
