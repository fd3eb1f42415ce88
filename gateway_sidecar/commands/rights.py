"""The rights of another user, for the rest of a command."""

from __future__ import annotations

import os
import sys

from gateway_sidecar.errors import ProcessError
from gateway_sidecar.supervision import privileges


def become(user: privileges.User) -> None:
    """For good. Raises ProcessError."""
    privileges.become(user)
    if not os.access(sys.executable, os.X_OK):
        raise ProcessError(f"{user} cannot run {sys.executable}; install gateway-sidecar where that user may")
