"""`status` for people: what it shows, and that it fits."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest

from gateway_sidecar import __version__
from gateway_sidecar.api.table import render_problems, render_replica, render_service, render_status
from gateway_sidecar.commands.screen import Screen, paint
from gateway_sidecar.commands.status import still

WHY = "cannot open the socket: permission denied for the directory above it, which belongs to another user"


def replica(name: str, state: str = "serving", reason: str | None = None, **said: object) -> dict[str, Any]:
    return {
        "id": name, "state": state, "state_age_s": 4000.0, "socket": f"/run/replicas/chat/{name}.sock",
        "bridge": "127.0.0.1:24001", "advertise": None, "direct": False, "worker_id": "w", "worker_type": "regular",
        "connection_mode": "http", "runtime_type": "sglang", "model": "llama-3.1-70b", "models": ["llama-3.1-70b"],
        "in_flight": 3.0, "reason": reason, "source": "sockets", "tunnel": None, **said,
    }  # fmt: skip


def status(*replicas: dict[str, Any], **said: object) -> Any:
    """Of one service; `said` replaces parts of the whole."""
    service = {
        "name": "chat", "listen": "127.0.0.1:30000", "frontend_listen": [], "not_in_force": None,
        "source": {"settings": {"sockets": "/run/x"}, "blind": None, "refused": {}},
        "router": {
            "type": "smg", "state": "up", "url": "http://127.0.0.1:23001", "pid": 7, "restarts": 0,
            "metrics_url": None, "reason": None, "mesh": None,
        },
        "serving": 1, "expected": 2,
        "traffic": {
            "covered_s": 60.0, "requests_per_s": 12.34, "errors_per_s": 0.05, "in_flight": 8.0,
            "ttft_p50_s": 0.213, "ttft_p99_s": 1.34,
        },
        "waiting": 0, "missing": None, "reason": None, "unanswered": {}, "bridge_ports": 2,
        "replicas": list(replicas), "scaling": None,
    }  # fmt: skip
    file = {"path": "/etc/g.yaml", "age_s": 7200.0, "on_disk": "in force", "lines": []}
    whole = {
        "daemon": {"version": __version__, "pid": 5, "uptime_s": 7200.0, "configuration": file},
        "services": [service], "addresses": [], "nginx": {"state": "up", "pid": 6, "reason": None, "reloads": 0},
        "bridge_ports": {}, "problems": [], "ready": True, "leave": None,
    }  # fmt: skip
    return whole | said


WELL = status(replica("r1"), replica("r2", "draining", "drain requested"))
ILL = status(replica("r1"), replica("r2", "unreachable", WHY))


def test_status_names_keys_near_their_quota_and_problems_do_not() -> None:
    """An operator sees them; the gateway has no problem with them."""
    near = [{"service": "chat", "key": f"k{number}", "bound": "tokens_per_day", "used": 1.2} for number in range(12)]
    lines = render_status(status(replica("r1"), near_quota=near)).splitlines()
    named = [line for line in lines if line.startswith("near quota")]
    assert named[0] == "near quota: key k0 of chat has used 120% of tokens_per_day"
    assert (len(named), named[-1]) == (11, "near quota: and 2 keys more")
    assert not render_problems(status(replica("r1"), near_quota=near))


def test_status_shows_the_service_and_not_states_alone() -> None:
    """How much comes, how much fails, how long clients wait, how many serve, and who has how much to do."""
    text = render_status(ILL)
    assert (
        f"daemon {__version__} (pid 5), up 2h00m; configuration loaded 2h00m ago, and the file on disk is the same"
        in text
    )
    assert "chat  127.0.0.1:30000  1 of 2 serve  router smg up (pid 7" in text
    words = "12.3 requests/s, 0.05 errors/s, 8 in flight, 0 waiting, first token 213 ms (p50) 1.3 s (p99)"
    assert f"  {words}\n" in text
    assert "  r1       serving      1h06m  3     sglang/http  regular  llama-3.1-70b  127.0.0.1:24001\n" in text
    assert text.endswith(WHY)


def test_a_service_that_is_not_measured_says_so() -> None:
    """And shows no zero that was not counted."""
    answer = status(replica("r1", in_flight=None))
    answer["services"][0]["traffic"] = dict.fromkeys(ILL["services"][0]["traffic"], None) | {"covered_s": 0.0}
    text = render_status(answer)
    assert "  0 waiting; requests not measured yet\n" in text
    assert " 1h06m  -     sglang/http" in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 132])
def test_status_fits_and_no_reason_is_cut(width: int) -> None:
    """Columns that matter less are left out; a reason goes on in the next line."""
    text = render_status(ILL, width)
    assert [line for line in text.split("\n") if len(line) > width] == []
    assert WHY in " ".join(text.split())
    assert "unreachable" in text


def test_a_file_that_is_not_in_force_is_told_with_what_differs() -> None:
    """And what is wrong in it."""
    answer = status(replica("r1"))
    answer["daemon"]["configuration"] |= {"on_disk": "differs", "lines": ["chat: router", "code: added"]}
    text = render_status(answer)
    assert "the FILE ON DISK DIFFERS: a reload changes\n  chat: router\n  code: added\n" in text
    assert "PROBLEM: a reload would change chat: router" in render_problems(answer)


def test_a_word_that_only_a_later_daemon_knows_is_shown_as_it_is() -> None:
    """A command may be older than its daemon."""
    answer = status(replica("r1"))
    answer["daemon"]["configuration"]["on_disk"] = "gone"
    assert "configuration loaded 2h00m ago, gone\n" in render_status(answer) + "\n"


def test_a_gateway_that_leaves_says_so_first_and_among_the_problems() -> None:
    """Whoever asks what is amiss wants to know why no request comes; and the other gateways of a store say it, too."""
    others = [
        {"name": name, "version": __version__, "ready": ready, "leaving": leaving}
        for name, ready, leaving in (("gw-2", False, True), ("gw-3", False, False), ("gw-4", True, False))
    ]
    store = {
        "where": "etcd", "gateway": "gw-1", "state": "up", "state_age_s": 9.0, "read_age_s": 1.0, "reason": None,
        "others": others,
    }  # fmt: skip
    answer = status(replica("r1"), leave={"phase": "draining", "reason": "waits for 1 connection"}, store=store)
    said = "LEAVING (draining): waits for 1 connection"
    assert render_problems(answer) == said
    assert render_status(answer).startswith(f"{said}\n\n")
    assert "shared with gw-2 (leaving), gw-3 (not ready), gw-4\n" in render_status(answer)


def test_an_absent_replica_has_no_age() -> None:
    """Nobody notes since when its socket is not there."""
    answer = status(replica("r9", "absent", "there is no socket /x", state_age_s=0.0))
    assert render_problems(answer) == "chat/r9  absent  there is no socket /x"
    assert "  r9       absent  -    " in render_status(answer)


def test_another_version_of_the_command_is_told() -> None:
    """An update that was not followed by a restart."""
    answer = status(replica("r1"))
    answer["daemon"]["version"] = "0.0.9"
    assert f"this command is {__version__}: restart the daemon to update it" in render_status(answer)


def test_problems_are_all_that_is_amiss_and_nothing_else() -> None:
    """A drain that somebody asked for is none."""
    assert render_problems(WELL) == ""
    assert render_problems(ILL) == f"chat/r2  unreachable for 1h06m  {WHY}"
    answer = status(
        replica("r1", reason="not routed yet: lora"),
        nginx={"state": "down", "reason": "exit 1"}, problems=["state: full"],
        addresses=[{"name": "api", "not_in_force": "taken"}],
    )  # fmt: skip
    service = answer["services"][0]
    service |= {
        "not_in_force": "taken",
        "missing": "router",
        "scaling": {"roles": {}, "hook_problem": "no", "voice": None, "problem": None},
    }
    service["router"] |= {"state": "backing_off", "reason": "exit code 1"}
    service["source"] |= {"blind": "no answer", "refused": {"x": "no socket"}}
    assert render_problems(answer).split("\n") == [
        "NGINX DOWN: exit 1",
        "PROBLEM: state: full",
        "api  NOT IN FORCE: taken",
        "chat  NOT IN FORCE: taken",
        "chat  router: exit code 1",
        "chat  SOURCE: no answer; every replica stays as it was",
        "chat  refused: x: no socket",
        "chat  SCALING HOOK: no",
        "chat/r1  serving, but not routed yet: lora",
    ]


def test_one_replica_is_shown_with_all_that_is_known() -> None:
    """In the manner of `systemctl status`."""
    service = ILL["services"][0]
    text = render_replica(service, service["replicas"][1], 80)
    assert text.startswith("chat/r2 is unreachable for 1h06m\n  reason:     cannot open the socket")
    assert "gateway-sidecar explain chat r2" in text
    assert max(map(len, text.split("\n"))) <= 80
    assert "no replicas at /run/x" in render_service(status()["services"][0])


def test_two_that_differ_in_ages_and_rates_alone_look_the_same() -> None:
    """Piped, `--watch` prints no line a second."""
    other = status(replica("r1", state_age_s=1.0, in_flight=1.0), replica("r2", "unreachable", WHY, state_age_s=2.0))
    other["daemon"]["uptime_s"] = 1.0
    other["services"][0]["traffic"]["requests_per_s"] = 3.0
    assert render_status(still(other)) == render_status(still(ILL))
    assert render_status(other) != render_status(ILL)
    assert render_status(still(WELL)) != render_status(still(ILL))


class Terminal(io.StringIO):
    """What a terminal is sent."""

    def isatty(self) -> bool:
        return True

    def taken(self) -> str:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "5")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return made


def test_only_lines_that_changed_are_drawn(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing flickers. What is too high says so, and what was there before comes back."""
    monkeypatch.setattr("sys.stdout", terminal)
    shown = Screen()
    shown.draw("one\ntwo\nthree")
    assert terminal.taken().startswith("\x1b[?1049h")
    shown.draw("one\n2\nthree")
    assert terminal.taken() == "\x1b[2;1H\x1b[K2"
    shown.draw("one")
    assert terminal.taken() == "\x1b[2;1H\x1b[J"
    shown.draw("\n".join("abcdefg"))
    assert "... 4 more lines: make the terminal hig" in terminal.taken()
    Screen.leave()
    assert terminal.taken() == "\x1b[?25h\x1b[?1049l"


@pytest.mark.parametrize("without", ["NO_COLOR", "TERM", "a terminal"])
def test_colours_are_for_terminals_that_want_them(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    """The word that says how it is has one, and the text is the same."""
    monkeypatch.setattr("sys.stdout", terminal)
    row = "  r2       unreachable  2s"
    paint(row)
    coloured = terminal.taken()
    assert coloured == "  r2       \x1b[31munreachable\x1b[0m  2s\n"
    if without == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    elif without == "TERM":
        monkeypatch.setenv("TERM", "dumb")
    else:
        monkeypatch.setattr(terminal, "isatty", bool)
    paint(row)
    assert terminal.taken() == f"{row}\n"


def test_a_terminal_without_utf_8_gets_what_it_can_show() -> None:
    """All that is ours is ASCII."""
    for text in (render_status(ILL, 60), render_problems(ILL), render_service(cast("Any", ILL)["services"][0])):
        text.encode("ascii")
