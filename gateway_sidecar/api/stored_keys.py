"""The keys of the store over the admin API: listed, written and removed. Only hashes are asked for, and shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from gateway_sidecar.api.answers import DAEMON, Refused
from gateway_sidecar.api.models import KeyStored, StoredKey, StoredKeys
from gateway_sidecar.api.replicas import object_in
from gateway_sidecar.errors import StoreConflict, StoreError, StoreFull, StoreInDoubt

if TYPE_CHECKING:
    from gateway_sidecar.control.fleet.fleet import Fleet


async def list_stored_keys(request: web.Request) -> web.Response:
    """Shows what this gateway knows of them."""
    fleet = _fleet(request)
    status, keys = fleet.reflector.status, fleet.keys
    rows: list[StoredKey] = [
        {"name": name, "line": line, "revision": revision, "refused": keys.refused.get(name)}
        for name, (line, revision) in sorted(keys.entries().items())
    ]
    away = None if fleet.reflector.is_up else status.reason or "the store was not read yet"
    answer: StoredKeys = {"away": away, "gateways": keys.shared_by, "keys": rows}
    return web.json_response(answer)


async def put_stored_key(request: web.Request) -> web.Response:
    """Writes or removes one, if nobody else has changed it."""
    fleet, name, body = _fleet(request), request.match_info["key"], await object_in(request, "key")
    line, seen = body.get("line"), body.get("seen")
    problems = [f"{word}: is not known; send line and seen" for word in body if word not in ("line", "seen")]
    if "line" not in body or not (line is None or isinstance(line, str)):
        problems.append("line: is neither a text nor null; send the line of a file of keys, or null to remove it")
    if "seen" not in body or not (seen is None or (type(seen) is int and seen >= 0)):
        problems.append("seen: is neither a number nor null; send the revision that you saw, or null for a new one")
    if line is None and seen is None:
        problems.append("seen: null is for a new one, and nothing is to be removed then; send its revision")
    if problems:
        raise Refused(422, error="the key was refused", problems=problems)
    try:
        revision = await fleet.keys.write(name, line, seen)
    except ValueError as error:
        raise Refused(422, error="the key was refused", problems=[str(error)]) from error
    except StoreConflict as error:
        raise Refused(409, error=f"nothing was changed: {error}; look again") from error
    except StoreInDoubt as error:
        raise Refused(503, error=f"it is not known whether this was written; look again: {error}") from error
    except StoreError as error:
        raise Refused(507 if isinstance(error, StoreFull) else 503, error=f"nothing was changed: {error}") from error
    answer: KeyStored = {"revision": revision}
    return web.json_response(answer)


def _fleet(request: web.Request) -> Fleet:
    fleet = request.app[DAEMON].shared.fleet
    if fleet is None:
        raise Refused(409, error="this gateway has no store; set `store` in the configuration")
    return fleet
