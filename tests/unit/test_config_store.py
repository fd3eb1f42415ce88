"""The settings of the store, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway_sidecar.config import parse_config
from gateway_sidecar.config.store import StoreSettings
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.kinds import STORES

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


def test_a_certificate_of_the_store_is_a_file_of_this_gateways() -> None:
    """For all that follows; people read its name."""
    tls = "listen: ['127.0.0.1:2'], tls: {store: api}"
    services = f"services: [{{name: chat, listen: '127.0.0.1:1', replicas: {{}}, frontend: {{{tls}}}}}]\n"
    settings = parse_config("state_dir: /s\nstore: {etcd: {endpoints: ['http://a:1']}}\n" + services)
    found = settings.services[0].frontend.tls
    assert found is not None
    assert found.certificate_files == (Path("/s/store-certificates/api.pem"),) * 2
    assert (found.store, found.named) == ("api", "certificate 'api' of the store")
    assert type(found).model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize(
    ("tls", "problem"),
    [
        ("store: 'a b'", "tls.store: 'a b' is not a name; use letters, digits and . _ -, 64 at most"),
        ("store: [api]", "tls.store: a list cannot stand here; use letters"),
        ("store: api, key: /k", "tls.key: has no meaning with `store`, which has the certificate; leave one of the"),
        ("store: api, acme: true", "tls.acme: has no meaning with `store`, which has the certificate; leave one"),
    ],
)
def test_a_certificate_comes_from_one_place(tls: str, problem: str) -> None:
    """Each mistake is one line."""
    frontend = f"{{listen: ['127.0.0.1:2'], tls: {{{tls}}}}}"
    services = f"services: [{{name: chat, listen: '127.0.0.1:1', replicas: {{}}, frontend: {frontend}}}]\n"
    with pytest.raises(ConfigError) as caught:
        parse_config("store: {etcd: {endpoints: ['http://a:1']}}\n" + services)
    assert len(caught.value.problems) == 1, caught.value.problems
    assert problem in caught.value.problems[0]


@pytest.mark.parametrize(
    ("etcd", "why"),
    [
        ("endpoints: ['http://a:1']", "has neither TLS nor a user"),
        ("endpoints: ['http://a:1'], user: u, password_file: /p", "has no TLS here"),
        ("endpoints: ['https://a:1']", "asks who is who by nothing here"),
        ("endpoints: ['https://a:1'], user: u, password_file: /p", ""),
        ("endpoints: ['https://a:1'], tls: {certificate: /c, key: /k}", ""),
    ],
)
def test_who_may_read_what_lies_in_etcd_is_known_from_its_settings(etcd: str, why: str) -> None:
    """`check` says it where private keys lie there."""
    kind, of_kind = store_in(f"store: {{etcd: {{{etcd}}}}}\n").of_kind
    told = STORES[kind].exposed(of_kind)
    assert why in told
    assert bool(told) == bool(why)


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
