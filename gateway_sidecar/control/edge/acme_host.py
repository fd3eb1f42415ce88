"""What is around certificates by ACME: the server that issues them, and the daemon that needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.config import AcmeSettings, FrontendSettings
from gateway_sidecar.control.edge.acme_shared import AcmeShared
from gateway_sidecar.frontend.acme_state import AcmeState, Wanted
from gateway_sidecar.frontend.challenges import Answers


class AcmeServer:
    """What is asked of an ACME server, as in `acme_client`, whose libraries take 6 MB and 0.2 s: not before then."""

    def order(
        self, settings: AcmeSettings, state: AcmeState, wanted: Wanted, answers: Answers, told: Callable[[str], None]
    ) -> bytes:
        """A certificate and its key. Raises AcmeError, OSError, StoreError. Blocks."""
        from gateway_sidecar.frontend.acme_client import order

        return order(settings, state, wanted, answers, told)

    def suggested_renewal(self, settings: AcmeSettings, pem: Path) -> tuple[float | None, float]:
        """When it would have a certificate renewed, and in how many seconds to ask again. As `order`."""
        from gateway_sidecar.frontend.acme_client import suggested_renewal

        return suggested_renewal(settings, pem.read_bytes())


@dataclass(frozen=True, slots=True)
class AcmeHost:
    """What the certificates need of the daemon.

    settings: those of the account. wanted: each service's frontend. served: those that nginx has in force, or None
    where that is not known. taken_in: called when there is a new certificate. shared: what it has in common with other
    gateways; None if it works alone.
    """

    settings: Callable[[], AcmeSettings | None]
    wanted: Callable[[], Mapping[str, FrontendSettings]]
    served: Callable[[], Mapping[str, FrontendSettings] | None]
    taken_in: Callable[[], None]
    shared: AcmeShared | None = None
