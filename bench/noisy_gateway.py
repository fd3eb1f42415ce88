"""The real daemon, beside whose work 50 events a second are logged: `python -m bench.noisy_gateway`, in its place."""

from __future__ import annotations

import itertools
import threading
import time

from gateway_sidecar.cli import main
from gateway_sidecar.telemetry.logs import get_logger

EVENTS_A_SECOND = 50


def _make_noise() -> None:
    logger = get_logger(service="chat")
    for number in itertools.count():
        time.sleep(1 / EVENTS_A_SECOND)
        logger.info("replica.loading", replica=f"r{number % 200}", reason="its health check answers 503")


if __name__ == "__main__":
    threading.Thread(target=_make_noise, daemon=True).start()
    main()
