"""The keys of the store over the admin API: listed, written and removed. Only hashes are asked for, and shown."""

from __future__ import annotations

from aiohttp import web

from gateway_sidecar.api.answers import Refused
from gateway_sidecar.api.in_store import away, body_as, fleet_of, writing
from gateway_sidecar.api.models import KeyStored, KeyToStore, StoredKey, StoredKeys
from gateway_sidecar.api.replicas import object_in


async def list_stored_keys(request: web.Request) -> web.Response:
    """Shows what this gateway knows of them."""
    fleet = fleet_of(request)
    keys = fleet.keys
    rows: list[StoredKey] = [
        {"name": name, "line": line, "revision": revision, "refused": keys.refused.get(name)}
        for name, (line, revision) in sorted(keys.entries().items())
    ]
    answer: StoredKeys = {"away": away(fleet), "gateways": keys.shared_by, "keys": rows}
    return web.json_response(answer)


async def put_stored_key(request: web.Request) -> web.Response:
    """Writes or removes one, if nobody else has changed it."""
    fleet, name = fleet_of(request), request.match_info["key"]
    said = body_as(KeyToStore, await object_in(request, "key"), "key")
    try:
        with writing():
            revision = await fleet.keys.write(name, said["line"], said["seen"])
    except ValueError as error:
        raise Refused(422, error="the key was refused", problems=[str(error)]) from error
    answer: KeyStored = {"revision": revision}
    return web.json_response(answer)
