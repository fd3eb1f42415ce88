"""Runs `PeerAddresses` inside a namespace: `python -m tests.contract.claims_in INTERFACE RUN_DIR STEP...`.

A step is `claim:ADDRESS`, `release:ADDRESS`, `look:ADDRESS`, `keep:ADDRESS,...`, `objections:` or `held:`; one line of
JSON for each.
"""

from __future__ import annotations

import json
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import structlog

from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.addresses import ClaimRules, PeerAddresses

NETWORKS = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


def answer(addresses: PeerAddresses, step: str) -> object:
    """What came of one step."""
    verb, _, rest = step.partition(":")
    try:
        match verb:
            case "claim":
                addresses.claim(ip_address(rest))
                return "done"
            case "release":
                addresses.release(ip_address(rest))
                return "done"
            case "look":
                return addresses.look(ip_address(rest))
            case "objections":
                return {str(each): why for each, why in addresses.objections().items()}
            case "keep":
                kept = frozenset(ip_address(each) for each in rest.split(",") if each)
                return sorted(map(str, addresses.keep_only(kept)))
            case _:
                return sorted(map(str, addresses.held()))
    except NginxError as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    rules = ClaimRules(sys.argv[1], NETWORKS, Path(sys.argv[2]))
    for each in sys.argv[3:]:
        print(json.dumps(answer(PeerAddresses(rules), each)))
