"""`status --watch`: the status, drawn again whenever the daemon has logged an event, and every two seconds for rates.

On a terminal only lines that changed are drawn, on the other screen (as `less` does), so what was there before is there
again at the end. Anywhere else the whole is printed once for each change; ages and rates alone are none.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway_sidecar.api.client import Client, Stream
from gateway_sidecar.commands.screen import Screen, has_screen, width
from gateway_sidecar.commands.status import still
from gateway_sidecar.errors import AdminError, DaemonAway, DaemonUnready

if TYPE_CHECKING:
    from gateway_sidecar.api.models import Status

_RATES_S = 2.0  # A choice: rates are of a minute, and change little in less.
_GAP_S = 0.25
"""Between two drawings: a crowd of events is one change, and a person sees no more."""
_AWAY_S = 1.0  # systemd starts a daemon again after 2 s (`RestartSec`).

Render = Callable[["Status", int | None], str]


def watch(client: Client, render: Render) -> int:
    """Until Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    show = Screen().draw if has_screen() else _Printed()
    try:
        with suppress(KeyboardInterrupt):
            _follow(client, render, show)
    finally:
        if isinstance(show, _Printed):
            sys.stdout.flush()
        else:
            Screen.leave()
    return 0


def _follow(client: Client, render: Render, show: Callable[[str, str], None]) -> None:
    text, is_there = "", False
    while True:
        try:
            with client.following(last=0) as stream:
                while True:
                    answer = client.status()
                    text, is_there = render(answer, width()), True
                    show(text, render(still(answer), None))
                    _until_news(stream)
        except (DaemonAway, DaemonUnready) as error:
            if not is_there:
                raise
            first = f"PROBLEM: no daemon since {time.strftime('%H:%M:%S')}: {error}; below is what it said last"
            show(f"{first}\n\n{text}", str(error))
            _until_back(client)


def _until_news(stream: Stream) -> None:
    """Raises DaemonAway once the daemon has ended."""
    if stream.wait(_RATES_S):
        time.sleep(_GAP_S)
        while stream.wait(0.0):
            continue


def _until_back(client: Client) -> None:
    while True:
        time.sleep(_AWAY_S)
        with suppress(AdminError):
            client.status()
            return


class _Printed:
    """Prints the text where it is not the same as before."""

    def __init__(self) -> None:
        self._before: str | None = None

    def __call__(self, text: str, same: str) -> None:
        if same != self._before:
            before, self._before = self._before, same
            print(("" if before is None else "\n") + f"-- {time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}", flush=True)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
