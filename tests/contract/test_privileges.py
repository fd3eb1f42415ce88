"""The capability that claiming addresses needs: the daemon keeps it, and what it starts does not get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="giving capabilities needs root"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed (Debian: util-linux)"),
]

CODE = """
import subprocess, sys
from gateway_sidecar.supervision.privileges import CAP_NET_ADMIN, has_capability, keep_to_ourselves
if "keep" in sys.argv:
    keep_to_ourselves(CAP_NET_ADMIN)
child = "from gateway_sidecar.supervision.privileges import has_capability; print(has_capability(12))"
print(has_capability(CAP_NET_ADMIN))
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.strip())
"""


@pytest.mark.parametrize(("argument", "inherited"), [("keep", "False"), ("-", "True")])
def test_children_do_not_inherit_it(argument: str, inherited: str) -> None:
    """Given as systemd gives it: ambient, to a process that has no other."""
    command = ["setpriv", "--securebits=+noroot", "--inh-caps=+net_admin", "--ambient-caps=+net_admin"]
    done = subprocess.run([*command, sys.executable, "-c", CODE, argument], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", inherited]


BECOME = """
import os, subprocess, sys
from gateway_sidecar.supervision.privileges import CAP_NET_BIND_SERVICE, User, become
become(User(42430, 42430, None, "", (42431,), frozenset((CAP_NET_BIND_SERVICE,))))
def sets(text):
    return {line.split(":")[0]: int(line.split()[1], 16) for line in text.splitlines() if line.startswith("Cap")}
here = sets(open("/proc/self/status").read())
child = sets(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout)
print(os.getresuid(), os.getresgid(), os.getgroups())
print([here[it] for it in ("CapEff", "CapPrm", "CapInh")], child["CapPrm"])
"""


def test_who_is_become_has_the_rights_that_were_told_and_no_others() -> None:
    """Groups, and of root's capabilities the one; what is started has none."""
    done = subprocess.run([sys.executable, "-c", BECOME], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(42430, 42430, 42430) (42430, 42430, 42430) [42431]\n[1024, 1024, 0] 0\n"
