"""`check` tells of whom a gateway's directories, files and nginx do not keep out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway_sidecar.check import _directory, unguarded
from gateway_sidecar.config import PathPattern, Settings, parse_config
from gateway_sidecar.domain.findings import Level
from gateway_sidecar.kinds import SOURCES
from gateway_sidecar.nginx.server import NginxProgram
from gateway_sidecar.sources import socket_pattern


@pytest.fixture(autouse=True)
def no_unit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where no unit is installed that hides directories: it may be on this one."""
    monkeypatch.setattr(socket_pattern, "UNIT", tmp_path / "none.service")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with nobody else's above it, whatever pytest's own lie in."""
    with tempfile.TemporaryDirectory(prefix="gw-") as made:
        yield Path(made)


def settings_with(service: str, place: Path) -> Settings:
    head = f"run_dir: {place}/run\nstate_dir: {place}/state\n"
    return parse_config(f"{head}services: [{{name: chat, listen: '127.0.0.1:1', {service}}}]")


@pytest.mark.parametrize(("mode", "is_told"), [(0o775, True), (0o757, True), (0o1775, False), (0o755, False)])
def test_a_shared_directory_without_the_sticky_bit_is_told_of(place: Path, mode: int, *, is_told: bool) -> None:
    """Its writers could put sockets of theirs into the places of others'; that above it as well."""
    pattern = PathPattern(f"{place}/shared/user/{{replica}}.sock")
    (place / "shared" / "user").mkdir(parents=True)
    for shared in (place / "shared" / "user", place / "shared"):
        shared.chmod(mode)
        found = list(SOURCES["sockets"].advise(pattern))
        shared.chmod(0o755)
        assert len(found) == is_told
        assert all(f"chmod +t {shared}" in text for text in found)


@pytest.mark.parametrize(("mode", "is_told"), [(0o664, True), (0o646, True), (0o644, False)])
def test_an_inventory_that_others_may_change_is_told_of(place: Path, mode: int, *, is_told: bool) -> None:
    """They would name replicas, and the servers that the daemon shows its SSH keys."""
    inventory = place / "replicas.yaml"
    inventory.write_text("replicas: []")
    inventory.chmod(mode)
    found = list(SOURCES["inventory"].advise(str(inventory)))
    assert len(found) == is_told
    assert all("users other than its owner may write" in text for text in found)
    assert list(SOURCES["inventory"].advise(f"{place}/none.yaml")) == []


def test_a_directory_that_others_may_write_in_is_a_fault(place: Path) -> None:
    """As the daemon will refuse it; one that is not there yet, by what it would be made in."""
    kept = place / "run"
    kept.mkdir(0o750)
    assert _directory("run_dir", kept).level is Level.OK
    assert _directory("run_dir", kept / "deep").level is Level.OK
    kept.chmod(0o707)
    for path, words in (
        (kept, "users other than its owner may write in"),
        (kept / "deep", "others may rename what is in"),
    ):
        finding = _directory("run_dir", path)
        assert finding.level is Level.FAIL
        assert words in finding.text


def test_an_nginx_that_cannot_guard_is_told_of(place: Path) -> None:
    """Whoever may connect to bridges of gRPC engines then, and what is refused since nobody can read it."""
    settings = settings_with("replicas: {sockets: '/run/a/{replica}'}", place)
    any_server = settings_with("replicas: {sockets: '/run/a/{replica}'}, frontend: {mcp_servers: any}", place)
    nothing = NginxProgram("nginx", "1.22.1", None)
    lua = replace(nothing, lua_modules=())
    bridges, waits, servers = unguarded(nothing, settings)
    assert bridges.startswith("bridges: any user of this machine can connect to the bridges of gRPC engines")
    assert waits.startswith("bridges: nginx has no Lua to wait with for an engine")
    assert servers.startswith("frontend.mcp_servers: nginx has no Lua to read what requests ask for")
    assert list(unguarded(nothing, any_server)) == [bridges, waits]
    assert list(unguarded(lua, settings)) == [bridges]
    assert list(unguarded(replace(nothing, owner_module=Path("/m/ngx_stream_js_module.so")), any_server)) == [
        bridges,
        waits,
    ]
    assert list(unguarded(replace(lua, owner_module=Path("/m/ngx_stream_js_module.so")), settings)) == []
