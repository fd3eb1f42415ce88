"""The configuration: YAML in, frozen settings out, every mistake reported at once with its line.

Its names are those of `whole`, which is imported when the first of them is asked for. The models take longer to import
than all that `gateway-sidecar status` does, and it only needs `places`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway_sidecar.config.whole import *  # noqa: F403 - the names have one list
else:
    from importlib import import_module

    def __getattr__(name: str) -> object:
        return getattr(import_module("gateway_sidecar.config.whole"), name)
