"""The README names what there is: every metric, every event, and no file that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import gateway_sidecar
from gateway_sidecar.domain.model import ReplicaState
from gateway_sidecar.telemetry.metrics import Metrics

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text("utf-8")
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_KINDS = (
    "bridge|config|daemon|frontend|gate|lease|library|loop|peer|replica|router|"
    "scaling|service|signals|source|state|tunnel|worker"
)
_AN_EVENT = re.compile(rf'"((?:{_KINDS})\.[a-z_]+)"|logger\.\w+\(\s*"([a-z_]+\.[a-z_]+)"')


def test_every_metric_is_in_the_table_and_no_other() -> None:
    """A dashboard is written from the README."""
    suffix = {"counter": "_total", "info": "_info"}
    families = (family for family in Metrics().registry.collect() if family.name.startswith("gateway_sidecar_"))
    exported = {family.name + suffix.get(family.type, "") for family in families}
    assert set(re.findall(r"^\| `(gateway_sidecar_[a-z_]+)` \|", README, re.MULTILINE)) == exported


def test_every_event_is_in_the_table_and_no_other() -> None:
    """Whoever reads a log finds each word of it."""
    sources = sorted(Path(gateway_sidecar.__file__).parent.rglob("*.py"))
    logged = {of_kind or told for path in sources for of_kind, told in _AN_EVENT.findall(path.read_text("utf-8"))}
    logged |= {f"replica.{state.value}" for state in ReplicaState}
    table = README.partition("### Logs")[2].partition("### Metrics")[0]
    named = "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    assert set(re.findall(r"`([a-z_]+\.[a-z_]+)`", named)) == logged


def test_links_lead_somewhere() -> None:
    """A link to a file of this repository has that file at its end."""
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_table_has_a_head() -> None:
    """An empty line in the middle of one makes plain text of what follows."""
    for document in DOCUMENTS:
        lines = ["", *document.read_text("utf-8").splitlines(), ""]
        for before, first, second in zip(lines, lines[1:], lines[2:], strict=False):
            if first.startswith("|") and not before.startswith("|"):
                assert re.fullmatch(r"\|[ :|-]+\|", second), f"{document.name}: {first[:80]}"
