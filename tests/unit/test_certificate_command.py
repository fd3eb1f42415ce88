"""`certificate put`: what is sent to the daemon."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pytest

from gateway_sidecar.commands import certificate
from tests.certificates import chain_and_key


class Daemon:
    """What the command asks of it (a `Client`)."""

    def __init__(self) -> None:
        self.sent: list[str | None] = []

    def stored_certificates(self) -> dict[str, object]:
        return {"away": None, "certificates": []}

    def store_certificate(self, name: str, pem: str | None, seen: int | None) -> None:
        self.sent.append(pem)


def test_a_file_with_words_of_another_alphabet_beside_its_blocks_is_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools write names there, in whatever encoding; only the blocks count."""
    daemon, pem = Daemon(), chain_and_key(("api.example.com",), time.time() - 1, time.time() + 86400)
    monkeypatch.setattr(certificate, "Client", lambda _: daemon)
    file = tmp_path / "both.pem"
    file.write_bytes("friendlyName: Müller\n".encode("latin-1") + pem)
    file.chmod(0o600)
    config = tmp_path / "gateway-sidecar.yaml"
    config.write_text(f"run_dir: {tmp_path}\n")
    assert certificate.put(argparse.Namespace(name="api", cert=file, key=file, config=config)) == 0
    assert daemon.sent[0] is not None
    assert daemon.sent[0].endswith(pem.decode())
