"""`schema`."""

from __future__ import annotations

import argparse
import json

from gateway_sidecar.config import config_schema, replica_schema
from gateway_sidecar.sources.inventory import inventory_schema

SCHEMA_OF = {"configuration": config_schema, "inventory": inventory_schema, "replica": replica_schema}


def schema(arguments: argparse.Namespace) -> int:
    """Prints the JSON Schema of a file."""
    print(json.dumps(SCHEMA_OF[arguments.of](), indent=2))
    return 0
