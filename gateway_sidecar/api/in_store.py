"""What is written to the store over the admin API: which revision is meant, and why it is not written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway_sidecar.api.answers import DAEMON, Refused
from gateway_sidecar.errors import StoreConflict, StoreError, StoreFull, StoreInDoubt

if TYPE_CHECKING:
    from gateway_sidecar.control.fleet.fleet import Fleet


def fleet_of(request: web.Request) -> Fleet:
    """Raises Refused."""
    fleet = request.app[DAEMON].shared.fleet
    if fleet is None:
        raise Refused(409, error="this gateway has no store; set `store` in the configuration")
    return fleet


def away(fleet: Fleet) -> str | None:
    """Why the store cannot be read, so that what is shown is what was known last; None if it can be."""
    return None if fleet.reflector.is_up else fleet.reflector.status.reason or "the store was not read yet"


def text_and_seen(body: Mapping[str, Any], what: str, field: str, described: str) -> tuple[str | None, int | None]:
    """What is to be written (None: removed), and the revision that it takes the place of. Raises Refused."""
    text, seen = body.get(field), body.get("seen")
    problems = [f"{word}: is not known; send {field} and seen" for word in body if word not in (field, "seen")]
    if field not in body or not (text is None or isinstance(text, str)):
        problems.append(f"{field}: is neither a text nor null; send {described}, or null to remove it")
    if "seen" not in body or not (seen is None or (type(seen) is int and seen >= 0)):
        problems.append("seen: is neither a number nor null; send the revision that you saw, or null for a new one")
    if text is None and seen is None:
        problems.append("seen: null is for a new one, and nothing is to be removed then; send its revision")
    if problems:
        raise Refused(422, error=f"the {what} was refused", problems=problems)
    return text, seen


@contextmanager
def writing() -> Iterator[None]:
    """Translates what the store says. Raises Refused."""
    try:
        yield
    except StoreConflict as error:
        raise Refused(409, error=f"nothing was changed: {error}; look again") from error
    except StoreInDoubt as error:
        raise Refused(503, error=f"it is not known whether this was written; look again: {error}") from error
    except StoreError as error:
        raise Refused(507 if isinstance(error, StoreFull) else 503, error=f"nothing was changed: {error}") from error
