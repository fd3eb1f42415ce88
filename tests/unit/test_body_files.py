"""What a killed nginx left is removed, and nothing that is in use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gateway_sidecar.nginx.body_files import remove_all, without_left
from gateway_sidecar.supervision.process import Identity


def test_bodies_that_nobody_has_open_are_removed_at_the_second_look(tmp_path: Path) -> None:
    """At the first one a request may just begin or end."""
    for name in ("1", "2"):
        (tmp_path / name).touch()
    script = "import os, sys\nheld = open(sys.argv[1])\nos.fork()\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "1")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    ) as master:  # fmt: skip
        assert master.stdout is not None
        for _ in "master", "worker":
            master.stdout.readline()
        leader = Identity.of(master.pid)
        assert leader is not None
        seen = without_left(tmp_path, frozenset(), leader)
        assert seen == {"1", "2"}
        (tmp_path / "3").touch()
        assert without_left(tmp_path, seen, leader) == {"1", "3"}
        assert {it.name for it in tmp_path.iterdir()} == {"1", "3"}
        master.communicate(b"\n\n")


def test_all_are_removed_before_nginx_is_started(tmp_path: Path) -> None:
    (tmp_path / "1").touch()
    remove_all(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove_all(tmp_path / "none")
