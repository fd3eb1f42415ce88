"""The configurations in `examples/balancers` are what HAProxy and Keepalived take, and what the guide shows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "balancers"


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which(program, path="/usr/bin:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed; `make test` installs it")
    # In a session of its own: keepalived ends its whole process group after a test of its configuration.
    return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, start_new_session=True)


def test_haproxy_takes_its_example() -> None:
    done = run("haproxy", "-c", "-f", str(EXAMPLES / "haproxy.cfg"))
    assert done.returncode == 0, done.stderr


def test_keepalived_takes_its_example_and_would_say_what_is_wrong(tmp_path: Path) -> None:
    """Its exit code says nothing: it ends itself with a signal, whatever it found."""
    example = EXAMPLES / "keepalived.conf"
    done = run("keepalived", "-t", "-f", str(example))
    assert done.stdout + done.stderr == ""
    wrong = tmp_path / "keepalived.conf"
    wrong.write_text(example.read_text().replace("nopreempt", "nopreemptive"))
    assert "Unknown keyword 'nopreemptive'" in (done := run("keepalived", "-t", "-f", str(wrong))).stderr + done.stdout


@pytest.mark.parametrize("name", ["haproxy.cfg", "keepalived.conf"])
def test_the_guide_shows_the_examples_as_they_are(name: str) -> None:
    guide = (ROOT / "docs" / "guides" / "several-gateways.md").read_text("utf-8")
    assert f"\n{(EXAMPLES / name).read_text('utf-8')}```\n" in guide
