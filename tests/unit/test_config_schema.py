from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gateway_sidecar.api.openapi import describe_api
from gateway_sidecar.config import (
    Settings,
    SshDefaults,
    config_schema,
    load_config,
    load_overrides,
    parse_config,
    replica_schema,
)
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.sources.inventory import inventory_schema, read_inventory

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
DOCUMENT = (ROOT / "docs" / "configuration.md").read_text()
SERVICE = "services: [{name: a, listen: '127.0.0.1:1', replicas: {sockets: '/run/a/{replica}'}}]\n"

Schema = dict[str, Any]


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(config_schema())


def validate(text: str) -> None:
    validator().validate(yaml.safe_load(text))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path) -> None:
    """For the daemon, and for an editor."""
    load_config(path)
    validate(path.read_text())


def test_the_guide_shows_the_example_of_many_models() -> None:
    """Whoever copies it from the page has what the tests read."""
    shown = (ROOT / "docs" / "guides" / "many-models.md").read_text().split("```yaml\n")[1].partition("```")[0]
    assert (ROOT / "examples" / "many-models.yaml").read_text().endswith(shown)


def test_what_is_commented_out_in_the_example_is_the_default() -> None:
    """A person may uncomment any line and change nothing."""
    lines = (ROOT / "examples" / "gateway-sidecar.yaml").read_text().splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("# state_dir"))
    tail = next(index for index, line in enumerate(lines) if "A second service" in line)
    text = "\n".join(line.replace("# ", "", 1) if is_setting(line) else line for line in lines[head:tail])
    default = load_config(ROOT / "examples" / "minimal.yaml")
    assert parse_config(text) == default


def is_setting(line: str) -> bool:
    """A commented setting, and not one of those that show what could be given."""
    name = line.strip().removeprefix("# ").partition(":")[0].strip()
    return line.strip().startswith("# ") and name.replace("_", "").isalpha() and name not in ("args", "env")


def test_the_schema_is_one() -> None:
    """Editors take draft 2020-12."""
    schema = config_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    "text",
    [
        SERVICE,
        SERVICE + "metrics: null\n",
        SERVICE + "metrics: off\n",
        SERVICE + "x-anchors: {a: 1}\n",
        SERVICE + "bridges: {ports: 24001, host: '::1'}\nnginx: {command: /usr/sbin/nginx, workers: 4}\n",
        SERVICE + "rescan_interval_s: 1\n",
        SERVICE.replace("127.0.0.1:1", "[::1]:1").replace("name: a", "router: {args: [--x], env: {A: b}}, name: a"),
    ],
)
def test_the_schema_takes_what_the_daemon_takes(text: str) -> None:
    """An editor must not underline what works."""
    parse_config(text)
    validate(text)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "services: []",
        SERVICE + "unknown: 1\n",
        SERVICE + "log: {level: loud}\n",
        SERVICE + "rescan_interval_s: 0\n",
        SERVICE + "state_dir: relative\n",
        SERVICE + "bridges: {ports: a-b}\n",
        SERVICE + "bridges: {ports: true}\n",
        SERVICE + "nginx: {command: bin/nginx}\n",
        SERVICE + "bridges: {host: gateway1}\n",
        SERVICE + "nginx: {workers: 0}\n",
        SERVICE.replace("127.0.0.1:1", "gateway1:1"),
        SERVICE.replace("{replica}", "*"),
        SERVICE.replace("{replica}", "{replica}/{replica}"),
        SERVICE.replace("name: a", "name: A"),
        SERVICE.replace("name: a", "name: a, health: {failures: 1.5}"),
        SERVICE.replace("name: a", "name: a, router: {env: {A: 1}}"),
        SERVICE.replace("name: a", "name: a, router: {policy: best}"),
        SERVICE.replace("name: a", "name: a, drain:"),
    ],
)
def test_the_schema_refuses_what_the_daemon_refuses(text: str) -> None:
    """An editor shows the mistake while it is typed."""
    with pytest.raises(ConfigError):
        parse_config(text)
    with pytest.raises(jsonschema.ValidationError):
        validate(text)


def test_every_mapping_has_a_description_that_editors_show() -> None:
    """Hovering over it explains it. Of single settings the reference has the description."""
    schema = config_schema()
    for node in [schema, *schema["$defs"].values()]:
        assert node["description"]


def test_the_documents_example_works() -> None:
    """The first configuration that a newcomer copies is valid."""
    block = DOCUMENT.split("```yaml\n")[1].split("```")[0]
    assert isinstance(parse_config(block), Settings)


DEFAULTS = SshDefaults(key_file="/etc/key")


def test_the_example_of_an_inventory_is_valid() -> None:
    """For the daemon, and for an editor."""
    path = ROOT / "examples" / "inventory" / "rack-b7.yaml"
    assert len(read_inventory(path, "chat", DEFAULTS)) == 4
    jsonschema.Draft202012Validator(inventory_schema()).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "r1: {socket: /run/r1.sock, labels: {rack: b7}, priority: 3, cost: 1.5, worker_type: encode}",
        "r1: {ssh: {host: gpu1, forward: '127.0.0.1:8000', jump: [{host: gate, port: 2222}]}}",
        "r1: {ssh: {host: '::1', forward: /run/e.sock, key_file: null, host_key: trust-on-first-use, known_hosts: /k}}",
        "p1: {socket: /run/p1.sock, advertise: '10.0.0.5:8000', direct: true, bootstrap_port: 8998}",
        "p1: {socket: /run/p1.sock, kv_connector: NixlConnector, kv_role: kv_producer, kv_engine_id: e1}",
        "p1: {socket: /run/p1.sock, kv_role: producer}",
        "p1: {socket: /run/p1.sock, kv_connector: ''}",
        "",
        "r1: {}",
        "r1: {socket: /a, ssh: {host: h, forward: '127.0.0.1:1'}}",
        "r1: {socket: 5}",
        "r1: {sokcet: /a}",
        "r1: {ssh: {host: root@h, forward: '127.0.0.1:1'}}",
        "r1: {ssh: {host: h, forward: 8000}}",
        "r1: {ssh: {host: h}}",
        "a/b: {socket: /a}",
        "..: {socket: /a}",
        "[{socket: /a}]",
        "r1: {socket: /a, priority: -1}",
        "r1: {socket: /a, labels: {'a b': c}}",
    ],
)
def test_an_inventorys_schema_says_what_the_daemon_says(tmp_path: Path, text: str) -> None:
    """Of single entries; what a service's `ssh_defaults` add is beyond it."""
    (tmp_path / "a.yaml").write_text(text)
    try:
        read_inventory(tmp_path / "a.yaml", "chat", DEFAULTS)
        is_usable = True
    except ConfigError:
        is_usable = False
    assert jsonschema.Draft202012Validator(inventory_schema()).is_valid(yaml.safe_load(text)) == is_usable


@pytest.mark.parametrize("text", ["", "priority: 10", "labels: {a: b}\nadvertise: 10.0.0.5:8000", "prio: 1", "cost: 0"])
def test_a_replicas_schema_says_what_the_daemon_says(tmp_path: Path, text: str) -> None:
    """The file beside a socket may be empty."""
    (tmp_path / "r1.yaml").write_text(text)
    try:
        load_overrides(tmp_path / "r1.yaml", os.geteuid())
        is_usable = True
    except ConfigError:
        is_usable = False
    assert jsonschema.Draft202012Validator(replica_schema()).is_valid(yaml.safe_load(text)) == is_usable


def patterns(node: object) -> Iterator[str]:
    """Every regular expression of a schema."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "pattern" and isinstance(value, str))
        for value in node.values():
            yield from patterns(value)
    elif isinstance(node, list):
        for value in node:
            yield from patterns(value)


_ECMA_ESCAPE = re.compile(r"\\([dDsSwWbBfnrtv0^$\\.*+?()\[\]{}|/-]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")
"""What may follow a backslash in ECMA-262 with the flag u, as JSON Schema has it; `-` only in a class."""


@pytest.mark.parametrize("schema", [config_schema(), inventory_schema(), replica_schema(), describe_api()])
def test_editors_can_read_every_pattern(schema: Schema) -> None:
    """They are ECMAScript's, which refuses escapes that Python takes, and Python's own constructs."""
    found = set(patterns(schema))
    assert found
    for pattern in found:
        assert "\\" not in _ECMA_ESCAPE.sub("", pattern), pattern
        assert not re.search(r"\(\?(?![:=!]|<[=!])", pattern), pattern
