"""`leave` and `join`."""

from __future__ import annotations

import argparse
import os
import select
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway_sidecar.api.client import Client, Remote
from gateway_sidecar.commands.exit_codes import Exit
from gateway_sidecar.commands.place import admin_of
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.errors import AdminError, AdminRefused, DaemonAway

if TYPE_CHECKING:
    from gateway_sidecar.api.models import Leave

_ASK_S = 0.25  # Four times within what the end can be read for (`_SEEN_S` of `control/process/leaving.py`).
_SAY_S = 10.0
"""A phase that lasts is said again, with the numbers of that moment."""
_BACK_S = 60.0
"""systemd starts a daemon again after two seconds, and gives it 90 at the most; a minute is long."""
START = "start it again with `systemctl start gateway-sidecar`"


def leave(arguments: argparse.Namespace) -> int:
    """Returns when the gateway has left, and says what that cut."""
    client = admin_of(arguments)
    last = client.leave(timeout_s=arguments.timeout)
    try:
        last = _follow(client, last)
    except KeyboardInterrupt:
        print("it goes on leaving; `gateway-sidecar leave` follows it again, `gateway-sidecar join` takes it back")
        raise
    if last["phase"] is None:
        raise AdminError("it was taken back by `join`, and serves on")
    if not isinstance(client.place, Remote):
        with suppress(ProcessLookupError):
            select.select([os.pidfd_open(last["pid"])], [], [])
    after = f"left after {last['took_s']:.0f} s"
    if last["cut"]:
        print(f"{after}; {counted(last['cut'], 'connection')} with requests in flight cut")
        return Exit.CUT
    print(f"{after}; nothing was cut")
    return 0


def _follow(client: Client, answer: Leave) -> Leave:
    """Says how it goes, and returns the last of it. Raises AdminError if the daemon does not come back."""
    said: tuple[object, ...] = ()
    said_at = 0.0
    while answer["phase"] is not None:
        what = str(answer["reason"]).partition(";")[0]
        news = (answer["phase"], what, answer["in_flight"] if answer["phase"] == "draining" else None)
        if news != said or time.monotonic() - said_at >= _SAY_S:
            said, said_at = news, time.monotonic()
            print(f"{answer['took_s']:5.0f} s  {answer['phase']}: {answer['reason']}", flush=True)
        time.sleep(_ASK_S)
        try:
            answer = client.leaving()
        except AdminRefused:
            raise
        except AdminError:
            if answer["phase"] == "stopping":
                return answer
            answer = _when_back(client)
    return answer


def _when_back(client: Client) -> Leave:
    """What the next daemon says, which goes on where this one ended."""
    print("the daemon is away, nginx and the routers go on; waiting for the next one", flush=True)
    until = time.monotonic() + _BACK_S
    while True:
        try:
            return client.leaving()
        except AdminRefused:
            raise
        except AdminError as error:
            if time.monotonic() > until:
                raise AdminError(
                    f"the daemon ended while the gateway was leaving, and none came back within {_BACK_S:.0f} s; nginx "
                    f"and the routers go on. The next one goes on leaving: {START}"
                ) from error
            time.sleep(_ASK_S)


def join(arguments: argparse.Namespace) -> int:
    """Returns when everything is served again."""
    try:
        answer = admin_of(arguments).join()
    except DaemonAway as error:
        raise DaemonAway(f"{error}. A gateway that has left comes back when its daemon is started: {START}") from error
    print("it is back: load balancers are told to send requests here" if answer["joined"] else "it was not leaving")
    return 0
