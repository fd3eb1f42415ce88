"""Settings that the gateways of one fleet should have alike, as each of them tells them, and where two differ. Pure.

None of it stops anything: each gateway serves by its own settings. But then what operators expect of a fleet does not
hold, so it is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway_sidecar.domain.fleet import Gateway
from gateway_sidecar.domain.printable import printable

ALIKE = "alike"
"""Where it stands in a gateway's key: SETTING, or SERVICE: SETTING -> its value, in words."""
_FEW = 4  # As many as a line of `status` has room for.
_LONGEST = 60  # Of a setting's value: half a line.


def differences(own: Mapping[str, str], others: Iterable[Gateway]) -> str:
    """Where other gateways have something else than this one, in words; empty if they do not.

    What only one of two gateways tells is no difference: it does not have the service, or is of another version.
    """
    found = [
        f"{setting} is {own[setting]} here and {printable(value, _LONGEST)} at {printable(other.name)}"
        for other in others
        for setting, value in sorted(_told(other.said.get(ALIKE)).items())
        if setting in own and own[setting] != value
    ]
    more = [f"and {len(found) - _FEW} more"] if len(found) > _FEW else []
    return "; ".join([*found[:_FEW], *more])


def _told(said: Any) -> dict[str, str]:
    """What no gateway wrote is not there."""
    return {str(it): value for it, value in said.items() if isinstance(value, str)} if isinstance(said, dict) else {}
