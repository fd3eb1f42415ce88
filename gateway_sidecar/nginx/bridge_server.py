"""The nginx server between a router and its HTTP engines: who may ask, what, and which answers go back. Pure.

A bridge serves the router alone, which shows a key. nginx adds the key to each request that it sends to a router, in a
header that the router passes on (`RouterHeaders.bridge_key`); what the router asks by itself carries the key as the
worker's own (`Authorization: Bearer`). Only the question for health may come without, as SMG's first one does.

Only the paths that a router asks engines for pass. An engine cannot send the router elsewhere: a router follows a
redirect (SMG with POST and body, for registration and inference), so the bridge takes `Location` away.

Each request is a connection of its own to the engine: nginx keeps none where the address is a variable. It costs about
40 us of latency more than a TCP bridge (`make bench ARGS='--only bridge-cost'`), and an engine that serves one
connection at a time is not held by an idle one.
"""

from __future__ import annotations

from gateway_sidecar.nginx.templates import bracketed

ORDERS = ("X-Accel-Redirect", "X-Accel-Limit-Rate", "X-Accel-Buffering", "X-Accel-Charset", "X-Accel-Expires")
"""Headers of an answer by which nginx would let a router, or an engine, lead a request elsewhere."""

OWNER_PATH = "/.gateway-owner"
"""Where nginx asks itself whose a connection is, of a bridge of HTTP engines, with the key."""


def owner_url(host: str, port: int) -> str:
    """Where the bridges' nginx tells whose a connection is."""
    return f"http://{bracketed(host)}:{port}{OWNER_PATH}"
