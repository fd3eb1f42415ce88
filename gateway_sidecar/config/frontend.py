"""The settings of a service's frontend: who may come in, how, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from gateway_sidecar.config.frontend_values import (
    ALL_PATHS,
    ANY,
    AUTO,
    NAME,
    ORIGIN,
    PUBLIC,
    AuthUrl,
    parse_auth_url,
    parse_client_name,
    parse_clients,
    parse_header,
    parse_mcp_servers,
    parse_network,
    parse_origin,
    parse_paths,
    parse_per,
    parse_prefix,
    parse_ready_path,
    parse_server_name,
    parse_stored_name,
)
from gateway_sidecar.config.section import Section
from gateway_sidecar.config.values import Endpoint, parse_endpoint, parse_path, show

_PATTERN_OF_PATH = r"^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+$"
_ENDPOINT = {
    "type": "string",
    "pattern": r"^(localhost|[0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$",
}


def _parse_file(value: object) -> Path:
    return parse_path(
        str(value) if isinstance(value, Path) else value, "use an absolute path such as /etc/ssl/chat.pem"
    )


def _text_schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern})


def _word_or_list(value: tuple[str, ...]) -> Any:
    """As the file says it: what is written down can be read again."""
    return value[0] if value in ((ALL_PATHS,), (ANY,)) else list(value)


_TO_TEXT = PlainSerializer(str, return_type=str)
AddressValue = Annotated[Endpoint, PlainValidator(parse_endpoint), _TO_TEXT, WithJsonSchema(_ENDPOINT)]
FileValue = Annotated[Path, PlainValidator(_parse_file), _TO_TEXT, _text_schema("^/.+$")]
ServerNameValue = Annotated[str, PlainValidator(parse_server_name), _text_schema(r"^(\*\.)?[A-Za-z0-9.-]+$")]
StoredNameValue = Annotated[str, PlainValidator(parse_stored_name), _text_schema(f"^{NAME}$")]
PrefixValue = Annotated[str, PlainValidator(parse_prefix), _text_schema(_PATTERN_OF_PATH)]
ReadyPathValue = Annotated[str, PlainValidator(parse_ready_path), _text_schema(rf"^auto$|{_PATTERN_OF_PATH}")]
NetworkValue = Annotated[str, PlainValidator(parse_network), _text_schema(r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$")]
ClientsValue = Annotated[str, PlainValidator(parse_clients), _text_schema(r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$")]
ClientNameValue = Annotated[
    str, PlainValidator(parse_client_name), _text_schema(r"^[A-Za-z0-9@][A-Za-z0-9 @._-]{0,63}$")
]
OriginValue = Annotated[str, PlainValidator(parse_origin), _text_schema(f"^({ORIGIN})$")]
AuthUrlValue = Annotated[AuthUrl, PlainValidator(parse_auth_url), _TO_TEXT, _text_schema(r"^http://[^\s?#]+$")]
HeaderValue = Annotated[str, PlainValidator(parse_header), _text_schema(r"^[A-Za-z][A-Za-z0-9-]{0,63}$")]
PerValue = Annotated[str, PlainValidator(parse_per), _text_schema(r"^(key|ip|header:[A-Za-z][A-Za-z0-9-]{0,63})$")]
McpServersValue = Annotated[
    tuple[str, ...],
    PlainValidator(parse_mcp_servers),
    PlainSerializer(_word_or_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": ANY},
                {"type": "array", "items": {"type": "string", "pattern": r"^(\*\.)?[A-Za-z0-9][A-Za-z0-9.-]*$"}},
            ]
        }
    ),
]
PathsValue = Annotated[
    tuple[str, ...],
    PlainValidator(parse_paths),
    PlainSerializer(_word_or_list),
    WithJsonSchema(
        {"anyOf": [{"const": ALL_PATHS}, {"type": "array", "items": {"type": "string", "pattern": _PATTERN_OF_PATH}}]}
    ),
]


def _off(value: object) -> object:
    """YAML reads `off` as false."""
    return "off" if value is False else value


def _list(**more: Any) -> Any:
    return Field(default=(), **more)


class TlsSettings(Section):
    """A certificate and its key: from files, from the store, or by ACME. A changed one is taken in without a reload."""

    certificate: FileValue | None = Field(
        default=None,
        description="The certificate, in PEM, followed by its intermediate certificates. Required without `store` and"
        " `acme`.",
        examples=["/etc/letsencrypt/live/api.example.com/fullchain.pem"],
    )
    key: FileValue | None = Field(
        default=None,
        description="The certificate's private key, in PEM, without a passphrase. Others must not be able to read it."
        " Required without `store` and `acme`.",
        examples=["/etc/letsencrypt/live/api.example.com/privkey.pem"],
    )
    store: StoredNameValue | None = Field(
        default=None,
        description="The certificate and its key are those of this name in the store that several gateways share"
        " (`store`). Put them there with `gateway-sidecar certificate put`; they are in force at every gateway. The"
        " daemon has them in `state_dir/store-certificates`.",
        examples=["api"],
    )
    acme: bool = Field(
        default=False,
        description="Whether the ACME server of the `acme` settings issues the certificate for `server_names`. The"
        " server checks the names at port 80, so `redirect` must listen there. Gateways that share a store order one"
        " certificate for all of them.",
    )
    warn_days: float = Field(
        default=14.0,
        ge=0,
        le=365,
        description="`status` and the log warn this many days before the certificate expires. A certificate by ACME"
        " causes no warning before the last sixth of its lifetime.",
    )
    http2: bool = Field(
        default=False,
        description="Whether clients may use HTTP/2: many streams over one connection, where browsers open at most six"
        " connections. WebSockets still use HTTP/1.1. All services at one address must have the same value.",
    )
    client_ca: FileValue | None = Field(
        default=None,
        description="Certificates, in PEM, of the authorities whose client certificates count (mTLS). Clients at the"
        " public addresses are asked for a certificate. nginx is reloaded when the file changes.",
        examples=["/etc/gateway-sidecar/tls/clients.pem"],
    )
    client_certificates: Literal["required", "optional"] = Field(
        default="required",
        description="With `client_ca`: `required` refuses requests without a valid certificate, and `auth` asks for a"
        " key as well. `optional` accepts a valid certificate in place of a key.",
    )
    client_names: Annotated[tuple[ClientNameValue, ...], Field(strict=False)] = _list(
        description="Only certificates with one of these common names (CN) count. Without names, every certificate of"
        " `client_ca` counts.",
        examples=[["billing", "search.example.com"]],
    )
    hsts_days: int = Field(
        default=0,
        ge=0,
        le=730,
        description="Browsers use only HTTPS for this many days (Strict-Transport-Security). 0 does not send the"
        " header.",
    )

    @model_validator(mode="after")
    def _of_clients(self) -> TlsSettings:
        if self.client_ca is None and (self.client_names or self.client_certificates != "required"):
            raise ValueError("client_names and client_certificates mean nothing without client_ca; give it as well")
        return self

    @property
    def named(self) -> str:
        """What the certificate is called where people read of it."""
        return f"certificate '{self.store}' of the store" if self.store is not None else str(self.certificate)

    @property
    def certificate_files(self) -> tuple[Path, Path]:
        """The files of certificate and key. Of `store` they are known to `Settings`, of `acme` to `control`."""
        assert self.certificate is not None
        assert self.key is not None
        return self.certificate, self.key


class CorsSettings(Section):
    """Browsers that run a page of another origin."""

    origins: Annotated[tuple[OriginValue, ...], Field(strict=False)] = Field(
        description="The origins whose pages, extensions and apps may call. `*` is any origin. Cookies are never"
        " allowed.",
        examples=[["https://chat.example.com", "chrome-extension://dofdpnoclkigpakdndmhigfojjecnfln"]],
    )
    max_age_s: int = Field(
        default=600, ge=0, le=86400, description="A browser may remember the permission for this long."
    )

    @field_validator("origins", mode="before")
    @classmethod
    def _some(cls, value: object) -> object:
        if value == []:
            raise ValueError("is empty; name an origin, or leave cors out")
        return value


class AuthSettings(Section):
    """Authentication: by keys in a file, by keys in the store, or by another server. One of the three."""

    keys_file: FileValue | None = Field(
        default=None,
        description="A file of hashed keys, `NAME:SHA256` in each line. Make and change it with `gateway-sidecar key`."
        " Clients send `Authorization: Bearer KEY`, or `KEY` in `X-Api-Key` or `Api-Key`.",
        examples=["/etc/gateway-sidecar/chat.keys"],
    )
    store: bool = Field(
        default=False,
        description="The keys are those of the store that several gateways share (`store`). Make and change them with"
        " `gateway-sidecar key --store`; each change is in force at every gateway. The daemon has them in"
        " `state_dir/store-keys/keys`.",
    )
    url: AuthUrlValue | None = Field(
        default=None,
        description="nginx asks this address about each request. 2xx lets the request in, 401 and 403 refuse it, and"
        " any other answer becomes 503.",
        examples=["http://127.0.0.1:4180/auth"],
    )
    timeout_s: float = Field(
        default=2.0, ge=0.1, le=60, description="`url` may take this long to connect, and this long again to answer."
    )
    keep_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="nginx remembers for this long that `url` accepted a request, for the same request of the same"
        " client; it remembers a refusal for as long, but one second at most. So a revocation counts after this time"
        " at the latest. 0 asks about each request.",
    )
    stale_s: float = Field(
        default=0.0,
        ge=0,
        le=86400,
        description="While `url` does not answer, or answers 5xx, a request passes if `url` accepted the same request"
        " within this time. 0 lets no request pass.",
    )
    pass_authorization: bool = Field(
        default=False,
        description="Whether the headers in which a client sends its key go on to the router and the engines.",
    )
    name_header: HeaderValue | None = Field(
        default=None,
        description="The name of the client's key goes on to the router in this header. What a client sends in this"
        " header does not.",
        examples=["X-Api-Key-Name"],
    )
    public_paths: Annotated[tuple[PrefixValue, ...], Field(strict=False)] = _list(
        description="Path prefixes that need no key, such as `/health` for a load balancer.", examples=[["/health"]]
    )

    @model_validator(mode="after")
    def _one(self) -> AuthSettings:
        if (self.keys_file is not None) + self.store + (self.url is not None) != 1:
            raise ValueError("needs one of keys_file, store and url, and no other; give one of them")
        if self.keeps and self.url is None:
            raise ValueError("keep_s and stale_s need url, whose answers they keep; give url, or leave them out")
        if 0 < self.stale_s <= self.keep_s:
            raise ValueError("stale_s has no effect unless it is longer than keep_s; make it longer, or leave it out")
        if self.name_header is not None and self.url is not None:
            raise ValueError(
                "name_header needs keys_file or store, because only keys there have names; leave name_header out"
            )
        return self

    @property
    def keeps(self) -> bool:
        """Whether answers of `url` are kept."""
        return self.keep_s > 0 or self.stale_s > 0


class LimitSettings(Section):
    """How often, and how often at once, one client may ask. All limits of a service hold together."""

    per: PerValue = Field(
        description="What tells clients apart: `key` (the key's name), `ip`, or `header:NAME` (the IP address where"
        " the header is missing).",
        examples=["key"],
    )
    path: PrefixValue | None = Field(
        default=None,
        description="Only requests to this path and below it count; `null` counts all.",
        examples=["/v1/chat"],
    )
    rps: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        default=None, description="Requests per second, on average. A value may be below 1: 0.5 is 30 a minute."
    )
    burst: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Up to this many requests may exceed `rps` at once. The next one gets 429 with Retry-After.",
    )
    concurrent: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None,
        description="At most this many requests may be in flight at once, including those that wait for a router.",
    )

    @field_validator("rps")
    @classmethod
    def _rate(cls, value: float | None) -> float | None:
        if value is not None and (round(value * 60) < 1 or abs(value * 60 - round(value * 60)) > 0.001):
            raise ValueError(f"{show(value)} is not a whole number of requests a minute; use 0.5, 1, 2.5 and so on")
        return value

    @model_validator(mode="after")
    def _something(self) -> LimitSettings:
        if self.rps is None and self.concurrent is None:
            raise ValueError("limits nothing; give rps or concurrent")
        if self.burst and self.rps is None:
            raise ValueError("burst means nothing without rps; give rps as well")
        return self


class UsageSettings(Section):
    """Counting requests and tokens by key and model: `usage: {}` counts. It needs nginx's Lua module."""

    ask: bool = Field(
        default=True,
        description="Whether nginx asks engines for the tokens of streams, by `stream_options.include_usage` in the"
        " request. nginx then hides the event with the tokens from clients that did not ask for it. Without it,"
        " streams whose clients do not ask count as unknown.",
    )


class FrontendSettings(Section):
    """The service's address as a frontend that clients elsewhere may be given."""

    listen: Annotated[tuple[AddressValue, ...], Field(strict=False)] = _list(
        description="Public addresses, beside the service's `listen`. With `tls` they speak HTTPS.",
        examples=[["0.0.0.0:443", "[::]:443"]],
    )
    redirect: Annotated[tuple[AddressValue, ...], Field(strict=False)] = _list(
        description="Addresses that speak HTTP and redirect GET and HEAD to HTTPS. Other requests get 403.",
        examples=[["0.0.0.0:80"]],
    )
    server_names: Annotated[tuple[ServerNameValue, ...], Field(strict=False)] = _list(
        description="Host names that the public addresses answer to; requests for other names get 421. Services with"
        " names may share an address. Without names, every name is accepted.",
        examples=[["api.example.com"]],
    )
    tls: TlsSettings | None = None
    paths: PathsValue = Field(
        default=(),
        description="Path prefixes that pass beside inference. `all` stands for all paths below a version such as"
        " `/v1`. The router's control routes never pass.",
        examples=[["/get_model_info"], "all"],
    )
    max_body_mb: int = Field(
        default=64,
        ge=1,
        le=1048576,
        description="A request with a larger body gets 413. A request that needs no body (GET, DELETE, ...), or comes"
        " to a public path without a key, may have 9999 bytes.",
    )
    pass_headers: Annotated[tuple[HeaderValue, ...], Field(strict=False)] = _list(
        description="Request headers that go on to the router, beside those that every client may send. An example is"
        " a header that `router.args` names for routing.",
        examples=[["X-Session-Id"]],
    )
    mcp_servers: McpServersValue = Field(
        default=(PUBLIC,),
        description="Hosts that a request may name as MCP servers; the router then connects to them from this machine."
        " Use names, `*.NAME`, IPv4 addresses, `public` for what is not obviously a private address or name, or `any`."
        " A public name may lead to a private address all the same: name hosts where that matters.",
        examples=[["mcp.example.com"], "any"],
    )
    cors: CorsSettings | None = None
    auth: AuthSettings | None = None
    limits: Annotated[tuple[LimitSettings, ...], Field(strict=False)] = ()
    access_log: Annotated[Literal["off", "errors", "all"], BeforeValidator(_off)] = Field(
        default="off",
        description="Which requests get a line in the access log. `errors` means those that were refused, failed or"
        " were cut off.",
    )
    ready_path: ReadyPathValue | None = Field(
        default=AUTO,
        description="The path at which nginx tells a load balancer whether to send requests here: 200 or 503, to any"
        " client, without a key, a certificate or a limit. `auto` is `/readyz`. With `engine: http` `auto` is no path,"
        " because all paths belong to the application. `null` turns it off.",
        examples=["/readyz", None],
    )
    usage: UsageSettings | None = None
    trusted_proxies: Annotated[tuple[NetworkValue, ...], Field(strict=False)] = _list(
        description="Networks of proxies in front of this gateway whose `X-Forwarded-For` is believed. Limits per IP"
        " need it.",
        examples=[["10.0.0.0/8"]],
    )
    allow: Annotated[tuple[ClientsValue, ...], Field(strict=False)] = _list(
        description="Only clients with these addresses, or in these networks, may ask. All others get 403. To let in"
        " clients on this machine, name `127.0.0.1`, too. If networks overlap, the most specific one decides.",
        examples=[["192.0.2.0/24", "2001:db8::/32"]],
    )
    deny: Annotated[tuple[ClientsValue, ...], Field(strict=False)] = _list(
        description="Clients with these addresses, or in these networks, get 403, whatever key or certificate they"
        " show. Without `allow`, all other clients may ask.",
        examples=[["192.0.2.66"]],
    )

    @property
    def clients(self) -> Mapping[str, bool]:
        """Each network that is judged by itself -> whether its clients may ask; empty if all may."""
        if not self.allow and not self.deny:
            return {}
        others = not self.allow
        return {"0.0.0.0/0": others, "::/0": others} | dict.fromkeys(self.allow, True) | dict.fromkeys(self.deny, False)
