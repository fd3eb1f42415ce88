"""Settings of certificates by ACME: each mistake has one line with its cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway_sidecar.config import advise, parse_config
from gateway_sidecar.errors import ConfigError

ACME = {"directory": "https://acme.example.com/dir", "accept_terms": True}
FRONTEND = {
    "listen": ["0.0.0.0:443"],
    "redirect": ["0.0.0.0:80"],
    "server_names": ["api.example.com"],
    "tls": {"acme": True},
    "auth": {"keys_file": "/k"},
}


def config(frontend: dict[str, Any], acme: dict[str, Any] | None = ACME, **second: Any) -> str:
    """Of one service with this frontend, or of two."""
    services = [
        {
            "name": name,
            "listen": f"127.0.0.1:{30000 + number}",
            "replicas": {"sockets": f"/run/replicas/{name}/{{replica}}.sock"},
            "frontend": {key: value for key, value in each.items() if value is not None},
        }
        for number, (name, each) in enumerate((("a", frontend), ("b", second)))
        if each
    ]
    return yaml.safe_dump({**({"acme": acme} if acme is not None else {}), "services": services}, sort_keys=False)


def problems(text: str) -> list[str]:
    """Without the file's name and the line."""
    try:
        parse_config(text)
    except ConfigError as error:
        return [line.split(": ", 1)[1] for line in error.problems]
    return []


def test_what_is_right_is_taken_and_warned_of_by_nobody() -> None:
    """With everything that there is."""
    eab = {"key_id": "kid-1", "hmac_key_file": "/etc/acme.hmac"}
    acme = {**ACME, "email": "ops@example.com", "ca_file": "/etc/ca.pem", "eab": eab}
    settings = parse_config(config(FRONTEND, acme))
    assert settings.acme is not None
    assert settings.acme.eab is not None
    assert settings.acme.eab.key_id == "kid-1"
    assert advise(settings, None) == []


@pytest.mark.parametrize(
    ("acme", "expected"),
    [
        ({"accept_terms": True}, "acme.directory: is missing; add it, for example"),
        ({"directory": ACME["directory"]}, "acme.accept_terms: is missing; add it"),
        (
            {**ACME, "accept_terms": False},
            "acme.accept_terms: is false, and the daemon makes an account only if it is true; read",
        ),
        ({**ACME, "directory": "letsencrypt"}, "acme.directory: 'letsencrypt' is not the https URL of an ACME"),
        ({**ACME, "directory": "http://acme.example.com/dir"}, "acme.directory: 'http://acme.example.com/dir' is not"),
        ({**ACME, "directory": "https://u:p@acme.example.com/"}, "acme.directory: 'https://u:p@acme.example.com/' is"),
        ({**ACME, "directory": "https://[::1/dir"}, "acme.directory: 'https://[::1/dir' is not the https URL"),
        ({**ACME, "directory": 1}, "acme.directory: 1 is a number to YAML, not a text"),
        ({**ACME, "email": "ops"}, "acme.email: 'ops' is not an address for mail; use one address such as"),
        ({**ACME, "email": "a@b.c,d@e.f"}, "acme.email: 'a@b.c,d@e.f' is not an address for mail"),
        ({**ACME, "ca_file": "ca.pem"}, "acme.ca_file: 'ca.pem' is relative"),
        ({**ACME, "eab": {"key_id": "kid-1"}}, "acme.eab.hmac_key_file: is missing; add it, for example"),
        ({**ACME, "eab": {"hmac_key_file": "/k"}}, "acme.eab.key_id: is missing; add it, for example"),
        ({**ACME, "eab": {"key_id": "kid 1", "hmac_key_file": "/k"}}, "acme.eab.key_id: "),
        ({**ACME, "hmac": "x"}, "acme.hmac: "),
    ],
)
def test_a_mistake_in_the_account_is_named(acme: dict[str, Any], expected: str) -> None:
    """Before the daemon starts."""
    found = problems(config(FRONTEND, acme))
    assert [line.startswith(expected) for line in found] == [True], found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tls": {}}, ["tls.certificate: is missing; add it", "tls.key: is missing; add it"]),
        ({"tls": {"acme": False, "key": "/k"}}, ["tls.certificate: is missing; add it"]),
        ({"tls": {"acme": True, "key": "/k"}}, ["tls.key: has no meaning with `acme: true`"]),
        ({"tls": {"acme": "yes please"}}, ["tls.acme: 'yes please' is neither true nor false"]),
        ({"server_names": None}, ["tls.acme: needs the names for which the certificate is ordered; give server_names"]),
        (
            {"server_names": ["*.example.com"]},
            ["server_names[0]: *.example.com: a wildcard cannot be proved over HTTP"],
        ),
        ({"server_names": ["203.0.113.7"]}, ["server_names[0]: 203.0.113.7 is an IP address, and certificates are"]),
        ({"redirect": None}, ["tls.acme: needs an address where the ACME server finds api.example.com over HTTP"]),
    ],
)
def test_a_mistake_in_a_frontend_is_named(changes: dict[str, Any], expected: list[str]) -> None:
    """What HTTP-01 cannot prove, and what contradicts itself."""
    found = [it.removeprefix("services[0].frontend.") for it in problems(config({**FRONTEND, **changes}))]
    found = [it for it in found if "is missing" not in it or "acme: true" in it]
    assert [line.startswith(words) for line, words in zip(found, expected, strict=True)] == [True] * len(expected)
    assert all("; " in line for line in found)


def test_without_an_acme_server_there_is_no_certificate() -> None:
    """The message says where it is set."""
    (line,) = problems(config(FRONTEND, None))
    assert line.startswith(
        "services[0].frontend.tls.acme: needs an ACME server; add `acme` with its `directory` at the top"
    )


def test_another_service_may_prove_the_name() -> None:
    """It has the same name at another port, and redirects."""
    second: dict[str, Any] = {**FRONTEND, "listen": ["0.0.0.0:8443"], "redirect": None}
    assert problems(config(FRONTEND, **second)) == []
    assert advise(parse_config(config(FRONTEND, **second)), None) == []
    second["server_names"] = ["other.example.com"]
    (line,) = problems(config(FRONTEND, **second))
    assert line.startswith("services[1].frontend.tls.acme: needs an address where the ACME server finds other.ex")


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        (["0.0.0.0:80", "[::]:8080"], []),
        (["0.0.0.0:8080"], ["ACME servers connect to port 80, not 8080; use port 80, or have it forwarded"]),
        (["127.0.0.1:80"], ["no ACME server elsewhere reaches 127.0.0.1:80; use 0.0.0.0:80 and [::]:80"]),
    ],
)
def test_an_address_that_no_acme_server_reaches_is_warned_of(redirect: list[str], expected: list[str]) -> None:
    """Another program may forward port 80, so it is no mistake."""
    lines = advise(parse_config(config({**FRONTEND, "redirect": redirect})), None)
    assert lines == [f"services[0].frontend.redirect: {text}" for text in expected]


def test_the_guides_examples_are_configurations() -> None:
    """`docs/guides/certificates-by-acme.md` shows what works; its later ones are the account alone."""
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "certificates-by-acme.md").read_text("utf-8")
    first, *accounts = [part.split("```")[0] for part in guide.split("```yaml\n")[1:]]
    assert advise(parse_config(first), None) == []
    assert len(accounts) == 2
    for account in accounts:
        assert problems(first[first.index("services:") :] + account) == []
