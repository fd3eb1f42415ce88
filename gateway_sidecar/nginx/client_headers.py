"""Which headers pass a frontend, either way. Pure.

Requests: a router decides by headers, and what one of a later version decides by is not known today. So only what is
named goes on, here, by the kind of router and in `frontend.pass_headers`, and nginx says itself who the client is.
Answers: engines put into them what they like, and routers pass it on. Here nginx can only leave out by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

KEYS = ("X-Api-Key", "Api-Key")
"""Where clients of Anthropic and of Azure send a key; all others send it as `Authorization: Bearer KEY`."""

REQUEST_ID = "X-Request-Id"
"""The name of a request, which nginx says to routers, engines and clients: the client's, if it is one, else its own."""

BRIDGE = "X-Gateway-Bridge"
"""In which a bridge says its address with an engine's answer, for the access log. No engine says it, and no client sees
it."""

WAITED = "X-Gateway-Waited"
"""In which the hold says how long a request waited, for the access log."""

CREDENTIALS = ("Authorization", *KEYS)

PASSED = (
    # What the body is, and what is asked for in return.
    *("Accept", "Content-Type", "Content-Encoding", "User-Agent"),
    *("Anthropic-Version", "Anthropic-Beta", "OpenAI-Beta", "OpenAI-Organization", "OpenAI-Project"),
    # Names of a request, by which it is found in logs and traces.
    *("X-Correlation-Id", "X-Trace-Id", "Request-Id", "Traceparent", "Tracestate"),
    # WebSocket; `Upgrade` and `Connection` are said by nginx.
    *("Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"),
)
"""Request headers that go on to the router as the client sent them."""

FOR_AUTH = (*CREDENTIALS, "Cookie", "Origin")
"""Request headers that `auth.url` is told as the client sent them: what a client proves itself by, and nothing that
another proxy would have said."""

HIDDEN = (
    # Addresses and numbers of engines and bridges. `$upstream_http_...` still has them for nginx's own use.
    *("X-Powered-By", "Via", BRIDGE, WAITED),
    # What a browser would keep, or do, for everything else that is at this name.
    *("Set-Cookie", "Set-Cookie2", "Clear-Site-Data", "Service-Worker-Allowed", "Accept-CH", "Critical-CH"),
    *("Strict-Transport-Security", "Public-Key-Handles", "Public-Key-Handles-Report-Only", "Expect-CT", "Alt-Svc"),
    # Where a browser would go, or report to, by itself. `Location` passes as a path.
    *("Refresh", "Location", "Content-Location", "Link", "SourceMap", "X-SourceMap"),
    *("Report-To", "Reporting-Endpoints", "NEL", "Content-Security-Policy", "Content-Security-Policy-Report-Only"),
    # Whom a browser would ask its user for a password for.
    *("WWW-Authenticate", "Proxy-Authenticate"),
    # Which pages may read answers is for `cors` to say.
    *(f"Access-Control-{it}" for it in ("Allow-Origin", "Allow-Methods", "Allow-Headers", "Allow-Credentials")),
    *(f"Access-Control-{it}" for it in ("Expose-Headers", "Max-Age", "Allow-Private-Network")),
    "Timing-Allow-Origin",
)
"""Headers of an answer that stay here. nginx itself leaves out `Server`, `Date` and `X-Accel-*` of others."""


def sent_on(more: Iterable[str], *, but: Collection[str]) -> Sequence[str]:
    """The request headers that go on: those known, and more, but not some. None is named twice."""
    left_out = {name.lower() for name in but}
    names = {name.lower(): name for name in (*CREDENTIALS, *PASSED, *more) if name.lower() not in left_out}
    return list(names.values())
