"""The patterns of our JSON schemas, read by an ECMAScript engine as an editor would."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from gateway_sidecar.api.openapi import describe_api
from gateway_sidecar.config import config_schema, replica_schema
from gateway_sidecar.sources.inventory import inventory_schema
from tests.unit.test_config_schema import Schema, patterns


@pytest.mark.parametrize("schema", [config_schema(), inventory_schema(), replica_schema(), describe_api()])
def test_ecmascript_reads_every_pattern(schema: Schema) -> None:
    """With the flag u, as JSON Schema has it."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    code = "for (const p of JSON.parse(require('fs').readFileSync(0))) new RegExp(p, 'u')"
    found = json.dumps(sorted(set(patterns(schema))))
    done = subprocess.run([node, "-e", code], input=found, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
