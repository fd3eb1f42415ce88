"""The frontend of NVIDIA Dynamo as a kind of router. What is relied on was measured on ai-dynamo 1.6.1.

It has no API for workers: it finds them in files, which the daemon writes (`files/dynamo_entries.py`). A replica that
is a Dynamo worker itself has such files. They are copied, with the bridge's address in place of its own. A plain OpenAI
engine is made a Dynamo worker by a process of ours (`inside/shim.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway_sidecar.routers.base import RouterKind, Surroundings
from gateway_sidecar.routers.dynamo.check import check
from gateway_sidecar.routers.dynamo.paths import HEADERS, PATHS
from gateway_sidecar.routers.dynamo.settings import DynamoSettings
from gateway_sidecar.routers.dynamo.setup import DynamoSetup

if TYPE_CHECKING:
    from gateway_sidecar.config import ServiceSettings


def build(settings: DynamoSettings, _service: ServiceSettings, around: Surroundings) -> DynamoSetup:
    """One service's frontend."""
    return DynamoSetup(settings, around)


ROUTER = RouterKind("dynamo", DynamoSettings, build, PATHS, HEADERS, check)
