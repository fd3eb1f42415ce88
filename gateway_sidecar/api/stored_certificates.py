"""The certificates of the store over the admin API: listed, written and removed. Their keys are shown to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from aiohttp import web

from gateway_sidecar.api.answers import DAEMON, Refused
from gateway_sidecar.api.in_store import away, body_as, fleet_of, writing
from gateway_sidecar.api.models import CertificateStored, CertificateToStore, StoredCertificate, StoredCertificates
from gateway_sidecar.api.replicas import object_in
from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.domain.store_memory import Entry
from gateway_sidecar.errors import FrontendError
from gateway_sidecar.frontend.certificate import Certificate, names_in, validity_in


async def list_stored_certificates(request: web.Request) -> web.Response:
    """Shows what this gateway knows of them."""
    fleet, daemon = fleet_of(request), request.app[DAEMON]
    of_store = fleet.certificates
    users = {name: [service for service, _ in _users(daemon, name)] for name in of_store.entries()}
    rows = await asyncio.to_thread(_rows, of_store.entries(), of_store.refused, users)
    answer: StoredCertificates = {"away": away(fleet), "certificates": rows}
    return web.json_response(answer)


async def put_stored_certificate(request: web.Request) -> web.Response:
    """Writes or removes one, if nobody else has changed it, and this gateway's services can go on with that."""
    fleet, daemon = fleet_of(request), request.app[DAEMON]
    name = request.match_info["certificate"]
    said = body_as(CertificateToStore, await object_in(request, "certificate"), "certificate")
    pem = said["pem"]
    users = list(_users(daemon, name))
    try:
        if pem is None and users:
            services = ", ".join(service for service, _ in users)
            raise FrontendError([f"{services}: has frontend.tls.store: {name}; give it another certificate first"])
        if pem is not None:
            _covers(await fleet.certificates.prove(pem), users)
        with writing():
            revision = await fleet.certificates.write(name, pem, said["seen"])
    except FrontendError as error:
        raise Refused(422, error="the certificate was refused", problems=list(error.problems)) from error
    answer: CertificateStored = {"revision": revision}
    return web.json_response(answer)


def _users(daemon: Daemon, name: str) -> Iterator[tuple[str, FrontendSettings]]:
    """What of this gateway has this certificate."""
    for it in daemon.settings.all_addresses:
        if it.frontend.tls is not None and it.frontend.tls.store == name:
            yield it.name, it.frontend


def _covers(certificate: Certificate, users: list[tuple[str, FrontendSettings]]) -> None:
    """Raises FrontendError if clients of a service would refuse it."""
    problems = [
        f"the certificate: is not for {host}, which {service} answers to; put the certificate of that name there"
        for service, frontend in users
        for host in frontend.server_names
        if not certificate.covers(host)
    ]
    if problems:
        raise FrontendError(problems)


def _rows(
    entries: Mapping[str, Entry], refused: Mapping[str, str], users: Mapping[str, list[str]]
) -> list[StoredCertificate]:
    rows: list[StoredCertificate] = []
    for name, entry in sorted(entries.items()):
        pem = entry.value.encode()
        validity = validity_in(pem)
        rows.append(
            {
                "name": name,
                "names": list(names_in(pem)),
                "expires_at": None if validity is None else validity[1],
                "services": users.get(name, []),
                "revision": entry.revision,
                "refused": refused.get(name),
            }
        )
    return rows
