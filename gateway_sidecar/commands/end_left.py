"""`stop --all` where no daemon runs."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from gateway_sidecar import app
from gateway_sidecar.commands.rights import become
from gateway_sidecar.config import load_usable
from gateway_sidecar.control.process.left_running import look_for_left
from gateway_sidecar.supervision.privileges import CAP_NET_ADMIN, user_called
from gateway_sidecar.telemetry.logs import set_up_logs


def end_left(config: Path, timeout_s: float) -> bool:
    """Ends what an earlier daemon left running; whether there was any. Raises ConfigError, ProcessError."""
    settings = load_usable(config)
    left = look_for_left(settings.run_dir, settings.state_dir)
    if not left:
        return False
    owner = settings.run_dir.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        # The directories are that user's, who writes there what is to be ended; replicas' addresses are not.
        user = user_called(str(owner), f"to whom {settings.run_dir} belongs")
        become(replace(user, capabilities=frozenset((CAP_NET_ADMIN,))))
    set_up_logs("console", "error")
    asyncio.run(app.end_left(config.absolute(), settings, left, timeout_s=timeout_s))
    print(f"no daemon ran; stopped what an earlier one left: {left}")
    return True
