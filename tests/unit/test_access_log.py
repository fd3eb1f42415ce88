"""The access log's settings, its part of nginx's configuration, and the names of requests and replicas in logs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway_sidecar.config import FrontendSettings, parse_config
from gateway_sidecar.domain.routing import RouterHeaders
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.nginx.config import PeerConfig
from gateway_sidecar.routers.smg.log import read_log_line
from tests.smg import RULES, smg_address
from tests.unit.fake_time import in_fake_time
from tests.unit.test_nginx_config import APPLICATIONS, config, every
from tests.unit.world import Worlds

FILE = "/var/lib/g/log/access.log"


def problems(text: str) -> list[str]:
    """The problem lines of a configuration with this beside a service, without file and line."""
    service = "services: [{name: a, listen: '127.0.0.1:1', replicas: {sockets: '/run/a/{replica}'}, frontend: {%s}}]"
    top, _, frontend = text.partition("|")
    try:
        parse_config(f"{top}\n{service % frontend}\n")
    except ConfigError as error:
        return [line.split(": ", 1)[1] for line in error.problems]
    return []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("|access_log: on", "frontend.access_log: on is not one of the choices; use off, errors or all"),
        ("|access_log: error", "is not one of the choices (did you mean 'errors'?)"),
        ("access_log: {syslog: /dev/log}", "access_log.syslog: '/dev/log' is not where a syslog server listens; use"),
        ("access_log: {syslog: 'log.example.com:514'}", "is not where a syslog server listens; use unix:/dev/log, or"),
        ("access_log: {syslog: 'unix:/dev/my log'}", "names no socket that nginx's configuration can carry"),
        ("access_log: {syslog: 'unix:/dev/log', directory: /var/log/g}", "access_log: has syslog and directory"),
        ("access_log: {directory: log}", "access_log.directory: 'log' is relative"),
        ("access_log: {directory: '/var/log/a b'}", "access_log.directory: '/var/log/a b' holds ' ', which nginx's"),
        ("access_log: {max_mb: 0}", "access_log.max_mb: 0 is too small"),
        ("access_log: {keep: -1}", "access_log.keep: -1 is too small"),
    ],
)  # fmt: skip
def test_each_mistake_says_what_is_wrong_and_the_cure(text: str, expected: str) -> None:
    (problem,) = problems(text)
    assert expected in problem


@pytest.mark.parametrize("text", ["|access_log: off", "|access_log: 'off'", "|access_log: errors", "|access_log: all"])
def test_off_is_a_word_here_though_yaml_reads_false(text: str) -> None:
    assert problems(text) == []


def test_what_is_written_down_can_be_read_again() -> None:
    """The next daemon reads the frontends that nginx has from its file."""
    said = FrontendSettings(access_log="errors").model_dump(mode="json")
    assert FrontendSettings.model_validate(yaml.safe_load(json.dumps(said))).access_log == "errors"


def logged(what: str, **changes: Any) -> str:
    address = smg_address("chat", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", FrontendSettings(access_log=what))  # type: ignore[arg-type]
    return config(**{"services": [address], "access_log": FILE, "lua_modules": (), **changes})


def logs_in(text: str) -> list[tuple[str, ...]]:
    return [it.words[1:] for it in every(text, "access_log") if it.words[1] != "off" and "bridges" not in str(it.words)]


def test_a_service_logs_what_it_is_told_to_and_only_where_that_can_be_written() -> None:
    """A file is buffered; nginx takes no such option for syslog."""
    assert logs_in(logged("off")) == logs_in(logged("all", access_log=None)) == []
    assert "gateway_began_s" not in logged("off")
    line = "gateway_chat_requests"
    assert logs_in(logged("all")) == [(FILE, line, "buffer=64k", "flush=1s")]
    assert logs_in(logged("errors")) == [(FILE, line, "buffer=64k", "flush=1s", "if=$gateway_logged")]
    assert logs_in(logged("all", access_log="syslog:server=unix:/dev/log")) == [("syslog:server=unix:/dev/log", line)]


def test_a_line_is_json_whatever_is_known() -> None:
    """With and without Lua, events and the module that times streams: numbers have a value, text has quotes."""
    for changes in ({}, {"lua_modules": None}, {"times_streams": False}):
        text = logged("all", **changes)
        (form,) = ["".join(it.words[3:]) for it in every(text, "log_format") if it.words[1] == "gateway_chat_requests"]
        told = json.loads(re.sub(r'(?<!")\$\w+', "1.5", form))
        assert list(told)[:4] == ["time", "unix_s", "id", "service"]
        assert all(value in (1.5, "chat", "", None) or value.startswith("$") for value in told.values())


def test_only_who_asks_for_tokens_has_answers_read() -> None:
    """Each piece of a stream costs: neither for errors, nor for what is no engine's answer."""
    reads = "package.loaded.access_log.answers()"
    assert reads not in logged("all")
    assert reads in logged("all", reads_tokens=True)
    assert reads not in logged("errors", reads_tokens=True)
    assert reads not in logged("all", reads_tokens=True, lua_modules=None)
    application = replace(
        smg_address("chat", "127.0.0.1:1", "", "", FrontendSettings(access_log="all")),
        paths=APPLICATIONS,
        headers=(RouterHeaders(""),),
    )
    text = logged("all", reads_tokens=True, services=[application])
    assert reads not in text
    assert 'access_log.over("/run/g/names", "127.0.0.1", nil, package.loaded.balance.over(), false, ' in text


def test_routers_engines_and_clients_are_told_one_name() -> None:
    """nginx's or the client's: what a router or an engine says of it stays here, but for an application's own."""
    text = logged("off")
    told = {it.words[2] for it in every(text, "proxy_set_header") if it.words[1] == "X-Request-Id"}
    assert told == {"$gateway_id"}
    assert "proxy_hide_header X-Request-Id;" in text
    assert "proxy_hide_header X-Gateway-Bridge;" in text
    assert "proxy_hide_header X-Gateway-Waited;" in text
    named = replace(smg_address("chat", "127.0.0.1:1", "", ""), paths=APPLICATIONS, headers=(RouterHeaders(""),))
    assert "add_header X-Request-Id $gateway_own_id always;" in config(services=[named], lua_modules=())


def test_a_bridge_says_its_address_to_our_routers_alone() -> None:
    """In whichever nginx it is, and never to a router that somebody else runs: its clients would see it."""
    said = ("map", "$http_authorization", "$gateway_bridge")
    (ours,) = [it for it in every(config(), "map") if it.words[:3] == said]
    assert [it.words for it in ours.block or ()] == [("default", "127.0.0.1:$server_port")]
    rules = replace(RULES, shared_key="s" * 20)
    (others,) = [it for it in every(config(bridge_rules=rules), "map") if it.words[:3] == said]
    assert ("Bearer " + "s" * 20, "") in [it.words for it in others.block or ()]
    peer = PeerConfig(
        "10.0.0.5", 8000, Path("/run/g/bridges/24001.sock"), Path("/run/g/peers/x"), grpc=False, bridge_key="k" * 32,
        bridge_rules=RULES, modules=(), owner_url=None,
    ).text()  # fmt: skip
    (alone,) = [it for it in every(peer, "map") if it.words[:3] == said]
    assert [it.words for it in alone.block or ()] == [("default", "10.0.0.5:$server_port")]
    assert "add_header X-Gateway-Bridge $gateway_bridge;" in peer


def test_a_header_that_an_operator_passes_does_not_bring_the_clients_id_back() -> None:
    address = smg_address(
        "chat", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", FrontendSettings(pass_headers=("X-Request-Id",))
    )
    assert "X-Request-Id" not in address.passed_headers


def test_a_line_of_smgs_log_says_whose_request_it_is_about() -> None:
    """The span around it has it. A request's own fields win nothing: a span that is no object is left alone."""
    said = {"level": "WARN", "message": "No worker", "span": {"request_id": "mine", "trace_id": "0a", "path": "/v1"}}
    line = read_log_line(json.dumps(said))
    assert line is not None
    assert line.fields == {"request_id": "mine", "trace_id": "0a"}
    bare = read_log_line(json.dumps({**said, "span": "text"}))
    assert bare is not None
    assert bare.fields == {}


@in_fake_time
async def test_the_log_knows_replicas_by_their_workers_addresses(worlds: Worlds) -> None:
    """From before the first request until the port rests; what was removed is made again."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        url = str(world.tenure("r1").base_url)
        assert world.links.names == {url: "r1"}
        world.links.names.clear()
        assert world.service.bridges.repair(set(world.links.led))
        assert world.links.names == {url: "r1"}
        assert not world.service.bridges.repair(set(world.links.led))
        world.vanish("r1")
        await world.at_rest()
        await world.until(lambda: world.links.names == {})
