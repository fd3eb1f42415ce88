"""SMG, as tests give it to nginx's configuration and to the core."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway_sidecar.config import FrontendSettings, ServiceSettings
from gateway_sidecar.domain.routing import BridgeRules
from gateway_sidecar.nginx.config import ServiceAddress
from gateway_sidecar.routers.smg.paths import HEADERS, PATHS
from gateway_sidecar.routers.smg.settings import SmgSettings
from gateway_sidecar.routers.smg.setup import SmgSetup

NEWEST = Path(os.environ.get("SMG_NEWEST", Path(__file__).parents[1] / ".venv-smg-newest" / "bin" / "smg"))
"""The newest build on PyPI, `tokenspeed-smg`: the same module, so in an environment of its own."""
WITHOUT_NEWEST = pytest.mark.skipif(
    not NEWEST.exists(), reason="the newest SMG is not installed; `make test` installs it into .venv-smg-newest"
)
KEY_HEADER = HEADERS.bridge_key
RULES = BridgeRules.of([(PATHS, HEADERS)], ())
SMG = SmgSetup(SmgSettings(), {}, "")
SERVICE = ServiceSettings.model_validate({"name": "chat", "listen": "127.0.0.1:1", "replicas": {}})
"""`chat`, with all that is the default."""
_PLAIN = FrontendSettings()


def smg_address(
    service: str, listen: str, router: str, successor: str, frontend: FrontendSettings = _PLAIN, hold_s: float = 0.0
) -> ServiceAddress:
    """The address of a service whose router is SMG."""
    return ServiceAddress(service, listen, router, successor, PATHS, (HEADERS,), frontend, hold_s)


def smg_of(service: ServiceSettings) -> SmgSettings:
    """The settings of a service's SMG."""
    assert isinstance(service.router, SmgSettings)
    return service.router
