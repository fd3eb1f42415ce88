"""`store`: an operator's word on a store that this gateway does not believe."""

from __future__ import annotations

import argparse

from gateway_sidecar.commands.place import admin_of
from gateway_sidecar.domain.printable import counted


def accept(arguments: argparse.Namespace) -> int:
    """The store counts as it is."""
    admin_of(arguments).accept_store(refill=False)
    print("every gateway believes the store as it is")
    return 0


def refill(arguments: argparse.Namespace) -> int:
    """What this gateway knows counts."""
    changed = admin_of(arguments).accept_store(refill=True)["changed"]
    print(f"{counted(changed, 'key')} put back; every gateway believes the store")
    return 0
