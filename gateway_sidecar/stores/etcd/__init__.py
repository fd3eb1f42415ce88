"""etcd, from 3.4 on, by its JSON gateway."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field

from gateway_sidecar.stores.base import Store, StoreKind
from gateway_sidecar.stores.etcd.settings import EtcdSettings


def _build(settings: EtcdSettings) -> Store:
    from gateway_sidecar.stores.etcd.client import EtcdStore  # Not before there is a store: `status` needs no aiohttp.

    return EtcdStore(settings)


def _exposed(settings: EtcdSettings) -> str:
    in_clear = settings.endpoints[0].startswith("http:")
    open_to_all = settings.user is None and settings.tls.certificate is None
    if in_clear and open_to_all:
        return "etcd has neither TLS nor a user here; give it both, and `tls` and `user` here"
    if in_clear:
        return "etcd has no TLS here, so they are readable on the way; give it TLS, and https `endpoints` here"
    return "etcd asks who is who by nothing here; turn its authentication on, and give `user` here" * open_to_all


STORE = StoreKind(
    name="etcd",
    settings=(EtcdSettings | None, Field(default=None, description="An etcd, from 3.4 on, by its JSON gateway.")),
    build=_build,
    show=lambda settings: f"etcd {', '.join(settings.endpoints)} {settings.prefix}",
    exposed=_exposed,
    places=lambda settings: [(it.hostname or "", it.port or 2379) for it in map(urlsplit, settings.endpoints)],
)
