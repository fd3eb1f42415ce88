"""What the live page shows, and what it keeps to itself."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway_sidecar.api.page_view import event_meanings, page_document, page_event
from gateway_sidecar.telemetry.events import EVENTS
from tests.unit.test_journal import Noted
from tests.unit.test_status_text import replica, status

HOSTILE = '<img src=x onerror="alert(1)">\x1b[2J\u202e\n'


def whole(*replicas: dict[str, Any], **said: object) -> Any:
    return {"store": None, **status(*replicas, **said)}


def test_it_shows_names_states_counts_and_reasons() -> None:
    """What a person wants to know of a replica, and how it is going."""
    page = page_document(whole(replica("r1"), replica("r2", "unreachable", "connection refused", in_flight=None)))
    service = page["services"]["chat"]
    assert service["replicas"] == {
        "r1/0": {
            "id": "r1", "state": "serving", "age_s": 4000.0, "role": "regular", "engine": "sglang/http",
            "model": "llama-3.1-70b", "in_flight": 3.0,
        },
        "r2/0": {
            "id": "r2", "state": "unreachable", "age_s": 4000.0, "role": "regular", "engine": "sglang/http",
            "model": "llama-3.1-70b", "reason": "connection refused",
        },
    }  # fmt: skip
    assert (service["serving"], service["expected"], service["requests_per_s"]) == (1, 2, 12.3)
    assert service["router"] == {"type": "smg", "state": "up", "restarts": 0}
    assert page["ready"] is True
    assert "null" not in orjson.dumps(page).decode()


def test_an_id_that_is_there_twice_has_two_rows() -> None:
    """An old occupant drains beside the new one, which comes first."""
    page = page_document(whole(replica("r1"), replica("r1", "draining", "moved")))
    rows = page["services"]["chat"]["replicas"]
    assert [(key, row["state"]) for key, row in rows.items()] == [("r1/0", "serving"), ("r1/1", "draining")]


def test_it_has_no_path_no_process_no_inside_address_and_no_line_of_the_file() -> None:
    """More people may reach this listener than the admin API."""
    answer = whole(
        replica("r1", tunnel={"to": "ops@gpu1:8000", "state": "up", "reason": None}),
        store={"where": "etcd http://10.0.0.9:2379", "gateway": "gw1", "state": "away", "reason": "timed out",
               "others": [{"name": "gw2", "version": "1", "ready": False, "leaving": False}]},
    )  # fmt: skip
    answer["daemon"]["configuration"] |= {"on_disk": "invalid", "lines": ["g.yaml:3: key: 'sk-secret' is no number"]}
    page = page_document(answer)
    text = orjson.dumps(page).decode()
    for inside in ("/run/", "/etc/", "24001", "23001", "ops@", "10.0.0.9", "sk-secret", '"pid"', '"worker_id"'):
        assert inside not in text
    assert page["file"] == "invalid"
    assert page["store"] == {"gateway": "gw1", "state": "away", "reason": "timed out", "others": {"gw2": "not ready"}}


def test_what_others_said_is_cut_and_printable_and_has_no_credentials() -> None:
    """It becomes text in a browser, and is none that hides itself."""
    reason = f"cannot ask http://user:pass@auth.example/x?y: {HOSTILE}" + "x" * 500
    page = page_document(whole(replica(f"r\udc80{HOSTILE}", "foreign", reason, model=HOSTILE), problems=[reason]))
    (row,) = page["services"]["chat"]["replicas"].values()
    for text in (row["id"], row["reason"], row["model"], page["problems"][0]):
        assert text.isprintable()
        assert len(text) < 400
    assert row["reason"].startswith("cannot ask http://auth.example/x?y: <img src=x")
    orjson.dumps(page)


@pytest.mark.parametrize("secret", ["user:pass", "user:pa/ss", "token?", "a:b#c", "user:p@ss", "user:p:/@"])
def test_whatever_a_password_holds_it_is_not_shown(secret: str) -> None:
    """People write it as it is, and what parses URLs accepts much of that."""
    reason = f"no answer from https://{secret}@one.example/x,http://{secret}@two.example: refused"
    page = page_document(whole(replica("r1", "foreign", reason)))
    (row,) = page["services"]["chat"]["replicas"].values()
    assert row["reason"] == "no answer from https://one.example/x,http://two.example: refused"


def test_many_problems_are_some_and_a_number() -> None:
    """A page with a thousand lines above its replicas shows none of them."""
    answer = whole(replica("r1"))
    answer["services"][0]["source"]["refused"] = {f"x{number}": "is no socket" for number in range(1000)}
    lines = page_document(answer)["services"]["chat"]["problems"]
    assert len(lines) == 21
    assert lines[-1] == "and 980 more"


def test_a_gateway_that_leaves_and_an_nginx_that_is_down_are_said() -> None:
    """Above all services."""
    leave = {"phase": "draining", "reason": "waits for 1 connection"}
    page = page_document(whole(leave=leave, nginx={"state": "down", "reason": None}))
    assert page["leaving"] == "draining: waits for 1 connection"
    assert page["nginx"] == "down"


def test_shared_addresses_say_which_models_sleep() -> None:
    """Of a thousand models those that nobody could answer for."""
    models = [{"name": "a", "asleep": True}, {"name": "b", "asleep": False}]
    address = {"name": "api", "listen": "127.0.0.1:9", "frontend_listen": [], "not_in_force": "taken", "models": models}
    page = page_document(whole(addresses=[address]))
    assert page["addresses"] == {
        "api": {"listen": ["127.0.0.1:9"], "models": 2, "asleep": ["a"], "not_in_force": "taken"}
    }


def test_a_recommendation_is_one_line() -> None:
    """With what is there and why."""
    answer = whole(replica("r1"))
    regular = {"desired": 3, "current": 1, "reason": "rps 9, target 3 for each"}
    answer["services"][0]["scaling"] = {
        "roles": {"regular": regular},
        "hook_problem": None,
        "voice": None,
        "problem": None,
    }
    page = page_document(answer)
    assert page["services"]["chat"]["scaling"] == ["regular: 3 wanted, 1 there: rps 9, target 3 for each"]


@pytest.mark.parametrize("name", ["router.said", "nginx.said", "router.said_more"])
def test_lines_of_other_programs_logs_are_not_shown(name: str) -> None:
    """nginx's have clients' addresses and requests in them."""
    it = Noted()
    it.note(name, service="chat", text="GET /?key=secret from 10.1.1.1")
    assert page_event(it.journal.entries()[0]) is None


def test_an_event_says_what_is_chosen_and_nothing_else() -> None:
    """Paths, URLs and what a file says stay in the log."""
    it = Noted()
    it.note(
        "replica.dead", service="chat", replica="r1", reason=HOSTILE, failures=3, over_s=2.5, model="",
        path="/run/x", socket="/run/y", worker_url="http://127.0.0.1:24001", problems=["key: sk-secret"],
        last_lines=["sk-secret"], pid=7, exc_info=None, by={"a": 1}, fault="ValueError: sk-secret",
    )  # fmt: skip
    (entry,) = it.journal.entries()
    shown = page_event(entry)
    assert shown is not None
    assert set(shown) == {
        *("seq", "timestamp", "level", "event", "service", "replica", "reason", "failures", "over_s"),
    }
    assert shown["reason"].isprintable()
    assert shown["seq"] == entry.seq


def test_every_event_has_its_meaning_and_cure() -> None:
    """The page shows them beside the event."""
    meanings = event_meanings()
    assert set(meanings) == set(EVENTS)
    assert len(meanings["replica.dead"]) == 2
    assert len(meanings["replica.seen"]) == 1
