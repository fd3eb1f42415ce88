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

_FIRST_DIGITS = 6  # What is shorter never leaves memory: client_body_buffer_size is 256k.


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

    @property
    def pattern(self) -> str:
        """What tells a body of it in `$gateway_body`, of a request that is not small."""
        return f"^:[^:]*:[0-9]{{{self.digits}{',' if self.last else ''}}}:"


def body_classes(held_mb: int, largest_mb: int) -> Sequence[BodyClass]:
    """Classes for bodies up to `largest_mb` MiB each, `held_mb` MiB together. Each class admits one at the least."""
    largest = largest_mb << 20
    digits = range(_FIRST_DIGITS, max(_FIRST_DIGITS, len(str(largest))) + 1)
    share = (held_mb << 20) // len(digits)
    return [
        BodyClass(count, min(65535, max(1, share // min(10**count - 1, largest))), count == digits[-1])
        for count in digits
    ]
