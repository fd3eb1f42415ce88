"""`install` and `uninstall`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from gateway_sidecar import install as unit
from gateway_sidecar.commands.exit_codes import Exit


def install(arguments: argparse.Namespace) -> int:
    """Puts things in place."""
    return _print_steps(unit.install(arguments.root, peers=arguments.peers, dry_run=arguments.dry_run))


def uninstall(arguments: argparse.Namespace) -> int:
    """Takes them away."""
    return _print_steps(unit.uninstall(arguments.root, dry_run=arguments.dry_run))


def _print_steps(steps: Iterable[unit.Step]) -> int:
    failed = False
    for step in steps:
        print(step)
        failed |= step.failed
    return Exit.FAILED if failed else Exit.DONE
