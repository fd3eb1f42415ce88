"""A question for health that is sent without waiting, to a server whose answers come in pieces."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gateway_sidecar.domain.model import ConnectionMode, EngineFacts
from gateway_sidecar.engines import health_question
from gateway_sidecar.engines.health_question import HealthQuestion

HTTP = EngineFacts("vllm", ConnectionMode.HTTP)
GRPC = EngineFacts("vllm", ConnectionMode.GRPC)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    path = str(tmp_path / "r1.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield path, listener


@contextmanager
def asked(
    server: tuple[str, socket.socket], facts: EngineFacts = HTTP, models: str | None = None
) -> Iterator[tuple[HealthQuestion, socket.socket]]:
    question = health_question.ask(server[0], facts, "sesame", models)
    assert question is not None
    with closing(question), server[1].accept()[0] as engine:
        yield question, engine


def test_an_engine_is_well_when_all_of_its_answer_has_come(server: tuple[str, socket.socket]) -> None:
    with asked(server) as (question, engine):
        request = engine.recv(4096)
        assert request.startswith(b"GET /health HTTP/1.1\r\n")
        assert b"Bearer sesame" in request
        assert question.is_well() is None
        engine.sendall(HEAD)
        assert question.is_well() is None
        engine.sendall(b"ok")
        assert question.is_well() is True
        question.close()
        assert engine.recv(1) == b""


@pytest.mark.parametrize(("names", "is_well"), [(("m", "sql"), True), (("m",), False), (("m", "sql", "new"), False)])
def test_its_names_are_asked_for_in_the_same_breath(
    server: tuple[str, socket.socket], names: tuple[str, ...], is_well: bool
) -> None:
    facts = EngineFacts("vllm", ConnectionMode.HTTP, model="m").listing("m", ("m", "sql"))
    with asked(server, facts, "/v1/models") as (question, engine):
        first, _, second = engine.recv(4096).partition(b"\r\n\r\n")
        assert (first.split()[1], second.split()[1]) == (b"/v1/models", b"/health")
        body = json.dumps({"data": [{"id": name} for name in names]}).encode()
        engine.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert question.is_well() is None
        engine.sendall(HEAD + b"ok")
        assert question.is_well() is is_well


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n",
        HEAD.replace(b"2", b"9") + b"<!DOCTYPE",
        HEAD + b"ok" + HEAD + b"ok",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000,
    ],
)
def test_whatever_else_is_said_is_not_judged_here(server: tuple[str, socket.socket], answer: bytes) -> None:
    with asked(server) as (question, engine):
        engine.sendall(answer)
        assert question.is_well() is False


@pytest.mark.parametrize("facts", [HTTP, GRPC])
def test_an_answer_that_is_cut_or_that_never_ends_is_not_waited_for(
    server: tuple[str, socket.socket], facts: EngineFacts
) -> None:
    """A server may wait for what is not said here."""
    with asked(server, facts) as (question, engine):
        engine.close()
        assert question.is_well() is False
    with asked(server, facts) as (question, engine):
        engine.sendall(SETTINGS if facts is GRPC else HEAD)
        said = [question.is_well() for _ in range(20)]
        assert said[:5] == [None] * 5
        assert said[-1] is False


def test_nothing_is_asked_where_nobody_listens(tmp_path: Path) -> None:
    assert health_question.ask(str(tmp_path / "none.sock"), HTTP, None) is None
