"""`check` says what `scaling` will do, and whether its hook can be run."""

from __future__ import annotations

from pathlib import Path

from gateway_sidecar.check import _scaling
from gateway_sidecar.config import parse_config
from gateway_sidecar.domain.findings import Level

HEAD = "services: [{name: chat, listen: '127.0.0.1:1', replicas: {sockets: '/run/a/{replica}'}"


def found(scaling: str) -> list[tuple[Level, str]]:
    (service,) = parse_config(f"{HEAD}{scaling}}}]").services
    return [(finding.level, finding.text) for finding in _scaling(service)]


def test_what_is_recommended_and_who_is_told(tmp_path: Path) -> None:
    """One line for each service that has it."""
    assert found("") == []
    words = "chat: 0 to 8 replicas are recommended, by rps, target 5; "
    settings = ", scaling: {metric: rps, target: 5, min: 0, max: 8"
    assert found(settings + "}") == [(Level.OK, words + "there is no hook")]
    assert found(settings + ", hook: {command: [/bin/sh, -c, ':']}}") == [(Level.OK, words + "the hook is /bin/sh")]
    assert found(settings + ", hook: {webhook: 'https://u:pw@a:1/secret?t=s'}}") == [
        (Level.OK, words + "the hook is https://a:1")
    ]
    hook = tmp_path / "hook"
    hook.touch(mode=0o600)
    ((level, text),) = found(settings + f", hook: {{command: [{hook}]}}}}")
    assert level is Level.FAIL
    assert text.endswith("install it, or chmod +x")
