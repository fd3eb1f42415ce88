"""Data-parallel ranks as SMG lists them, and the one worker that they are."""

from __future__ import annotations

from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerStatus, WorkerType
from gateway_sidecar.routers.smg.client import Rank, RankBook

URL = "http://127.0.0.1:24001"
READY, DRAINING, NOT_READY = WorkerStatus.READY, WorkerStatus.DRAINING, WorkerStatus.NOT_READY


def worker(worker_id: str, status: WorkerStatus = READY) -> Registered:
    return Registered(worker_id, URL, status, WorkerType.REGULAR, ConnectionMode.HTTP, "sglang")


def ranks(*numbers: int, of: int = 3, **status: WorkerStatus) -> list[Rank]:
    """Rank `n` has the id `wn`; `w1=DRAINING` says how one of them is."""
    return [Rank(worker(f"w{n}", status.get(f"w{n}", READY)), n, of) for n in numbers]


def test_a_worker_that_is_not_split_is_itself() -> None:
    """As without `--dp-aware`."""
    book = RankBook()
    assert book.join(URL, [Rank(worker("w"))], 0.0) == (worker("w"), True)
    assert list(book.ids_of("w")) == ["w"]


def test_all_ranks_ready_is_ready() -> None:
    """Whatever order they are listed in, it goes by one id; all of them are removed with it."""
    for order in ((0, 1, 2), (2, 0, 1)):
        book = RankBook()
        assert book.join(URL, ranks(*order), 0.0) == (worker("w0"), True)
        assert sorted(book.ids_of("w0")) == ["w0", "w1", "w2"]


def test_it_goes_by_the_id_that_its_registration_was_answered_with() -> None:
    """SMG forgets that id; who registered does not."""
    book = RankBook()
    book.submitted(URL, "w")
    assert book.join(URL, ranks(0, 1, 2), 0.0)[0].worker_id == "w"
    assert book.url_of("w") == URL
    assert sorted(book.ids_of("w")) == ["w0", "w1", "w2"]
    book.submitted(URL, "w")
    assert list(book.ids_of("w")) == ["w"], "registered anew: the old ranks' ids mean nothing"


def test_it_is_as_ready_as_its_least_ready_rank() -> None:
    """One rank that is not ready, or leaves, is the whole engine's state."""
    book = RankBook()
    assert book.join(URL, ranks(0, 1, 2, w2=NOT_READY), 0.0)[0].status is NOT_READY
    assert book.join(URL, ranks(0, 1, 2, w1=DRAINING, w2=NOT_READY), 0.0)[0].status is DRAINING


def test_missing_ranks_are_waited_for_and_then_put_right() -> None:
    """They come one after the other; an engine that one stays missing of has to be registered anew."""
    book = RankBook()
    joined, rests = book.join(URL, ranks(0, 2), 100.0)
    assert (joined.status, joined.note, rests) == (NOT_READY, "1 of 3 data-parallel ranks are missing", False)
    assert book.join(URL, ranks(0, 1, 2), 104.0)[0].status is READY
    assert book.join(URL, ranks(0, 1), 200.0)[0].status is NOT_READY
    assert book.join(URL, ranks(0, 1), 205.0)[0].status is WorkerStatus.FAILED


def test_ranks_that_leave_one_by_one_are_no_failure() -> None:
    """A removal."""
    book = RankBook()
    for now in (0.0, 10.0):
        assert book.join(URL, ranks(0, 1, w0=DRAINING), now)[0].status is DRAINING
