"""The settings of the store, and what is said of wrong ones."""

from __future__ import annotations

import pytest

from gateway_sidecar.config import parse_config
from gateway_sidecar.config.store import StoreSettings
from gateway_sidecar.errors import ConfigError

SERVICES = "services: [{name: chat, listen: '127.0.0.1:1', replicas: {}}]\n"


def store_in(text: str) -> StoreSettings:
    found = parse_config(text + SERVICES, "x.yaml").store
    assert found is not None
    return found


def test_a_store_is_one_of_a_kind_with_defaults() -> None:
    """Its endpoints are all that it needs."""
    settings = store_in("store: {etcd: {endpoints: ['http://10.0.0.1:2379/', 'http://[::1]:2379']}}\n")
    kind, etcd = settings.of_kind
    assert (kind, etcd.endpoints) == ("etcd", ("http://10.0.0.1:2379", "http://[::1]:2379"))
    assert (etcd.prefix, settings.gateway) == ("/gateway-sidecar/", None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("store: {}", "store: names no stores; give it one: `etcd`"),
        ("store:", "store: is empty; give it a value, or leave the line out for the default"),
        ("store: {ectd: {}}", "store.ectd: unknown setting; did you mean 'etcd'?"),
        ("store: {etcd: {}}", "store.etcd.endpoints: is missing; add it"),
        ("store: {etcd: {endpoints: []}}", "store.etcd.endpoints: is empty; name at least one member of etcd"),
        ("store: {etcd: {endpoints: ['10.0.0.1:2379']}}", "is not the address of an etcd; use http://HOST:PORT or"),
        ("store: {etcd: {endpoints: ['http://u:p@h:1']}}", "is not the address of an etcd"),
        ("store: {etcd: {endpoints: ['http://a:1', 'https://b:1']}}", "some `endpoints` are http and some https"),
        ("store: {etcd: {endpoints: ['http://a:1'], prefix: x}}", "'x' is not a prefix; begin and end with /"),
        ("store: {etcd: {endpoints: ['http://a:1'], user: x}}", "`user` and `password_file` belong together"),
        ("store: {etcd: {endpoints: ['http://a:1'], tls: {ca: /c}}}", "`tls` is for https, and `endpoints` say http"),
        ("store: {etcd: {endpoints: ['https://a:1'], tls: {key: /c}}}", "`certificate` and `key` belong together"),
        ("store: {gateway: 'A b', etcd: {endpoints: ['http://a:1']}}", "store.gateway: 'A b'"),
        (
            "store: {lease_s: 1, etcd: {endpoints: ['http://a:1']}}",
            "store.lease_s: 1 is too small; use 5 to 3600 seconds",
        ),
    ],
)
def test_each_mistake_is_said_with_its_cure(text: str, problem: str) -> None:
    """Where, which value, what to do."""
    with pytest.raises(ConfigError) as refused:
        store_in(f"{text}\n")
    assert any(problem in line and line.startswith("x.yaml:1:") for line in refused.value.problems), refused.value


def test_keys_of_the_store_are_in_a_file_of_the_daemons() -> None:
    """All that follows knows them as a file of keys; services and shared addresses alike."""
    text = (
        "state_dir: /var/lib/gs\nstore: {etcd: {endpoints: ['http://a:1']}}\nservices:\n"
        "- {name: chat, listen: '127.0.0.1:1', replicas: {}, frontend: {auth: {store: true}}}\n"
        "- {name: code, listen: '127.0.0.1:2', replicas: {}, frontend: {auth: {keys_file: /k}}}\n"
    )
    chat, code = (it.frontend.auth for it in parse_config(text, "x.yaml").services)
    assert chat is not None
    assert (str(chat.keys_file), chat.store) == ("/var/lib/gs/store-keys/keys", False)
    assert code is not None
    assert str(code.keys_file) == "/k"
