"""Random bytes out of good ones."""

from __future__ import annotations

import random

EVIL_TEXTS = (
    "\x1b]0;x\x07\x1b[2J",
    '\n{"event": "daemon.stopped", "level": "info"}\n',
    "\u202e\u2066\u2028\u2029\x85\x00\x7f",
    "\\ud800",
    "%1b%5b2J%0a",
    "x" * 5000,
)
"""What might move a cursor, begin a log line or fill one."""

_TELLING = (
    b"\0",
    b"\xff",
    b"\r\n",
    b"\n",
    b" ",
    b"{",
    b"}",
    b"[",
    b'"',
    b"\\",
    b":",
    b",",
    b"0",
    b"-1",
    b"9" * 30,
    b"\x80" * 9,
)


def mutated(source: random.Random, good: bytes, most_changes: int = 8) -> bytes:
    """Changed in a few places, or in none."""
    bad = bytearray(good)
    for _ in range(source.randrange(most_changes)):
        at = source.randrange(len(bad) + 1)
        match source.randrange(7):
            case 0:
                bad[at : at + 1] = source.randbytes(1)
            case 1:
                del bad[at : at + source.randrange(1, 20)]
            case 2:
                bad[at:at] = source.choice(_TELLING)
            case 3:
                piece = bad[at : at + source.randrange(1, 200)]
                bad[at:at] = piece * source.randrange(1, 50)
            case 4:
                bad[at:at] = source.choice(EVIL_TEXTS).encode()
            case 5:
                del bad[at:]
            case 6:
                other = source.randrange(len(bad) + 1)
                bad[at:at] = bad[other : other + source.randrange(1, 200)]
    return bytes(bad)
