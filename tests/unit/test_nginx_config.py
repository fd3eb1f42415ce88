"""nginx's configuration as text, and how much it may hold open."""

from __future__ import annotations

from pathlib import Path

from gateway_sidecar.bridges.front_door import DoorPlaces
from gateway_sidecar.bridges.nginx_config import Capacity, NginxConfig, ServiceAddress


def config(**changes: object) -> str:
    """The text for one service, changed as said."""
    settings: dict[str, object] = {
        "host": "127.0.0.1",
        "first_port": 24001,
        "last_port": 24999,
        "links": Path("/run/g/bridges"),
        "directory": Path("/run/g/nginx"),
        "temp": Path("/var/lib/g/nginx-temp"),
        "gates": Path("/run/g/gates"),
        "waiting_room": Path("/run/g/hold.sock"),
        "log": Path("/var/lib/g/nginx.log"),
        "worker_processes": "2",
        "capacity": Capacity.within(65536, 1000),
        "services": [ServiceAddress("chat", "127.0.0.1:30000", "127.0.0.1:23001", "127.0.0.1:23003")],
        "stream_module": Path("/usr/lib/nginx/modules/ngx_stream_module.so"),
        "user": None,
        "doors": DoorPlaces(Path("/run/g/doors")),
    }
    return NginxConfig(**(settings | changes)).text()  # type: ignore[arg-type]


def test_one_static_range_and_links_by_port() -> None:
    """A scale event needs no word of this text changed."""
    text = config()
    assert "listen 127.0.0.1:24001-24999 backlog" in text
    assert "proxy_pass unix:/run/g/bridges/$server_port.sock;" in text
    assert config(services=[]) != text


def test_addresses_of_the_sixth_version_are_bracketed() -> None:
    """`::1:24001` would be another address."""
    assert "listen [::1]:24001 " in config(host="::1", last_port=24001)


def test_streams_are_left_alone() -> None:
    """No buffering, no size limit, no time-out within an hour, no request sent twice."""
    text = config()
    for line in (
        "proxy_buffering off;",
        "client_max_body_size 0;",
        "proxy_http_version 1.1;",
        "proxy_read_timeout 24h;",
        "proxy_next_upstream off;",
    ):
        assert line in text


def test_capacity_follows_the_file_limit() -> None:
    """Each listening port takes a connection; a request takes four."""
    assert Capacity.within(1 << 20, 1000).requests == 8192
    assert Capacity.within(20_000, 1001).worker_connections == 20_000 - 64
    assert Capacity.within(1024, 1001).requests == 0


def test_same_settings_give_the_same_text() -> None:
    """What is compared with the file on disk must not change by itself."""
    assert config() == config()
