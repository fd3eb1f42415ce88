"""The admin API does what its description says: schemathesis against the real daemon, over mutual TLS."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.system.conftest import MakeGateway, StartEngine

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
)
EXAMPLES = 25
SETTINGS = """
[parameters]
"path.service" = "chat"
"query.timeout_s" = 0.05
"query.drain_s" = 0.05
"query.follow" = "0"

# What is waited for may not come: that is described, and no fault.
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]
"""


@pytest.mark.timeout(240)
async def test_answers_conform_to_the_description(
    make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path
) -> None:
    """No 5xx and no status that is not described, whatever is asked; every answer has the form that is described."""
    authority = Authority(tmp_path, "ca")
    server, client = authority.sign("server"), authority.sign("client")
    gateway = make_gateway()
    port = gateway.metrics_port - 1
    tls = {"certificate": str(server[0]), "key": str(server[1]), "client_ca": str(authority.certificate)}
    gateway.settings["admin"] = {"listen": f"127.0.0.1:{port}", "tls": tls}
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    url = f"https://127.0.0.1:{port}"
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/v1/openapi.json", "--url", url,
        "--tls-verify", str(authority.certificate),
        "--request-cert", str(client[0]), "--request-cert-key", str(client[1]),
        "--checks", ",".join(CHECKS), "--max-time", "25",
        "--phases", "examples,coverage,fuzzing,stateful", "--exclude-path", "/v1/stop", "--exclude-path", "/v1/leave",
        "--max-examples", str(EXAMPLES), "--seed", "1", "--no-color", "--continue-on-failure",
        "--generation-database", "none", "--request-timeout", "60", "--suppress-health-check", "all",
        cwd=tmp_path, env={**os.environ, "COLUMNS": "120"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()[-8000:]
    assert (await gateway.status())["problems"] == []
    assert gateway.events("loop.failed") == []
    shutil.rmtree(tmp_path / ".hypothesis", ignore_errors=True)
