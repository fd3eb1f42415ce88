"""Pebble, Let's Encrypt's own ACME server for tests, with the DNS server that comes with it: every name leads to this
machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.certificates import Authority
from tests.stopping import stop
from tests.system.gateway import PortBlock

needs_pebble = pytest.mark.skipif(
    shutil.which("pebble") is None or shutil.which("pebble-challtestsrv") is None,
    reason="pebble is not installed; `make test` installs it",
)
_STARTS_S = 60.0


class Pebble:
    """An ACME server that proves names at `http_port`. It forgets everything when it ends.

    validity_s: the lifetime of its certificates. eab: names and keys of external account bindings, which it then
    requires. nonces_refused: how many in a hundred.
    """

    def __init__(
        self,
        directory: Path,
        http_port: int,
        *,
        validity_s: int = 90 * 86400,
        eab: dict[str, str] | None = None,
        nonces_refused: int = 0,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ports = PortBlock()
        self._authority = Authority(directory, "pebble-ca")
        self.ca_file = self._authority.certificate
        certificate, key = self._authority.sign("pebble")
        listen, manage, self._dns, self._dns_manage = (self._ports.first + each for each in range(4))
        self._listens = (listen, manage, self._dns_manage)
        self.url = f"https://127.0.0.1:{listen}/dir"
        self._config = {
            "listenAddress": f"127.0.0.1:{listen}",
            "managementListenAddress": f"127.0.0.1:{manage}",
            "certificate": str(certificate),
            "privateKey": str(key),
            "httpPort": http_port,
            "tlsPort": 1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": eab is not None,
            "externalAccountMACKeys": eab or {},
            "certificateValidityPeriod": validity_s,
        }
        self._env = {
            **os.environ,
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_WFE_NONCEREJECT": str(nonces_refused),
            "PEBBLE_AUTHZREUSE": "0",
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def settings(self) -> dict[str, Any]:
        """As `acme` in a configuration file."""
        return {"directory": self.url, "accept_terms": True, "ca_file": str(self.ca_file)}

    @property
    def log(self) -> str:
        """What it said."""
        return (self._directory / "pebble.log").read_text("utf-8", "replace")

    @property
    def issued(self) -> int:
        """How many certificates it has issued."""
        return self.log.count("Issued certificate serial")

    def root(self) -> str:
        """Its root certificate, in PEM; another one after each start. Blocks."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        with urllib.request.urlopen(
            f"https://{self._config['managementListenAddress']}/roots/0", context=context
        ) as it:
            return str(it.read().decode())

    def start(self) -> Self:
        """Returns when it listens. Blocks."""
        config = self._directory / "pebble.json"
        config.write_text(json.dumps({"pebble": self._config}))
        dns, manage = f"127.0.0.1:{self._dns}", f"127.0.0.1:{self._dns_manage}"
        with (self._directory / "pebble.log").open("ab") as log:
            names = ["pebble-challtestsrv", "-dns01", dns, "-management", manage, "-defaultIPv6", ""]
            nothing_else = [word for kind in ("-http01", "-https01", "-tlsalpn01") for word in (kind, "")]
            for command in ([*names, *nothing_else], ["pebble", "-config", str(config), "-dnsserver", dns]):
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=self._env))
        end = time.monotonic() + _STARTS_S
        for port in self._listens:
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert all(it.poll() is None for it in self._processes), self.log[-2000:]
                assert time.monotonic() < end, self.log[-2000:]
                time.sleep(0.02)
        return self

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile it takes connections, and answers nothing."""
        for process in self._processes:
            stop(process.pid)
        try:
            yield
        finally:
            for process in self._processes:
                process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it, and with it all that it knows. Blocks."""
        for process in self._processes:
            process.terminate()
            process.wait()
        self._processes.clear()

    def close(self) -> None:
        """The same, for good."""
        self.stop()
        self._ports.release()


@contextmanager
def pebble(directory: Path, http_port: int, **options: Any) -> Iterator[Pebble]:
    """One that runs meanwhile."""
    server = Pebble(directory, http_port, **options)
    try:
        yield server.start()
    finally:
        server.close()
