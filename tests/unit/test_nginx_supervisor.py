"""What can be served where some services cannot be served as they are to be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.control.edge.nginx_supervisor import servable
from gateway_sidecar.nginx.access_events import EventAddress
from gateway_sidecar.nginx.config import InForce
from gateway_sidecar.nginx.dispatch import Behind, Dispatch, Model, Target, Way
from gateway_sidecar.nginx.server import refusal
from tests.smg import smg_address

CHAT = smg_address("chat", "127.0.0.1:30000", "127.0.0.1:1", "127.0.0.1:2")
CODE = smg_address("code", "127.0.0.1:30001", "127.0.0.1:3", "127.0.0.1:4")


def test_who_meets_no_objection_is_served_as_he_is_to_be() -> None:
    moved = replace(CODE, listen="127.0.0.1:30005")
    assert servable([CHAT, moved], [CHAT, CODE], {}) == ([CHAT, moved], {})


def test_who_meets_one_keeps_what_he_has_and_his_router_is_found() -> None:
    """Its address and its frontend are the old ones, as one: no new address without its keys."""
    wanted = replace(CHAT, listen="127.0.0.1:30005", router="127.0.0.1:9", frontend=FrontendSettings(max_body_mb=7))
    served, refused = servable([wanted, CODE], [CHAT], {"chat": "busy"})
    assert served == [replace(CHAT, router="127.0.0.1:9"), CODE]
    assert refused == {"chat": "busy"}


def test_a_shared_address_that_meets_one_keeps_its_models_and_finds_their_routers() -> None:
    """Other models are as much a change as another frontend; a service behind it may have got another router."""
    one, two = (Model(name, (Target("chat"),)) for name in ("one", "two"))
    before = replace(CODE, dispatch=Dispatch((one,), (Behind("chat", Way()),)))
    wanted = replace(CODE, dispatch=Dispatch((one, two), (Behind("chat", Way(balances=True)),), "chat"))
    served, refused = servable([wanted], [before], {"code": "no files"})
    assert served == [replace(CODE, dispatch=Dispatch((one,), (Behind("chat", Way(balances=True)),)))]
    assert refused == {"code": "no files"}


def test_who_had_nothing_is_left_out() -> None:
    assert servable([CHAT, CODE], [], {"chat": "busy"}) == ([CODE], {"chat": "busy"})


def test_who_is_to_have_an_address_that_is_kept_waits_too() -> None:
    """And so does whoever is to have his: nobody loses an address by it."""
    third = replace(CODE, service="third", listen="127.0.0.1:30002")
    wanted = [
        replace(CHAT, listen="127.0.0.1:30009"),
        replace(CODE, listen=CHAT.listen),
        replace(third, listen=CODE.listen),
    ]
    served, refused = servable(wanted, [CHAT, CODE, third], {"chat": "busy"})
    assert served == [CHAT, CODE, third]
    assert refused["code"] == "chat still has one of its addresses: busy"
    assert set(refused) == {"chat", "code", "third"}


def test_a_refusal_in_the_same_words_is_heard_again() -> None:
    """nginx writes no more than the second: it would be waited for as long as one that says nothing."""
    before = ["20:35:13 [emerg] 1#1: open() failed (24: x)", "20:35:13 [error] 2#2: other"]
    assert refusal(before, Counter(before)) == ""
    assert refusal([*before, before[0]], Counter(before)) == before[0]
    assert refusal([*before, "20:35:14 [emerg] 1#1: bind() failed (98: Address in use)"], Counter(before)) == ""


def test_what_nginx_says_of_itself_is_read_back() -> None:
    for said in (InForce("0123456789abcdef", True, None), InForce("f" * 16, False, EventAddress(4711, "ab" * 12))):
        assert InForce.of(str(said)) == said
    for other in ("", "0123456789abcdef", "x" * 16 + " run", "f" * 16 + " run 1", "f" * 16 + " run\n"):
        assert InForce.of(other) is None
