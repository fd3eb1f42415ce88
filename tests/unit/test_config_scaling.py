"""`scaling`: mistakes are told with their line and a cure, and what is left out for a role is the service's."""

from __future__ import annotations

import pytest

from gateway_sidecar.config import ScalingSettings, parse_config
from gateway_sidecar.errors import ConfigError

HEAD = """\
services:
  - name: chat
    listen: 127.0.0.1:30000
    replicas: {sockets: "/run/replicas/chat/{replica}.sock"}
    scaling:
"""


def scaling(text: str) -> ScalingSettings:
    found = parse_config(HEAD + text).services[0].scaling
    assert found is not None
    return found


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(HEAD + text, "c.yaml")
    return [line.replace("services[0].scaling", "_") for line in caught.value.problems]


def test_two_lines_are_enough() -> None:
    """Metric and target; the rest has defaults."""
    found = scaling("      metric: rps\n      target: 5\n")
    assert (found.metric, found.target, found.min, found.max, found.down_after_s) == ("rps", 5, 1, 10, 300)
    assert found.hook is None


def test_every_mistake_has_its_line_and_a_cure() -> None:
    """As everywhere in the file."""
    assert problems("      metric: rp\n      target: 0\n      window_s: 20\n      max: 1.5\n      up_after: 3\n") == [
        "c.yaml:6: _.metric: 'rp' is not one of the choices (did you mean 'rps'?); use rps, concurrency, ttft or itl",
        "c.yaml:7: _.target: 0 is too small; use more than 0 and at most 1000000",
        "c.yaml:8: _.window_s: 20 is not one of the choices; use 30, 60 or 300",
        "c.yaml:9: _.max: 1.5 is not a whole number; use 0 to 10000",
        "c.yaml:10: _.up_after: unknown setting; did you mean 'up_after_s'?",
    ]


def test_settings_that_contradict_each_other() -> None:
    """Also where one of the two stands for the service and the other for a role."""
    text = "      metric: rps\n      target: 5\n      max: 3\n      min: 4\n"
    assert problems(text) == ["c.yaml:9: _.min: min is 4 and max is 3; let min be max at the most"]
    text = "      metric: rps\n      target: 5\n      decode: {min: 20}\n"
    assert problems(text) == ["c.yaml:8: _.decode.min: min is 20 and max is 10; let min be max at the most"]
    text = "      metric: rps\n      target: 5\n      prefill: {metric: ttft}\n"
    assert problems(text) == ["c.yaml:8: _.prefill.metric: ttft needs a target of its own; add `target`"]


def test_a_hook_is_one_thing() -> None:
    """A command, with its whole path, or a webhook."""
    text = "      metric: rps\n      target: 5\n      hook: "
    assert scaling(text + "{command: [/bin/true]}\n").hook is not None
    assert scaling(text + "{webhook: 'https://example.org/a'}\n").hook is not None
    both = "c.yaml:8: _.hook: needs a command or a webhook, and not both; give one"
    assert problems(text + "{}\n") == [both]
    assert problems(text + "{command: [/bin/true], webhook: 'http://a/'}\n") == [both]
    assert problems(text + "{command: [scale]}\n") == [
        "c.yaml:8: _.hook.command: does not begin with a program's absolute path; use one such as /usr/local/bin/scale"
    ]
    assert problems(text + "{webhook: ftp}\n") == [
        "c.yaml:8: _.hook.webhook: 'ftp' is not an http:// or https:// address; use one such as http://127.0.0.1:8080/"
    ]
