"""What is put over the admin API: kept whole on disk or not at all, and shown as a source."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway_sidecar.config import SshDefaults
from gateway_sidecar.control.state.api_replicas import ApiReplicas
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.errors import StateError
from gateway_sidecar.sources.api import ApiSource
from gateway_sidecar.sources.base import Given
from gateway_sidecar.sources.entry import ApiRecord
from gateway_sidecar.sources.placed import OwnSockets
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems

A, B = ReplicaId("a"), ReplicaId("b")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "replicas.json"


def replicas_at(path: Path, problems: Problems | None = None) -> ApiReplicas:
    return ApiReplicas(path, problems or Problems(), Metrics())


async def loaded(path: Path, problems: Problems | None = None, *before: ReplicaId) -> ApiReplicas:
    made = replicas_at(path, problems)
    await made.load({"chat": before} if before else {})
    return made


async def test_put_is_on_disk_before_it_holds_and_idempotent(path: Path) -> None:
    """The same again, in another order, changes nothing; what was told of other services stays."""
    api = await loaded(path)
    await api.put("other", B, {"socket": "/b"})
    put = await api.put("chat", A, {"socket": "/a", "labels": {"x": "1"}})
    assert (put.created, put.changed) == (True, True)
    inode = path.stat().st_ino
    put = await api.put("chat", A, {"labels": {"x": "1"}, "socket": "/a", "priority": None})
    assert (put.created, put.changed) == (False, False)
    assert path.stat().st_ino == inode
    assert json.loads(path.read_text())["replicas"] == {
        "chat": {"a": {"socket": "/a", "labels": {"x": "1"}}},
        "other": {"b": {"socket": "/b"}},
    }
    again = await loaded(path)
    assert again.of("chat").entries == api.of("chat").entries
    assert again.of("other").entries == {B: {"socket": "/b"}}


async def test_delete_is_on_disk_before_the_drain(path: Path) -> None:
    """It is shown until it is forgotten; one that was put again meanwhile is not forgotten."""
    api = await loaded(path)
    await api.put("chat", A, {"socket": "/a"})
    entry = await api.take_out("chat", A)
    assert json.loads(path.read_text())["replicas"] == {"chat": {}}
    assert api.of("chat").leaving == {A: entry}
    assert await api.take_out("chat", A) is entry, "asked twice"
    assert (await api.put("chat", A, {"socket": "/a"})).was_leaving
    assert not api.of("chat").forget(A, entry)
    entry = await api.take_out("chat", A)
    assert api.of("chat").forget(A, entry)
    with pytest.raises(KeyError):
        await api.take_out("chat", A)


async def test_record_that_cannot_be_read_is_no_empty_one(path: Path) -> None:
    """Nothing is written over it, nobody is taken for gone, and it is read as soon as that can be."""
    path.mkdir(parents=True)
    problems = Problems()
    api = await loaded(path, problems)
    assert "cannot read" in problems.told()["api"]
    with pytest.raises(StateError):
        await api.put("chat", A, {"socket": "/a"})
    listing = await source(api.of("chat")).look()
    assert not listing.is_gone(A, "api")
    path.rmdir()
    path.write_text('{"version": 1, "replicas": {"chat": {"a": {"socket": "/a"}}}}')
    await api.load({})
    assert (api.of("chat").entries, problems.told()) == ({A: {"socket": "/a"}}, {})


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b'{"version": 2}', b'{"version": 1, "replicas": {"chat": 5}}', b'{"version": 1, "replicas": []}'],
)
async def test_garbage_is_put_aside(path: Path, garbage: bytes) -> None:
    """Each time under a name of its own; replicas that were there stay, unknown, until somebody decides."""
    for number in (1, 2):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(garbage)
        problems = Problems()
        api = await loaded(path, problems, A, B)
        assert path.with_name(f"replicas.json.unusable-{number}").read_bytes() == garbage
        assert json.loads(path.read_text())["lost"] == {"chat": ["a", "b"]}, "a daemon that is killed now knows, too"
        assert "chat/a, chat/b are lost" in problems.told()["api"]
    listing = await source(api.of("chat")).look()
    assert (set(listing.unknown), set(listing.refused)) == ({A, B}, {"a", "b"})
    await api.put("chat", A, {"socket": "/a"})
    assert json.loads(path.read_text())["lost"] == {"chat": ["b"]}
    assert await api.take_out("chat", B) is None
    assert api.of("chat").lost == set()


async def test_what_cannot_be_written_does_not_hold(path: Path) -> None:
    """Neither a put nor a delete is half applied."""
    api = await loaded(path)
    await api.put("chat", A, {"socket": "/a"})
    path.with_name(".replicas.json.new").mkdir()
    with pytest.raises(StateError):
        await api.put("chat", B, {"socket": "/b"})
    with pytest.raises(StateError):
        await api.take_out("chat", A)
    assert (api.of("chat").entries, api.of("chat").leaving) == ({A: {"socket": "/a"}}, {})
    assert json.loads(path.read_text())["replicas"] == {"chat": {"a": {"socket": "/a"}}}


def source(record: ApiRecord) -> ApiSource:
    return ApiSource(Given("chat", SshDefaults(key_file="/k"), lambda _: Path("/run/t.sock"), OwnSockets(), record))


@pytest.fixture
def sock(tmp_path: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "r.sock"))
        yield tmp_path / "r.sock"


async def test_source_shows_what_is_there(sock: Path, tmp_path: Path) -> None:
    """A socket when it exists, a tunnel at once, one that leaves until it is forgotten."""
    record = ApiRecord({A: {"socket": str(sock)}, B: {"ssh": {"host": "gpu", "forward": "/e.sock"}}})
    missing, leaving = ReplicaId("missing"), ReplicaId("leaving")
    record.entries[missing] = {"socket": str(tmp_path / "none.sock")}
    record.leaving[leaving] = {"socket": str(sock)}
    listing = await source(record).look()
    assert listing.present.keys() == {A, B, leaving}
    assert listing.absent == {missing: ("api", tmp_path / "none.sock")}
    assert {sighting.source for sighting in listing.present.values()} == {"api"}
    assert listing.present[B].tunnel is not None
    assert all(listing.present[it].entry is record.entries[it] for it in (A, B)), "what this look went by"


async def test_key_is_read_again_when_its_file_changes(sock: Path, tmp_path: Path) -> None:
    """A file that is gone changes nothing but is told of; the key is in no entry."""
    key = tmp_path / "key"
    key.write_text("one\n")
    record = ApiRecord({A: {"socket": str(sock), "api_key_file": str(key)}})
    shown = source(record)

    async def known() -> str | None:
        overrides = (await shown.look()).present[A].overrides
        assert overrides is not None
        return overrides.api_key

    assert await known() == "one"
    key.write_text("other\n")
    assert await known() == "other"
    key.unlink()
    assert await known() == "other"
    assert "no such file" in (await shown.look()).refused[A]
