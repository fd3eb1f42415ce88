"""The keys of the store, as `key --store` changes them: over the daemon's admin socket. Only hashes go there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway_sidecar.api.client import Client
from gateway_sidecar.config.values import show
from gateway_sidecar.errors import AdminRefused, FrontendError
from gateway_sidecar.frontend.keys import PLAN_LINK, KeyFile, parse_keys
from gateway_sidecar.frontend.stored_keys import lines_of


class StoreOfKeys:
    """The store of the gateway that `client` asks (a `KeyPlace`). Whatever is asked raises AdminError, too."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._said = client.stored_keys()

    def __str__(self) -> str:
        return "the store"

    def text(self) -> str:
        """The lines that count."""
        return "".join(f"{it['line']}\n" for it in self._said["keys"] if it["refused"] is None)

    def read(self) -> KeyFile:
        """What counts."""
        return parse_keys(self.text().encode(), str(self))

    def notes(self) -> Iterator[str]:
        """What else people should know, a line each."""
        if self._said["away"] is not None:
            yield f"the store cannot be read: {self._said['away']}; what was known last stays in force"
        for it in self._said["keys"]:
            if it["refused"] is not None:
                yield f"{show(it['name'])} in the store does not count: {it['refused']}"
        if self._said["gateways"] > 1:
            yield f"bounds per minute, and concurrent, are shared out over {self._said['gateways']} gateways"

    @contextmanager
    def edited(self) -> Iterator[str]:
        """The lines that count."""
        yield self.text()

    def put(self, text: str) -> None:
        """Writes each line that differs, and removes those that are gone."""
        before, after = lines_of(self.read()), lines_of(parse_keys(text.encode(), str(self)))
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                self._write(name, after.get(name))

    def revoke(self, name: str) -> None:
        """Removes a key, also one that does not count."""
        if name.startswith(PLAN_LINK) or name not in {it["name"] for it in self._said["keys"]}:
            raise FrontendError([f"{self}: has no key {show(name)}; `gateway-sidecar key list --store` names them"])
        self._write(name, None)

    def _write(self, name: str, line: str | None) -> None:
        seen = next((it["revision"] for it in self._said["keys"] if it["name"] == name), None)
        try:
            self._client.store_key(name, line, seen)
        except AdminRefused as refused:
            raise FrontendError(refused.problems or [str(refused)]) from refused
