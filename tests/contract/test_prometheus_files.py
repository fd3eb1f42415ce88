"""What is shipped for Prometheus and Grafana: judged by promtool, and by the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase

import gateway_sidecar
from gateway_sidecar.telemetry.metrics import Metrics
from tests.exported import all_families

SHARE = Path(gateway_sidecar.__file__).parent / "share"
ALERTS = SHARE / "prometheus" / "alerts.yaml"
DASHBOARD = SHARE / "grafana" / "gateway-sidecar.json"
RUNBOOKS = Path(__file__).parents[2] / "docs" / "reference" / "alerts.md"
TESTS = Path(__file__).parent / "alerts_test.yaml"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="`make test` installs prometheus")


def promtool(*arguments: str) -> str:
    """What promtool says; its exit code has to be 0."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions() -> Iterator[str]:
    """Every query of the dashboard, its variables filled in."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            text = str(target["expr"]).replace("$__rate_interval", "1m")
            yield text.replace("$service", ".*").replace("$instance", ".*").replace("$window", "60s")


@needs_promtool
def test_every_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    """Made-up series, judged by Prometheus' own test tool."""
    tests, alerts = tmp_path / "alerts_test.yaml", tmp_path / "alerts.yaml"
    alerts.write_text(re.sub(r"\n +runbook_url: .*", "", ALERTS.read_text()))  # Another test holds these.
    tests.write_text(TESTS.read_text().replace("ALERTS", str(alerts)))
    promtool("test", "rules", str(tests))


def test_every_alert_has_its_test() -> None:
    """One that is silent when all is well, and one that fires."""
    alerts = {rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
    quiet, loud = yaml.safe_load(TESTS.read_text())["tests"]
    assert {test["alertname"] for test in quiet["alert_rule_test"]} == alerts
    assert {test["alertname"] for test in loud["alert_rule_test"] if test["exp_alerts"]} == alerts


def test_every_alert_says_where_its_runbook_is() -> None:
    """Whoever is woken has one page to open, with what it means and what to do, for each of them."""
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    runbooks = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules}
    assert runbooks == {name: f"docs/reference/alerts.html#{name.lower()}" for name in runbooks}
    sections = re.split(r"^## ", RUNBOOKS.read_text(), flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections] == list(runbooks)
    for section in sections:
        assert len(re.findall(r"^- \*\*(?:Means|Do)\*\*: ", section, re.MULTILINE)) == 2, section


@needs_promtool
def test_the_shipped_configuration_is_one(tmp_path: Path) -> None:
    """With the rules beside it."""
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(SHARE / "prometheus" / "prometheus.yaml", tmp_path)
    assert "SUCCESS" in promtool("check", "config", str(tmp_path / "prometheus.yaml"))


@needs_promtool
def test_the_dashboards_queries_are_valid(tmp_path: Path) -> None:
    """As rules, since promtool reads those."""
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


def test_the_dashboard_and_the_alerts_ask_for_what_there_is() -> None:
    """A metric that is renamed takes its panels with it."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    known = {family.name + suffix for family in all_families() for suffix in suffixes.get(family.type, ("",))}
    asked = set(re.findall(r"gateway_sidecar_[a-z_]+", " ".join(expressions()) + ALERTS.read_text()))
    assert asked - {"gateway_sidecar_job"} <= known


def test_the_dashboards_panels_do_not_overlap() -> None:
    """Each has its place and its number."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


@needs_promtool
def test_promtool_has_nothing_against_the_metrics() -> None:
    """Names, units and labels as Prometheus' own tool wants them."""
    metrics = Metrics()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase) and metric._labelnames:
            metric.labels(*("x" for _ in metric._labelnames))
    page = generate_latest(metrics.registry)
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
    ours = [line for line in (done.stdout + done.stderr).decode().splitlines() if line.startswith("gateway_sidecar")]
    assert ours == []


def test_runbooks_name_lines_that_status_has() -> None:
    """Whoever follows one at night looks for that very word."""
    shown = (Path(__file__).parents[2] / "gateway_sidecar" / "api" / "table.py").read_text("utf-8")
    named = set(re.findall(r"`([A-Za-z ]+:)` (?:line of|in) `status`", RUNBOOKS.read_text("utf-8")))
    assert named
    assert {word for word in named if f"{word} {{" not in shown} == set()
