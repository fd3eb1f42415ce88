"""What nginx's workers have counted, read from the memory that they share with the daemon."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

from gateway_sidecar.nginx.balance import InFlight


def test_only_living_workers_count(tmp_path: Path) -> None:
    """What a killed worker of nginx had in flight ended with it, whatever its row says."""
    counts = InFlight(tmp_path, 24001, 24002)
    assert counts.count() == {}, "nothing is known before nginx begins"
    counts.begin()
    (file,) = tmp_path.iterdir()
    numbers = 512 + 4 * 2 * 3  # the header, and rows of two ports up to the fourth
    with file.open("r+b", buffering=0) as worker:
        worker.write(struct.pack("d", 4))
        worker.seek(8 * numbers)
        worker.write(struct.pack("8d", 2, 5, 7, 0, 0, 1, 0, 0))
        assert counts.count() == {}
        lock = "import fcntl, sys; f = open(sys.argv[1], 'r+b')"
        lock += "; fcntl.lockf(f, fcntl.LOCK_EX, 1, 3); print(flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", lock, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as it:
            assert it.stdout is not None
            it.stdout.readline()
            assert counts.count() == {24001: 2}
            assert counts.count([24002]) == {}
            assert (counts.requests([24001, 24002]), counts.flows([24001])) == ({24001: 5, 24002: 1}, {24001: 7})
            it.kill()
        assert counts.count() == {}
