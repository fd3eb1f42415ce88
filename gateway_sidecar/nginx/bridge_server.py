"""The nginx server between a router and its HTTP engines: who may ask, what, and which answers go back. Pure.

A bridge serves the router alone, which shows a key. nginx adds the key to each request that it sends to a router, in a
header that SMG passes on; what SMG asks by itself carries the key as the worker's own (`Authorization: Bearer`). Only
the question for health may come without, as SMG's first one does.

Only the paths that a router asks engines for pass. An engine cannot send the router elsewhere: a router follows a
redirect (SMG does, for registration and inference, with POST and body), so the bridge takes `Location` away.

Each request is a connection of its own to the engine: nginx keeps none where the address is a variable. It costs about
40 us of latency more than a TCP bridge (`make bench ARGS='--only bridge-cost'`), and an engine that serves one
connection at a time is not held by an idle one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway_sidecar.config.frontend_values import ASKED_OF_ENGINES, INFERENCE

KEY_HEADER = "X-Request-Id-Gateway-Key"
"""Shows a bridge that a request came through the router. SMG passes only a few headers on to engines, in every one of
its modes; those that begin with `X-Request-Id-` are among them, and a worker's own key is not (prefill and decode)."""

_KEY_VARIABLE = f"$http_{KEY_HEADER.lower().replace('-', '_')}"

ORDERS = "X-Accel-Redirect X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset X-Accel-Expires"
"""Headers of an answer by which nginx would let a router, or an engine, lead a request elsewhere."""

ID = "[A-Za-z0-9_][A-Za-z0-9_.:~-]*"
SEGMENTS = "(?:/[A-Za-z0-9_~:@!$&'()*+,=-][A-Za-z0-9._~:@!$&'()*+,=-]*)"
END = r"(?:\?|\z)"

UPGRADES = """\
    map $http_upgrade $gateway_upgrade { default ''; ~*^websocket$ $http_upgrade; }
    map $gateway_upgrade $gateway_connection { default upgrade; '' ''; }
"""
"""Of all protocols that may be asked for only WebSocket is passed on: any other (h2c) could carry requests that nobody
judges."""


OWNER_PATH = "/.gateway-owner"
"""Where nginx asks itself whose a connection is, of a bridge of HTTP engines, with the key."""


def owner_url(host: str, port: int) -> str:
    """Where the bridges' nginx tells whose a connection is."""
    return f"http://{bracketed(host)}:{port}{OWNER_PATH}"


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def patterns(paths: Sequence[str]) -> str:
    """One regular expression for all of these paths, in which `*` stands for one id."""
    return "|".join(re.escape(path).replace(r"\*", ID) for path in paths)


def maps(key: str, paths: Sequence[str]) -> str:
    """What a server of bridges needs in `http {}`. key: the secret; paths: prefixes that pass beside those known."""
    asked, inference = patterns(ASKED_OF_ENGINES), patterns(INFERENCE)
    more = "".join(f'        "~^[A-Z]+:{re.escape(path)}{SEGMENTS}*/?{END}" 1;\n' for path in paths)
    return f"""\
    map "$http_authorization:{_KEY_VARIABLE}" $gateway_is_router {{
        default 0;
        "~^Bearer {key}:" 1;
        "~:{key}$" 1;
    }}
    map $http_authorization $gateway_authorization {{ default $http_authorization; "Bearer {key}" ""; }}
    map "$request_method:$request_uri" $gateway_bridge_passes {{
        default 0;
        "~^GET:/health(?:_generate)?{END}" public;
        "~^[A-Z]+:(?:{inference}){END}" 1;
        "~^GET:(?:{asked}){END}" 1;
        "~^GET:{re.escape(OWNER_PATH)}{END}" 1;
{more}    }}
    map "$gateway_is_router:$gateway_bridge_passes" $gateway_bridge_refuses {{
        default "";
        "0:0" who;
        "0:1" who;
        "1:0" what;
    }}
"""


def server(listen: str, link: str, *, more: str = "", tells_owners: bool = False) -> str:
    """The server. link: the socket to lead to, which may name `$server_port`; more: directives of its own.

    tells_owners: whether it says whose a connection to a gRPC bridge is.
    """
    tell = "content_by_lua_block { require('bridge_owner').answer() }" if tells_owners else "return 404;"
    return f"""\
    server {{
        listen {listen} backlog=1024 so_keepalive=60s:10s:6;
{more}        access_log off;
        underscores_in_headers on;
        large_client_header_buffers 8 64k;
        client_max_body_size 0;
        client_body_timeout 1h;
        send_timeout 24h;
        keepalive_timeout 75s;
        keepalive_requests 1000000;
        if ($gateway_bridge_refuses = who) {{ return 403 "this bridge serves the gateway's router only\\n"; }}
        if ($gateway_bridge_refuses = what) {{ return 404 "this bridge passes inference only\\n"; }}
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $gateway_upgrade;
        proxy_set_header Connection $gateway_connection;
        proxy_set_header Authorization $gateway_authorization;
        proxy_set_header {KEY_HEADER} "";
        proxy_buffering off;
        proxy_buffer_size 16k;
        proxy_buffers 4 16k;
        proxy_request_buffering off;
        proxy_connect_timeout 2s;
        proxy_read_timeout 24h;
        proxy_send_timeout 24h;
        proxy_ignore_headers {ORDERS};
        proxy_hide_header Location;
        proxy_hide_header Refresh;
        location = {OWNER_PATH} {{ {tell} }}
        location / {{
            error_page 403 502 504 = @gone;
            proxy_pass http://unix:{link}:;
        }}
        # Nobody there: the connection is closed without an answer, as a TCP bridge would. An engine's own 502 passes.
        location @gone {{ return 444; }}
    }}
"""
