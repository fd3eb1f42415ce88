"""What a daemon says, as the command line reads it: JSON whose missing names are told in words."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from gateway_sidecar import __version__
from gateway_sidecar.errors import AdminError


class Said(dict[str, Any]):
    """An object of an answer. The daemon may be of another version, also between an upgrade and its restart."""

    def __missing__(self, name: str) -> NoReturn:
        raise AdminError(
            f"the daemon's answer has no '{name}': it is of another version than this command ({__version__}); "
            "restart the daemon to update it"
        )


def read_said(text: bytes) -> object:
    """JSON with its objects as `Said`. Raises ValueError."""
    return json.loads(text, object_hook=Said)
