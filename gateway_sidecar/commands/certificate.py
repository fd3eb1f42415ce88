"""`certificate`: puts certificates into the store that several gateways share, lists and removes them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from gateway_sidecar.api.client import Client
from gateway_sidecar.config.places import find_places
from gateway_sidecar.config.values import show
from gateway_sidecar.errors import AdminRefused, FrontendError
from gateway_sidecar.frontend.certificate import read_certificate, shown_at, today

if TYPE_CHECKING:
    from gateway_sidecar.api.models import StoredCertificate, StoredCertificates

_HEADINGS = ("certificate", "names", "expires", "services here")


def put(arguments: argparse.Namespace) -> int:
    """Writes one, which is in force at every gateway then."""
    it = read_certificate(arguments.cert, arguments.key, today())
    client = _client(arguments)
    found = _find(client.stored_certificates(), arguments.name)
    _write(client, arguments.name, it.pem.decode("utf-8", "replace"), None if found is None else found["revision"])
    print(f"{arguments.name}: for {', '.join(it.names) or 'no name'}, until {shown_at(it.expires_at)}")
    return 0


def remove(arguments: argparse.Namespace) -> int:
    """Removes one that no service has."""
    client = _client(arguments)
    found = _find(client.stored_certificates(), arguments.name)
    if found is None:
        cure = "`gateway-sidecar certificate list` names them"
        raise FrontendError([f"the store has no certificate {show(arguments.name)}; {cure}"])
    _write(client, arguments.name, None, found["revision"])
    print(f"{arguments.name} is removed")
    return 0


def list_all(arguments: argparse.Namespace) -> int:
    """Prints all of them, and no key."""
    said = _client(arguments).stored_certificates()
    if said["away"] is not None:
        print(f"the store cannot be read: {said['away']}; what was known last stays in force", file=sys.stderr)
    for it in said["certificates"]:
        if it["refused"] is not None:
            print(f"{show(it['name'])} in the store is not served: {it['refused']}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(said["certificates"], indent=2))
        return 0
    rows = [_HEADINGS, *map(_row, said["certificates"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(it: StoredCertificate) -> tuple[str, ...]:
    expires = "-" if it["expires_at"] is None else shown_at(it["expires_at"])
    return it["name"], ", ".join(it["names"]) or "-", expires, ", ".join(it["services"]) or "-"


def _client(arguments: argparse.Namespace) -> Client:
    """Raises ConfigError."""
    return Client(find_places(arguments.config).run_dir / "admin.sock")


def _find(said: StoredCertificates, name: str) -> StoredCertificate | None:
    return next((it for it in said["certificates"] if it["name"] == name), None)


def _write(client: Client, name: str, pem: str | None, seen: int | None) -> None:
    """Raises AdminError, FrontendError."""
    try:
        client.store_certificate(name, pem, seen)
    except AdminRefused as refused:
        raise FrontendError(refused.problems or [str(refused)]) from refused
