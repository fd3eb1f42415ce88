"""A store on etcd's JSON gateway: range, txn, lease, watch, and a login.

Each call tries the members in turn, each for `timeout_s`, and begins with the one that answered last. A read may be
repeated as it is. A write says which revision it was based on; if an unanswered one is refused at the next member, the
key itself says whether it was done.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import orjson

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.store_memory import Entry, Snapshot
from gateway_sidecar.errors import (
    LeaseLost,
    StoreAway,
    StoreConflict,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreInDoubt,
)
from gateway_sidecar.stores.etcd.answers import (
    Failed,
    decoded,
    encoded,
    mapping,
    number,
    parsed,
    raise_failure,
    read_whole,
    reason,
)
from gateway_sidecar.stores.etcd.login import Login
from gateway_sidecar.stores.etcd.settings import EtcdSettings
from gateway_sidecar.stores.etcd.tls import TlsFiles
from gateway_sidecar.supervision.awake import within

_MOST_LINE = 4 * 1024 * 1024
"""Of one answer of a watch, which has the changes of one write: etcd takes 1.5 MiB."""
_WATCH_S = 10.0
"""A watch that says nothing for so long is begun again, from where it was: a member that was stopped says nothing."""

# gRPC's codes, as etcd's JSON gateway names them.
_INVALID, _NOT_FOUND, _DENIED, _EXHAUSTED, _PRECONDITION, _UNAVAILABLE, _UNAUTHENTICATED = 3, 5, 7, 8, 9, 14, 16
_STALE_LOGIN = ("invalid auth token", "auth revision in request is old", "revision of auth store is old")


class EtcdStore:
    """One etcd (a `Store`)."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._members = list(settings.endpoints)
        self._tls = TlsFiles(settings.tls) if settings.endpoints[0].startswith("https:") else None
        self._login = Login(settings.user, settings.password_file)
        self._session: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | bool = True

    # -- what a store does

    async def read(self, *prefixes: str) -> Snapshot:
        """Everything below these prefixes, at one revision. Raises StoreError."""
        ranges = [{"requestRange": self._range(prefix)} for prefix in prefixes]
        answer = await self._call("/v3/kv/txn", {"success": ranges})
        entries: dict[str, Entry] = {}
        for part in answer.get("responses", []):
            entries |= self._entries(mapping(part).get("response_range"))
        header = mapping(answer.get("header"))
        return Snapshot(str(header.get("cluster_id")), number(header.get("revision")), entries)

    async def read_changes(self, known: Snapshot, since: int, *prefixes: str) -> Snapshot | None:
        """As `read`, of which only what has changed comes over the network. Raises StoreError.

        etcd says how many keys there are in all. `known` with the changes has each of them, and may have more that were
        removed: with as many it has just these.
        """
        newer = {"min_mod_revision": str(since + 1)}
        ranges = [{"requestRange": {**self._range(prefix), **newer}} for prefix in prefixes]
        answer = await self._call("/v3/kv/txn", {"success": ranges})
        parts = [mapping(mapping(it).get("response_range")) for it in answer.get("responses", [])]
        header = mapping(answer.get("header"))
        cluster, revision = str(header.get("cluster_id")), number(header.get("revision"))
        entries = dict(known.entries)
        for part in parts:
            entries |= self._entries(part)
        is_whole = len(entries) == sum(number(part.get("count")) for part in parts)
        return Snapshot(cluster, revision, entries) if is_whole and cluster == known.cluster else None

    async def swap(self, key: str, value: str | None, *, seen: int | None, lease: str | None = None) -> int:
        """Writes or removes the key if its revision is still `seen`. Raises StoreConflict, StoreInDoubt, StoreError."""
        name = encoded(self._settings.prefix + key)
        act: dict[str, Any]
        if value is None:
            act = {"requestDeleteRange": {"key": name}}
        else:
            act = {"requestPut": {"key": name, "value": encoded(value), **({"lease": lease} if lease else {})}}
        compare = {"key": name, "target": "MOD", "result": "EQUAL", "mod_revision": str(seen or 0)}
        body = {"compare": [compare], "success": [act], "failure": [{"requestRange": {"key": name}}]}
        doubts: list[str] = []
        try:
            answer = await self._call("/v3/kv/txn", body, doubts)
        except StoreAway as error:
            raise (StoreInDoubt(str(error)) if doubts else error) from error
        revision = number(mapping(answer.get("header")).get("revision"))
        if answer.get("succeeded"):
            return revision
        found = self._entries(mapping(next(iter(answer.get("responses", [])), {})).get("response_range")).get(key)
        if doubts and (found.value if found else None) == value:
            return found.revision if found else revision  # The member that did not answer had done it.
        raise StoreConflict(f"'{key}' was written by somebody else")

    async def watch(self, prefix: str, since: int) -> AsyncIterator[Mapping[str, int]]:
        """Yields whenever something below the prefix has changed. Ends when etcd has no more to say."""
        while True:
            create = {**self._range(prefix), "start_revision": str(since + 1)}
            try:
                async with self._request(self._members[0], "/v3/watch", {"create_request": create}, _WATCH_S) as answer:
                    if answer.status != 200:
                        raise_failure(await read_whole(answer))
                    while line := await answer.content.readline():
                        result = mapping(mapping(parsed(line)).get("result"))
                        since = max(since, number(mapping(result.get("header")).get("revision", since)))
                        if result.get("canceled"):  # What it asks for was compacted: a look shows what is there now.
                            yield {}
                            return
                        if events := result.get("events"):
                            yield self._removed(events)
            except TimeoutError:
                continue
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise StoreAway(f"the watch at {self._members[0]} has ended: {reason(error)}") from error
            except Failed as error:
                raise self._translated(error) from error
            return

    async def grant(self, ttl_s: int) -> str:
        """A new lease. Raises StoreError."""
        return str((await self._call("/v3/lease/grant", {"TTL": str(ttl_s)}))["ID"])

    async def keep(self, lease: str) -> None:
        """Keeps a lease. Raises LeaseLost, StoreError."""
        answer = await self._call("/v3/lease/keepalive", {"ID": lease})
        if number(mapping(answer.get("result")).get("TTL", 0)) <= 0:
            raise LeaseLost("the lease has ended")

    async def kept_s(self, prefix: str) -> Mapping[str, float]:
        """How long ago the lease of each key was kept; etcd counts whole seconds. Raises StoreError."""
        answer = await self._call("/v3/kv/range", {**self._range(prefix), "keys_only": True})
        leases = {self._key_of(it): str(it["lease"]) for it in answer.get("kvs", []) if number(it.get("lease"))}
        found: dict[str, float] = {}
        for key, lease in leases.items():
            left = await self._call("/v3/lease/timetolive", {"ID": lease})
            if (left_s := number(left.get("TTL", 0))) >= 0:  # -1: it has just ended.
                found[key] = float(number(left.get("grantedTTL")) - left_s)
        return found

    async def revoke(self, lease: str) -> None:
        """Ends a lease. Raises StoreError."""
        try:
            await self._call("/v3/lease/revoke", {"ID": lease})
        except LeaseLost:
            return

    async def close(self) -> None:
        """Gives back its connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- one call

    async def _call(self, path: str, body: Mapping[str, Any], doubts: list[str] | None = None) -> dict[str, Any]:
        """The answer of the first member that gives one. `doubts` gets those that may have taken it. Raises StoreError.

        A refusal of one member (its certificate, say) counts if no other answers.
        """
        denied: StoreDenied | None = None
        reasons: list[str] = []
        turns, again = list(self._members), set[str]()
        while turns:
            member = turns.pop(0)
            try:
                answer = await self._ask(member, path, body)
            except Failed as error:
                if error.code != _UNAVAILABLE:
                    raise self._translated(error) from error
                reasons.append(f"{member}: {error}")
                if doubts is not None:
                    doubts.append(member)
            except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError) as error:
                denied = StoreDenied(f"{member}: TLS: {reason(error)}; look at store.etcd.tls, and at etcd's own files")
                reasons.append(str(denied))
                await self.close()  # The next connection reads our files again.
            except (ValueError, aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, TimeoutError) as error:
                reasons.append(f"{member}: {reason(error) or f'no answer in {self._settings.timeout_s:g} s'}")
                if doubts is not None:
                    doubts.append(member)
                if isinstance(error, aiohttp.ServerDisconnectedError) and member not in again:
                    again.add(member)  # It closed a connection that was kept: a new one tells more.
                    turns.insert(0, member)
            except (aiohttp.ClientError, OSError) as error:
                reasons.append(f"{member}: {reason(error)}")
                if doubts is not None and not isinstance(error, aiohttp.ClientConnectorError):
                    doubts.append(member)
            else:
                self._members.remove(member)
                self._members.insert(0, member)
                return answer
        raise denied or StoreAway("; ".join(reasons))

    async def _ask(self, member: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One member's answer; if a login has run out, that after the next one. Raises Failed and aiohttp's errors."""
        try:
            return await self._ask_once(member, path, body)
        except Failed as error:
            stale = error.code == _UNAUTHENTICATED or any(text in str(error) for text in _STALE_LOGIN)
            if not (stale and self._login.forget()):
                raise
        return await self._ask_once(member, path, body)

    async def _ask_once(self, member: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self._login.is_due:
            credentials = await self._login.credentials()
            answer = await self._answer(member, "/v3/auth/authenticate", credentials)
            self._login.take(str(answer.get("token")))
        return await self._answer(member, path, body)

    async def _answer(self, member: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        async with within(self._settings.timeout_s), self._request(member, path, body, None) as answer:
            content = await read_whole(answer)
            if answer.status != 200:
                raise_failure(content)
            return mapping(parsed(content))

    def _request(self, member: str, path: str, body: Mapping[str, Any], silence_s: float | None) -> _Request:
        return _Request(self, member + path, orjson.dumps(body), silence_s)

    async def session(self) -> aiohttp.ClientSession:
        """The connections. Raises StoreDenied if our own files cannot be used."""
        context = await self._tls.context() if self._tls is not None else True
        if self._session is not None and context is not self._context:
            await self.close()  # Our files have changed.
        if self._session is None:
            self._context = context
            connector = aiohttp.TCPConnector(ssl=context, limit=16)
            # No time-out of aiohttp's: it would count a stall of this process.
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(), read_bufsize=_MOST_LINE, trust_env=False
            )
        return self._session

    @property
    def headers(self) -> dict[str, str]:
        """Those of each request."""
        return {"Content-Type": "application/json", **self._login.headers}

    # -- what etcd says

    def _range(self, prefix: str) -> dict[str, str]:
        """All keys that begin with it."""
        first = (self._settings.prefix + prefix).encode()
        return {"key": encoded(first), "range_end": encoded(first[:-1] + bytes([first[-1] + 1]))}

    def _entries(self, part: object) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for it in mapping(part).get("kvs", []):
            found[self._key_of(it)] = Entry(decoded(it.get("value", "")), number(it.get("mod_revision")))
        return found

    def _removed(self, events: object) -> dict[str, int]:
        gone = [mapping(it) for it in events if mapping(it).get("type") == "DELETE"] if isinstance(events, list) else []
        keys = [mapping(it.get("kv")) for it in gone]
        return {self._key_of(it): number(it.get("mod_revision")) for it in keys}

    def _key_of(self, it: Mapping[str, Any]) -> str:
        return decoded(it.get("key", "")).removeprefix(self._settings.prefix)

    def _translated(self, error: Failed) -> StoreError:
        text = printable(str(error), 300)
        user = self._settings.user
        if error.code == _NOT_FOUND and "lease" in text:
            return LeaseLost("the lease has ended")
        if error.code == _EXHAUSTED:
            return StoreFull(f"etcd is full: {text}; compact and defragment it, then `etcdctl alarm disarm`")
        if error.code == _DENIED:
            return StoreDenied(
                f"user '{user}' may not use {self._settings.prefix}: {text}; grant its role readwrite there"
            )
        if "authentication is not enabled" in text:
            return StoreDenied("etcd has authentication turned off; turn it on, or remove store.etcd.user")
        if "user name is empty" in text:
            return StoreDenied("etcd has authentication turned on; set store.etcd.user and password_file")
        if error.code == _UNAUTHENTICATED or "authentication failed" in text:
            return StoreDenied(f"etcd refused user '{user}': {text}; correct store.etcd.user or password_file")
        return StoreError(f"etcd: {text}")


class _Request:
    """`async with`: a POST. The session is made, and our files are read, when it begins."""

    def __init__(self, store: EtcdStore, url: str, body: bytes, silence_s: float | None) -> None:
        self._store = store
        self._url = url
        self._body = body
        self._timeout = aiohttp.ClientTimeout(sock_read=silence_s)
        self._answer: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        session = await self._store.session()
        self._answer = await session.post(
            self._url, data=self._body, headers=self._store.headers, timeout=self._timeout, allow_redirects=False
        )
        return self._answer

    async def __aexit__(self, *_: object) -> None:
        if self._answer is not None:
            self._answer.release()
