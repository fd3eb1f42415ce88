"""How much of request bodies nginx may hold, as nginx's configuration. Pure.

nginx holds a request's body while the request is under way, in a file where it does not fit into memory, and knows no
quota. So requests with large bodies are counted, in classes by the digits of their declared length: a class may have
so many at once that its largest bodies together are its share of the whole. A body of undeclared length counts as the
largest.

A *small* request is one that needs no body (GET, DELETE and so on), or comes to a public path without a key: its body
has to fit into memory, and is refused before a byte of it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SMALL_BYTES = 9_999
"""The most that a small request may carry; one with five digits of bytes is refused by its head."""

UNSURE = 597
"""Our own status, inside nginx only: a small request whose head does not say how long its body is."""

_SMALL_DIGITS = len(str(SMALL_BYTES))
_FIRST_DIGITS = 6  # What is shorter never leaves memory: client_body_buffer_size is 256k.
_MIB = 1024 * 1024
_UNKNOWN = r"(?:HTTP/2[^:]*::|[^:]*:[^:]*:.)"
"""The head says no length: no Content-Length over HTTP/2, where most such requests have no body, or chunks."""
_WITH_BODY = "(?:POST|PUT|PATCH)"


@dataclass(frozen=True, slots=True)
class BodyClass:
    """Bodies whose length has so many digits, or more in the last one: `most` of them at once."""

    digits: int
    most: int
    last: bool

    @property
    def zone(self) -> str:
        """The name of its counter."""
        return f"gateway_bodies_{self.digits}"


def body_classes(held_mb: int, largest_mb: int) -> Sequence[BodyClass]:
    """Classes for bodies up to `largest_mb` MiB each, `held_mb` MiB together. Each class admits one at the least."""
    largest = largest_mb * _MIB
    digits = range(_FIRST_DIGITS, max(_FIRST_DIGITS, len(str(largest))) + 1)
    share = held_mb * _MIB // len(digits)
    return [
        BodyClass(count, min(65535, max(1, share // min(10**count - 1, largest))), count == digits[-1])
        for count in digits
    ]


def maps(classes: Sequence[BodyClass]) -> str:
    """What http {} needs: `$gateway_body` says of a request its class, or what is wrong with a small one."""
    rows = [
        # Most requests, with a small body or none.
        (rf"^(?:1:HTTP/1[^:]*:[0-9]{{0,{_SMALL_DIGITS}}}|:HTTP/1[^:]*:[0-9]{{0,{_FIRST_DIGITS - 1}}}):\z", '""'),
        (f"^1:[^:]*:[0-9]{{{_SMALL_DIGITS + 1},}}:", "large"),
        (f"^1:{_UNKNOWN}", "unsure"),
        *((f"^:[^:]*:[0-9]{{{it.digits}{',' if it.last else ''}}}:", str(it.digits)) for it in classes),
        (f"^:{_UNKNOWN}", str(classes[-1].digits)),
    ]
    lines = "".join(f'        "~{pattern}" {value};\n' for pattern, value in rows)
    asked = '"$gateway_small:$server_protocol:$content_length:$http_transfer_encoding"'
    text = f'    map {asked} $gateway_body {{\n        default "";\n{lines}    }}\n'
    for it in classes:
        text += f'    map $gateway_body $gateway_body_{it.digits} {{ default ""; {it.digits} 1; }}\n'
        text += f"    limit_conn_zone $gateway_body_{it.digits} zone={it.zone}:1m;\n"
    return text


def small(name: str, *, keys: bool, public: bool) -> str:
    """The map of one service: whether a request is small. `public`: paths may need no key; `keys`: a key has a name."""
    who = (f":$gateway_key_{name}" if keys else ":") + (f":$gateway_public_{name}" if public else ":")
    # With a key, or where one is not dispensed with.
    let_in = "(?:[^:]+:|:\\z)" if keys else ":\\z"
    return f"""\
    map "$request_method{who}" $gateway_small_{name} {{
        default 1;
        "~^{_WITH_BODY}:{let_in}" "";
    }}
"""


def checks(name: str) -> list[str]:
    """What the location says that requests arrive at.

    Not the server: what it says is said again to the question whether a request may pass, which must not be led away.
    """
    return [
        f"set $gateway_small $gateway_small_{name};",
        "if ($gateway_body = large) { return 413; }",
        f"if ($gateway_body = unsure) {{ return {UNSURE}; }}",
    ]


def limits(classes: Sequence[BodyClass]) -> list[str]:
    """How many of each class may be held at once."""
    return [f"limit_conn {one.zone} {one.most};" for one in classes]
