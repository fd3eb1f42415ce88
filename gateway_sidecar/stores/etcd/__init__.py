"""etcd, from 3.4 on, by its JSON gateway."""

from __future__ import annotations

from pydantic import Field

from gateway_sidecar.stores.base import Store, StoreKind
from gateway_sidecar.stores.etcd.settings import EtcdSettings


def _build(settings: EtcdSettings) -> Store:
    from gateway_sidecar.stores.etcd.client import EtcdStore  # Not before there is a store: `status` needs no aiohttp.

    return EtcdStore(settings)


STORE = StoreKind(
    name="etcd",
    settings=(EtcdSettings | None, Field(default=None, description="An etcd, from 3.4 on, by its JSON gateway.")),
    build=_build,
    show=lambda settings: f"etcd {', '.join(settings.endpoints)} {settings.prefix}",
)
