"""A user's login at etcd: a token, which etcd forgets after a while or when its users change."""

from __future__ import annotations

from pathlib import Path

from gateway_sidecar.errors import StoreDenied
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread

_MOST_BYTES = 4096  # A password's file: more than any password, and of a wrong file no more than this.


class Login:
    """Without a user there is nothing to do."""

    def __init__(self, user: str | None, password_file: str | None) -> None:
        self._user = user
        self._file = password_file
        self._token = ""
        self._thread = OwnThread("password of the store")

    @property
    def is_due(self) -> bool:
        """Whether a token is needed first."""
        return self._user is not None and not self._token

    @property
    def headers(self) -> dict[str, str]:
        """What shows etcd who asks."""
        return {"Authorization": self._token} if self._token else {}

    async def credentials(self) -> dict[str, str]:
        """What the token is given for. Raises StoreDenied if the password cannot be read."""
        assert self._user is not None
        assert self._file is not None
        path = Path(self._file)
        try:
            raw = await self._thread.run(path.read_bytes, patience_s=DISK_S)
        except OSError as error:  # TimeoutError is one.
            why = error.strerror or "the file system does not answer"
            raise StoreDenied(f"store.etcd.password_file: cannot read {path}: {why}") from error
        return {"name": self._user, "password": raw[:_MOST_BYTES].decode("utf-8", "replace").rstrip("\r\n")}

    def take(self, token: str) -> None:
        """etcd has given this."""
        self._token = token

    def forget(self) -> bool:
        """etcd does not know the token any more; whether there was one."""
        had, self._token = bool(self._token), ""
        return had
