"""`run`."""

from __future__ import annotations

import argparse
import faulthandler

import uvloop

from gateway_sidecar.app import run_daemon
from gateway_sidecar.commands.exit_codes import Exit
from gateway_sidecar.config import load_config
from gateway_sidecar.errors import NginxError, ProcessError
from gateway_sidecar.supervision.memory import collect_seldom, share_arenas
from gateway_sidecar.telemetry.logs import get_logger, set_up_logs, take_in_libraries


def run(arguments: argparse.Namespace) -> int:
    """The daemon, in the foreground."""
    share_arenas()
    settings = load_config(arguments.config)
    set_up_logs(settings.log.format, settings.log.level)
    take_in_libraries()
    collect_seldom()
    faulthandler.enable()  # systemd's watchdog sends SIGABRT: the log is to show where we hung.
    try:
        by_command = uvloop.run(run_daemon(arguments.config.absolute(), settings))
    except (NginxError, ProcessError, OSError) as error:
        get_logger().critical("daemon.failed", reason=str(error))
        return Exit.FAILED
    # Told apart from a signal, so that systemd starts a daemon again that somebody's SIGTERM ended, and no other.
    return Exit.STOPPED if by_command else Exit.DONE
