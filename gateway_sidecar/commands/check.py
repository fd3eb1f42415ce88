"""`check`."""

from __future__ import annotations

import argparse
import asyncio
import os

from gateway_sidecar.check import check_machine, not_who_is_meant, user_to_be
from gateway_sidecar.commands.defaults import DEFAULT_CONFIG
from gateway_sidecar.commands.exit_codes import Exit
from gateway_sidecar.commands.rights import become
from gateway_sidecar.config import Settings, load_config, load_usable
from gateway_sidecar.errors import ProcessError

_ASSUMED = "assumed: its groups in /etc/group and no capabilities, since systemd knows no unit with this user"


def check(arguments: argparse.Namespace) -> int:
    """Looks, and changes nothing."""
    if arguments.config.exists() and not os.access(arguments.config, os.R_OK, effective_ids=True):
        # Installed, the file is for root and the daemon alone: no mode is to be changed for a look.
        raise ProcessError(f"{arguments.config}: may not be read by user {os.geteuid()}; run this with sudo")
    of_unit = arguments.config == DEFAULT_CONFIG
    usable = load_usable(arguments.config)
    user = user_to_be(arguments.as_user, usable, of_unit=of_unit)
    if user is not None:
        become(user)
        print(f"ok    with the rights of {user}, {user.why}; {user.told or _ASSUMED}")
    elif arguments.as_user is None and (finding := not_who_is_meant(usable, of_unit=of_unit)) is not None:
        print(finding.line())
    settings = load_config(arguments.config)
    print(f"ok    {arguments.config}: {_summary(settings)}")
    findings = asyncio.run(check_machine(settings, assumed=user is not None and user.told is None))
    for finding in findings:
        print(finding.line())
    return Exit.FAILED if any(finding.failed for finding in findings) else Exit.DONE


def _summary(settings: Settings) -> str:
    names = ", ".join(service.name for service in settings.services)
    return f"{len(settings.services)} service{'s' * (len(settings.services) != 1)} ({names})"
