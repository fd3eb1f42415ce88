"""The files of our side of TLS with etcd, read again when they change."""

from __future__ import annotations

import ssl
from pathlib import Path

from gateway_sidecar.errors import StoreDenied
from gateway_sidecar.stores.etcd.settings import EtcdTlsSettings
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread


class TlsFiles:
    """What a connection is made with."""

    def __init__(self, settings: EtcdTlsSettings) -> None:
        self._settings = settings
        self._thread = OwnThread("certificates of the store")
        self._made: tuple[object, ssl.SSLContext] | None = None

    async def context(self) -> ssl.SSLContext:
        """One context for as long as the files are the same. Raises StoreDenied if they cannot be used."""
        try:
            return await self._thread.run(self._context, patience_s=DISK_S)
        except TimeoutError as error:
            raise StoreDenied("store.etcd.tls: the file system of its files does not answer") from error

    def _context(self) -> ssl.SSLContext:
        it = self._settings
        try:
            stamps = [_stamp(path) for path in (it.ca, it.certificate, it.key)]
            if self._made is None or self._made[0] != stamps:
                context = ssl.create_default_context(cafile=it.ca)
                if it.certificate is not None and it.key is not None:
                    context.load_cert_chain(it.certificate, it.key, password="")
                self._made = stamps, context
            return self._made[1]
        except ssl.SSLError as error:
            files = ", ".join(path for path in (it.ca, it.certificate, it.key) if path)
            raise StoreDenied(f"store.etcd.tls: {files} cannot be used: {error.reason or error}") from error
        except OSError as error:
            raise StoreDenied(f"store.etcd.tls: cannot read {error.filename or it.ca}: {error.strerror}") from error


def _stamp(path: str | None) -> object:
    if path is None:
        return None
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
