"""Services with frontends as a configuration can describe them, drawn at random: every setting, in any company.

What is drawn is valid by itself. `DRAWN` says for each mapping of the configuration what its settings are drawn from; a
unit test holds that none is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from gateway_sidecar.config.frontend import (
    AuthSettings,
    CorsSettings,
    FrontendSettings,
    LimitSettings,
    TlsSettings,
    UsageSettings,
)
from gateway_sidecar.config.models import HoldSettings
from gateway_sidecar.config.section import Section

SERVICES = ("chat", "code")
PORTS = 6
"""How many ports from `Ground.port` on belong to the frontends."""

SLOW, SLOW_PATH = 1 / 60, "/v1/embeddings"
"""A limit that a client meets with its second request, and where: a test may ask all else as often as it likes."""

ORIGINS = ("https://app.example.com", "http://localhost:3000", "*")
STRANGE, FLEET = "/v1/strange", "/get_model_info"


@dataclass(frozen=True, slots=True)
class Ground:
    """Where they stand: `directory` has what `files` names, `port` begins their ports, `decider` answers `auth.url`."""

    directory: Path
    port: int
    decider: int

    def pem(self, service: str) -> Path:
        """The certificate of this service, for all names that it may have; its key is beside it."""
        return self.directory / "tls" / f"{service}.pem"

    @property
    def client_ca(self) -> Path:
        """The authority of clients' certificates; the one of `alice` and its key are beside it."""
        return self.directory / "tls" / "clients.crt"

    def keys(self, service: str) -> Path:
        """Its file of keys."""
        return self.directory / f"{service}.keys"

    @property
    def addresses(self) -> Sequence[str]:
        """All that may be drawn. No two of them clash: the kernel gives each to somebody else."""
        p = self.port
        two = [f"{host}:{port}" for port in (p, p + 1) for host in ("127.0.0.1", "127.0.0.2", "[::1]")]
        any_host = [f"0.0.0.0:{p + 2}", f"[::]:{p + 2}"]
        return [*two, *any_host, *(f"127.0.0.1:{p + it}" for it in range(3, PORTS))]


def names(service: str) -> Sequence[str]:
    """The host names that it may have."""
    return (f"{service}.example.com", f"*.{service}.example.org")


def _some(values: Sequence[str], least: int = 0, most: int = 2) -> SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=least, max_size=most, unique=True)


def _maybe(strategy: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.none() | strategy


def _section(model: type[Section], ground: Ground, service: str) -> SearchStrategy[dict[str, Any]]:
    return _mapping(model, ground, service)


Draws = Mapping[str, SearchStrategy[Any]]

DRAWN: Mapping[type[Section], Callable[[Ground, str], Draws]] = {
    TlsSettings: lambda ground, service: {
        "certificate": st.just(str(ground.pem(service))),
        "key": st.just(str(ground.pem(service).with_suffix(".key"))),
        "store": st.none(),  # A name is files of the daemon's, and needs a store.
        "acme": st.just(False),
        "warn_days": st.sampled_from((0.0, 14.0, 60.5)),
        "http2": st.booleans(),
        "client_ca": st.sampled_from((None, str(ground.client_ca))),
        "client_certificates": st.sampled_from(("required", "optional")),
        "client_names": st.sampled_from(([], ["bob", "alice"])),
        "hsts_days": st.sampled_from((0, 1, 730)),
    },
    CorsSettings: lambda ground, service: {
        "origins": _some(ORIGINS, least=1),
        "max_age_s": st.sampled_from((0, 600, 86400)),
    },
    AuthSettings: lambda ground, service: {
        "keys_file": st.just(str(ground.keys(service))),
        "store": st.just(False),  # `true` is a keys_file of the daemon's, and needs a store.
        "url": st.sampled_from(("", "/auth")).map(lambda path: f"http://127.0.0.1:{ground.decider}{path}"),
        "timeout_s": st.sampled_from((20.5, 59.5)),  # Long enough for a busy machine; the default is not.
        "keep_s": st.sampled_from((0.0, 0.5, 3600.0)),
        "stale_s": st.sampled_from((0.0, 3601.0, 86400.0)),
        "pass_authorization": st.booleans(),
        "name_header": _maybe(st.sampled_from(("X-Api-Key-Name", "X-Smg-Tenant-Id"))),
        "public_paths": _some(("/health", "/v1/models")),
    },
    LimitSettings: lambda ground, service: {
        "per": st.sampled_from(("ip", "key", "header:X-Team")),
        "path": st.sampled_from((None, SLOW_PATH, "/v1")),
        "rps": st.sampled_from((None, SLOW, 5000.5, 100_000.0)),
        "burst": st.sampled_from((0, 50_000)),
        "concurrent": st.sampled_from((None, 1000, 65535)),
    },
    UsageSettings: lambda ground, service: {"ask": st.booleans()},
    FrontendSettings: lambda ground, service: {
        "listen": st.integers(0, 2),  # How many of the addresses.
        "redirect": st.integers(0, 2),
        "server_names": _some(names(service)),
        "tls": _maybe(_section(TlsSettings, ground, service)),
        "paths": st.just("all") | _some((FLEET, STRANGE, "/server_info")),
        "max_body_mb": st.sampled_from((1, 7, 64, 1048576)),
        "pass_headers": _some(("X-Session-Id", "X-Tenant", "Baggage")),
        "mcp_servers": st.just("any") | _some(("public", "mcp.example.com", "*.tools.example.com", "127.0.0.1")),
        "cors": _maybe(_section(CorsSettings, ground, service)),
        "auth": _maybe(_section(AuthSettings, ground, service)),
        "limits": st.lists(_section(LimitSettings, ground, service), max_size=3),
        "access_log": st.sampled_from(("off", "errors", "all")),
        "usage": _maybe(_section(UsageSettings, ground, service)),
        "ready_path": st.sampled_from(("auto", None, "/ready/here")),
        "trusted_proxies": _some(("127.0.0.0/8", "::1", "10.0.0.0/8", "fd00::/8"), most=3),
        "allow": st.sampled_from(
            ([], [], ["127.0.0.1", "::/0"], ["10.0.0.0/8", "::1", "127.0.0.0/8", "198.18.0.0/15"])
        ),
        "deny": st.sampled_from(([], [], ["192.0.2.66"], ["127.0.0.0/16"], ["::1", "127.0.0.1/32"])),
    },
    HoldSettings: lambda ground, service: {
        "timeout_s": st.sampled_from((0.0, 30.0, 3600.0)),
        "asleep_s": st.sampled_from((0.0, 0.5, 3600.0)),
        "max_waiting": st.sampled_from((0, 1000, 100_000)),
        "retry_in_flight": st.booleans(),
    },
}


@st.composite
def _mapping(draw: DrawFn, model: type[Section], ground: Ground, service: str) -> dict[str, Any]:
    """One mapping with any of its settings left out: those have a default, or belong to what makes a valid one."""
    said = {name: draw(values) for name, values in DRAWN[model](ground, service).items()}
    fixed = {name for name, field in model.model_fields.items() if field.is_required()}
    if model is TlsSettings:
        fixed = {"certificate", "key", "acme"}
    if model is AuthSettings:
        fixed = {draw(st.sampled_from(("keys_file", "url"))), "timeout_s"}
        for other in {"keys_file", "url", *(("name_header",) if "url" in fixed else ("keep_s", "stale_s"))} - fixed:
            del said[other]
    left_out = draw(st.sets(st.sampled_from(sorted(said.keys() - fixed)), max_size=2)) if said.keys() - fixed else ()
    return _valid(model, {name: value for name, value in said.items() if name not in left_out})


def _valid(model: type[Section], said: dict[str, Any]) -> dict[str, Any]:
    """What may not be said together is not."""
    if model is TlsSettings and said.get("client_ca") is None:
        said = {name: value for name, value in said.items() if not name.startswith("client_")}
    if model is LimitSettings:
        if said.get("rps") is None and said.get("concurrent") is None:
            said["concurrent"] = 65535
        if said.get("rps") == SLOW:
            said |= {"path": SLOW_PATH, "burst": 0}
        elif said.get("rps") is None:
            said.pop("burst", None)
        else:
            said["burst"] = 50_000  # nginx counts in milliseconds: without it two requests in one are too many.
    return said


@st.composite
def services(draw: DrawFn, ground: Ground) -> list[dict[str, Any]]:
    """`name`, `listen`, `hold` and `frontend` of all services; some share their public addresses."""
    free = list(draw(st.permutations(ground.addresses)))
    made: list[dict[str, Any]] = []
    for name in SERVICES:
        frontend = draw(_section(FrontendSettings, ground, name))
        service = {"name": name, "listen": free.pop(), "frontend": frontend}
        service["hold"] = draw(_section(HoldSettings, ground, name))
        first = made[0]["frontend"] if made else {}
        if first.get("server_names") and first.get("listen") and frontend.get("server_names") and draw(st.booleans()):
            _share(frontend, first, ground, name)
        else:
            _stand(frontend, free)
        auth = frontend.get("auth")
        if not auth and (frontend.get("tls") or {}).get("client_certificates") == "optional":
            auth = frontend["auth"] = {"keys_file": str(ground.keys(name))}
        has_keys = bool(auth and auth.get("keys_file"))
        for limit in frontend.get("limits", ()):
            if limit["per"] == "key" and not has_keys:
                limit["per"] = "ip"
        # 127.0.0.1/32 is 127.0.0.1, and what is in both lists is in none.
        allowed = frontend.get("allow", ())
        frontend["deny"] = [it for it in frontend.get("deny", ()) if it.removesuffix("/32") not in allowed]
        made.append(service)
    return made


def _stand(frontend: dict[str, Any], free: list[str]) -> None:
    """Gives it addresses, and takes what only those that are public may have from one without."""
    frontend["listen"] = [free.pop() for _ in range(frontend.pop("listen", 1))]
    if not frontend["listen"]:
        for name in ("tls", "server_names"):
            frontend.pop(name, None)
    count = frontend.pop("redirect", 0)
    if frontend.get("tls"):
        frontend["redirect"] = [free.pop() for _ in range(count)]


def _share(frontend: dict[str, Any], first: dict[str, Any], ground: Ground, service: str) -> None:
    """The addresses of another, who has other names; both speak the same there."""
    frontend["listen"] = list(first["listen"])
    tls, its = first.get("tls"), frontend.get("tls")
    if tls is None:
        frontend["tls"] = None
    else:
        pem = ground.pem(service)
        own = its or {"certificate": str(pem), "key": str(pem.with_suffix(".key"))}
        frontend["tls"] = own | {"http2": tls.get("http2", False)}
    frontend["redirect"] = list(first.get("redirect", ())) if frontend.get("redirect") else []
