"""The client of etcd against the real one, in all the ways in which it may be away, refuse us, or be full."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway_sidecar.errors import StoreAway, StoreDenied, StoreFull, StoreInDoubt
from gateway_sidecar.stores.base import Store
from gateway_sidecar.stores.etcd import STORE
from gateway_sidecar.stores.etcd.settings import EtcdSettings, EtcdTlsSettings
from tests.certificates import Authority
from tests.etcd import Etcd, running

Connect = Callable[..., Store]


@pytest.fixture(scope="module")
def etcd() -> Iterator[Etcd]:
    with running() as one:
        yield one


@pytest_asyncio.fixture
async def connect() -> AsyncIterator[Connect]:
    """Clients that end with the test."""
    made: list[Store] = []

    def make(*endpoints: str, **settings: Any) -> Store:
        made.append(STORE.build(EtcdSettings(endpoints=endpoints, **{"timeout_s": 20.0, **settings})))
        return made[-1]

    yield make
    for one in made:
        await one.close()


@contextmanager
def nobodys_port() -> Iterator[str]:
    """It is bound meanwhile, and nobody listens: no other process is given it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


async def fill(store: Store) -> None:
    for number in range(200):
        await store.swap(f"big/{number}", "x" * 100_000, seen=None)


async def test_a_member_that_is_gone_is_passed_over(etcd: Etcd, connect: Connect) -> None:
    """One member of three may be away: the next one answers, and is asked first from then on."""
    with nobodys_port() as gone, nobodys_port() as gone_too:
        store = connect(gone, gone_too, etcd.endpoint)
        revision = await store.swap("over/1", "x", seen=None)
        assert (await store.read("over/")).entries["over/1"].revision == revision


async def test_a_member_that_is_frozen_costs_one_deadline(connect: Connect) -> None:
    """SIGSTOP: connections are taken and nothing is answered. Every call has a deadline."""
    with running() as frozen, running() as well:
        store = connect(frozen.endpoint, well.endpoint, timeout_s=2.0)  # The other one may be as slow as that.
        await store.read("")
        frozen.freeze()
        assert (await store.read("")).cluster
        alone = connect(frozen.endpoint, timeout_s=0.3)
        with pytest.raises(StoreAway, match=r"no answer in 0\.3 s"):
            await alone.read("")
        with pytest.raises(StoreInDoubt):
            await alone.swap("k", "x", seen=None)
        frozen.thaw()
        patient = connect(frozen.endpoint)
        assert (await patient.read("")).cluster


async def test_a_write_that_was_done_and_not_answered_is_no_conflict(etcd: Etcd, connect: Connect) -> None:
    """The member that was asked first wrote it and was cut off; the next one refuses it, and shows that it is there."""

    async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in request.split(b"\r\n") if line.lower().startswith(b"content-l")
        )
        request += await reader.readexactly(length)
        to, back = await asyncio.open_connection("127.0.0.1", etcd.port)
        back.write(request)
        await to.readuntil(b"\r\n\r\n")
        back.close()
        writer.close()

    server = await asyncio.start_server(cut_off, "127.0.0.1", 0)
    async with server:
        front = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        store = connect(front, etcd.endpoint)
        revision = await store.swap("doubt/1", "x", seen=None)
        assert (await store.read("doubt/1")).entries["doubt/1"].revision == revision
        alone = connect(front)
        with pytest.raises(StoreInDoubt):
            await alone.swap("doubt/2", "x", seen=None)
    assert (await connect(etcd.endpoint).read("doubt/2")).entries["doubt/2"].value == "x"


async def test_a_watch_ends_when_its_member_does(connect: Connect) -> None:
    """A killed etcd is noticed at once."""
    with running() as etcd:
        store = connect(etcd.endpoint)
        hints = store.watch("", (await store.read("")).revision)
        told = asyncio.ensure_future(anext(hints))
        await asyncio.sleep(0)
        while not told.done():
            etcd.kill()
            await asyncio.sleep(0.05)
        with pytest.raises(StoreAway):
            await told


async def test_a_watch_from_a_compacted_revision_is_a_hint(etcd: Etcd, connect: Connect) -> None:
    """What happened long ago is not told one by one: a full read tells all."""
    store = connect(etcd.endpoint)
    first = await store.swap("old/1", "x", seen=None)
    last = await store.swap("old/1", "y", seen=first)
    last = await store.swap("old/1", "z", seen=last)
    etcd.ctl("compact", str(last))
    assert [it async for it in store.watch("old/", first - 1)] == [{}]


async def test_a_password_is_asked_for_and_a_stale_login_renewed(connect: Connect, tmp_path: Path) -> None:
    """A login that etcd forgot is one call more. A wrong password, and a user without rights, are said as such."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    with running() as etcd:
        for command in (
            "user add root:root", "user grant-role root root", "role add ours", "user add gw:secret",
            "role grant-permission ours --prefix=true readwrite /gateway-sidecar/", "user grant-role gw ours",
            "auth enable",
        ):  # fmt: skip
            etcd.ctl(*command.split())
        store = connect(etcd.endpoint, user="gw", password_file=str(password))
        await store.swap("k", "x", seen=None)
        etcd.kill()
        etcd.start()  # Logins are in memory alone.
        assert set((await store.read("")).entries) == {"k"}
        other = connect(etcd.endpoint, user="gw", password_file=str(password), prefix="/others/")
        with pytest.raises(StoreDenied, match=r"user 'gw' may not use /others/: .*grant its role readwrite"):
            await other.read("")
        with pytest.raises(StoreDenied, match=r"set store\.etcd\.user and password_file"):
            await connect(etcd.endpoint).read("")
        password.write_text("wrong")
        with pytest.raises(StoreDenied, match=r"etcd refused user 'gw': .*correct store\.etcd\.user or password_file"):
            await connect(etcd.endpoint, user="gw", password_file=str(password)).read("")
        password.unlink()
        with pytest.raises(StoreDenied, match=r"password_file: cannot read .*No such file"):
            await connect(etcd.endpoint, user="gw", password_file=str(password)).read("")


async def test_a_user_where_authentication_is_off_is_said(etcd: Etcd, connect: Connect, tmp_path: Path) -> None:
    """Who set a user thinks that others are kept out."""
    password = tmp_path / "password"
    password.write_text("secret")
    with pytest.raises(StoreDenied, match="etcd has authentication turned off"):
        await connect(etcd.endpoint, user="gw", password_file=str(password)).read("")


async def test_a_full_etcd_can_be_read_and_says_that_it_is_full(connect: Connect) -> None:
    """Leases are kept, too: nobody counts as gone."""
    with running(quota=1 << 20) as etcd:
        store = connect(etcd.endpoint)
        lease = await store.grant(60)
        await store.swap("gateways/a", "me", seen=None, lease=lease)
        with pytest.raises(StoreFull, match="etcd is full"):
            await fill(store)
        await store.keep(lease)
        assert "gateways/a" in (await store.read("gateways/")).entries


async def test_certificates_are_checked_on_both_sides(connect: Connect, tmp_path: Path) -> None:
    """Another CA, no certificate of ours, an expired one: each is refused and said, and a renewed one is read."""
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    certificate, key = ours.sign("gateway")
    with running(authority=ours, client_ca=ours) as etcd:

        def tls(**files: object) -> EtcdTlsSettings:
            of_ours = {"ca": ours.certificate, "certificate": certificate, "key": key}
            return EtcdTlsSettings(**{name: str(path) for name, path in {**of_ours, **files}.items() if path})

        store = connect(etcd.endpoint, tls=tls())
        await store.swap("k", "x", seen=None)
        with pytest.raises(StoreDenied, match=r"TLS: .*certificate verify failed.*store\.etcd\.tls"):
            await connect(etcd.endpoint, tls=tls(ca=others.certificate)).read("")
        with pytest.raises((StoreDenied, StoreAway)):
            await connect(etcd.endpoint, tls=tls(certificate=None, key=None)).read("")
        strange, strange_key = others.sign("strange")
        with pytest.raises((StoreDenied, StoreAway)):
            await connect(etcd.endpoint, tls=tls(certificate=strange, key=strange_key)).read("")
        with pytest.raises(StoreDenied, match=r"cannot read .*No such file"):
            await connect(etcd.endpoint, tls=tls(ca=tmp_path / "absent")).read("")
        mine, my_key = tmp_path / "mine.crt", tmp_path / "mine.key"
        for good, theirs in ((False, (strange, strange_key)), (True, (certificate, key))):
            mine.write_bytes(theirs[0].read_bytes())
            my_key.write_bytes(theirs[1].read_bytes())
            if not good:
                renewed = connect(etcd.endpoint, tls=tls(certificate=mine, key=my_key))
                with pytest.raises((StoreDenied, StoreAway)):
                    await renewed.read("")
            else:
                assert set((await renewed.read("")).entries) == {"k"}
        etcd.issue(ours, days=-1)
        late = connect(etcd.endpoint, tls=tls())
        with pytest.raises(StoreDenied, match="expired"):
            await late.read("")
        etcd.issue(ours)
        assert set((await late.read("")).entries) == {"k"}


def test_a_gateway_that_works_alone_imports_nothing_of_it() -> None:
    """It stays just as it is: no module of the store, or of the fleet."""
    text = "services: [{name: chat, listen: '127.0.0.1:1', replicas: {}}]"
    script = (
        "import sys; from gateway_sidecar.config import parse_config; import gateway_sidecar.app;"
        f"parse_config({text!r}, 'x');"
        "print([m for m in sys.modules if m.startswith(('gateway_sidecar.stores', 'gateway_sidecar.control.fleet'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
