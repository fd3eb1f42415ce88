"""The real Keepalived with the configuration of the guide, on another port."""

from __future__ import annotations

import asyncio
import shutil
from asyncio.subprocess import Process
from pathlib import Path

from tests.namespaces import Namespace

PROGRAM = shutil.which("keepalived", path="/usr/sbin:/usr/local/sbin")
_EXAMPLE = Path(__file__).parents[1] / "examples" / "balancers" / "keepalived.conf"


async def keepalived(directory: Path, space: Namespace, port: int, priority: int) -> Process:
    """Starts it on a machine, for a gateway whose service is at that port. directory: where it writes."""
    assert PROGRAM is not None
    text = _EXAMPLE.read_text().replace("priority 100", f"priority {priority}").replace(":30000/", f":{port}/")
    config = directory / "keepalived.conf"
    config.write_text(text)
    with (directory / "keepalived.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *space.enter, PROGRAM, "--dont-fork", "--log-console", "--vrrp", f"--use-file={config}",
            f"--pid={directory}/keepalived.pid", f"--vrrp_pid={directory}/vrrp.pid",
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
