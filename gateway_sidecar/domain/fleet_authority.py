"""Which authority of a fleet signs, and when it needs another one. Pure; times are seconds since 1970.

A router reads certificates only when it starts, so the next authority is trusted by every router long before it signs
anything: a certificate lasts `CERTIFICATE_S`, and a router whose certificate has a third of that left is replaced. A
gateway whose clock is wrong by months is in no mesh; nothing else depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from gateway_sidecar.domain.renewal import DAY_S
from gateway_sidecar.domain.store_memory import NOT_OURS

CLOCKS_APART_S = DAY_S
"""So far the clocks of a fleet's machines may be apart: a certificate begins so much before it is made."""
AUTHORITY_S = 3650 * DAY_S
"""Ten years, as is usual for an authority of one's own; after half of them it gets a successor."""
CERTIFICATE_S = 90 * DAY_S  # As long as Let's Encrypt's; a router is replaced once in 60 days for it.
RENEW_S = CERTIFICATE_S / 3
"""A certificate that has less than this left is renewed."""
_NEXT_S = AUTHORITY_S / 2
"""An authority that has less than this left is given a successor."""
_TRUSTED_S = CERTIFICATE_S + RENEW_S
"""A new authority signs after this: every router has been started since it was made."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that signs others, and its key, in PEM; when it was made, and when it ends."""

    certificate: str
    key: str = field(repr=False)
    made: float
    ends: float


def authorities_in(text: str | None) -> list[Authority]:
    """As the store has them; none for what no gateway wrote."""
    try:
        rows = json.loads(text) if text is not None else []
        return [Authority(str(it["certificate"]), str(it["key"]), float(it["made"]), float(it["ends"])) for it in rows]
    except NOT_OURS:
        return []


def text_of(authorities: Sequence[Authority]) -> str:
    """As the store has them."""
    return json.dumps([asdict(it) for it in authorities])


def in_force(authorities: Sequence[Authority], now: float) -> list[Authority]:
    """Those that have not ended: what they signed is believed."""
    return [it for it in authorities if it.ends > now]


def needs_next(authorities: Sequence[Authority], now: float) -> bool:
    """Whether another one is to be made now."""
    return all(it.ends - now < _NEXT_S for it in authorities)


def signer(authorities: Sequence[Authority], now: float) -> Authority | None:
    """The one that signs: the newest that everybody trusts, else the oldest; None if there is none."""
    there = sorted(in_force(authorities, now), key=lambda it: it.made)
    trusted = [it for it in there if now - it.made >= _TRUSTED_S]
    return trusted[-1] if trusted else (there[0] if there else None)


def is_due(ends: float, now: float) -> bool:
    """Whether a certificate that ends then is to be renewed: soon it ends, or a clock that was ahead made it."""
    return not RENEW_S <= ends - now <= CERTIFICATE_S + CLOCKS_APART_S
