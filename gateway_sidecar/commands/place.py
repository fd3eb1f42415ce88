"""Where commands find the daemon's admin API, and what they say before they drain."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway_sidecar.api.client import Client, Remote
from gateway_sidecar.config.places import find_places
from gateway_sidecar.errors import AdminError, AdminRefused

if TYPE_CHECKING:
    from gateway_sidecar.api.models import Drained


def admin_of(arguments: argparse.Namespace) -> Client:
    """The admin API that is meant. Raises AdminError, ConfigError."""
    if arguments.admin is None:
        if any((arguments.cert, arguments.key, arguments.ca)):
            raise AdminError("--cert, --key and --ca belong to --admin; name the daemon with it")
        return Client(find_places(arguments.config).run_dir / "admin.sock")
    if None in (arguments.cert, arguments.key, arguments.ca):
        raise AdminError("--admin needs --cert, --key and --ca: the API listens with mutual TLS only")
    return Client(Remote(arguments.admin, arguments.cert, arguments.key, arguments.ca))


def warn_of_drain(client: Client, service: str, replica: str) -> None:
    """Warns which models no replica would serve without this one, before anything is done to it. Raises AdminError."""
    with suppress(AdminRefused):  # The drain itself then says what is wrong.
        for line in unanswered_lines(client.preview_drain(service, replica)["unanswered"], replica):
            print(line, file=sys.stderr, flush=True)


def unanswered_lines(unanswered: Mapping[str, str], replica: str) -> Iterable[str]:
    """A line for each model that no replica answers for without this one."""
    return (f"no replica would serve model {model} without {replica}: {why}" for model, why in unanswered.items())


def gateway_lines(drained: Drained) -> Iterable[str]:
    """A line for each gateway of the fleet that was not asked, or that requests are still in flight at."""
    return (f"{it['name']}: {it['reason']}" for it in drained["gateways"] if it["reason"])
