"""Has an ACME server issue the certificates of frontends with `tls.acme`, and renews them in time. No request waits for
it: nginx answers what the server asks for, and what was issued is taken in like any other certificate (`Frontends`).
What is served stays until the next one is complete and proved good, however often an order fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from gateway_sidecar.config import AcmeSettings, FrontendSettings
from gateway_sidecar.control.edge.acme_host import AcmeHost, AcmeServer
from gateway_sidecar.control.edge.acme_shared import Alone
from gateway_sidecar.domain.printable import counted, printable
from gateway_sidecar.domain.renewal import DAY_S, Tries, order_at
from gateway_sidecar.errors import AcmeError, StoreError
from gateway_sidecar.frontend.acme_state import AcmeState, Held, Wanted
from gateway_sidecar.frontend.certificate import shown_at, today
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import LOOK_S
from gateway_sidecar.supervision.own_thread import BRIEF_DISK_S, OwnThread
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

T = TypeVar("T")

ACME = "acme"
_ORDER_S = 600.0
"""Longer than any order should take: of all that the server is asked, each answer may take half a minute."""
_READ_AGAIN_S = 60.0  # Somebody may have removed what was written; renewal has weeks, so a minute is soon.
_SWEEP_S = 3600.0  # A choice: what is swept are a few files, and nothing waits for them.
_ASK_AGAIN_S, _ASK_LEAST_S = 21600.0, 60.0
"""RFC 9773, 4.3: six hours after a failure; between a minute and a day where the server says."""
_CUT_OFF = "the last order did not end, since the daemon did"
_AWAY = "it is due, and waits: the store that gateways share cannot be read or written"


_SERVER = AcmeServer()


@dataclass(slots=True)
class _Known:
    """What was read of one certificate, when, and one that was issued and is not written yet.

    ask_at: when the server is asked for its suggestion. is_old: whether another gateway has brought something since.
    waits: why an order that is due cannot begin.
    """

    held: Held
    read_at: float
    unwritten: bytes | None = None
    ask_at: float = 0.0
    is_old: bool = False
    waits: str = ""


class Certificates:
    """The certificates by ACME of all services. Services with the same names have one. One order runs at a time."""

    def __init__(
        self,
        state: AcmeState,
        places: FrontendPlaces,
        host: AcmeHost,
        metrics: Metrics,
        *,
        now: Callable[[], float] = today,
        server: AcmeServer = _SERVER,
    ) -> None:
        self._state = state
        self._places = places
        self._host = host
        self._metrics = metrics
        self._now = now
        self._server = server
        self._shared = host.shared or Alone(places.challenges)
        self._shared.on_news(self._read_again)
        self._logger = get_logger()
        self._thread = OwnThread(ACME)
        self._known: dict[Wanted, _Known] = {}
        self._problems: dict[str, str] = {}
        self._measured: set[str] = set()
        self._look_now = asyncio.Event()
        self._swept_at: float | None = None

    @property
    def problems(self) -> Mapping[str, str]:
        """Which services' certificates could not be had, and why: `SERVICE: frontend acme` -> why."""
        return {f"{service}: frontend {ACME}": text for service, text in sorted(self._problems.items())}

    def with_files(self, frontends: Mapping[str, FrontendSettings]) -> dict[str, FrontendSettings]:
        """The same, and where the certificates by ACME are."""
        return {service: self._with_files(frontend) for service, frontend in frontends.items()}

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self.look()
            await awake.until_set(self._look_now, LOOK_S)

    async def look(self) -> None:
        """Orders what is due. Never raises for what a server says, or a disk."""
        self._look_now.clear()
        wanted = self._services_of(self._host.wanted())
        services = {service for those in wanted.values() for service in those}
        for service in self._measured - services:
            self._forget(service)
        for gone in self._known.keys() - wanted.keys():
            del self._known[gone]
        settings = self._host.settings()
        if settings is None:
            return
        for each, those in wanted.items():
            if not self._thread.hangs:
                await self._look_at(settings, each, those)
        await self._sweep(list(wanted))

    async def prepare(self) -> Callable[[], Awaitable[list[str]]]:
        """For a reload: what failed is tried again at once, unless the server wants to be left alone."""

        async def take_in() -> list[str]:
            for known in self._known.values():
                if not known.held.tries.asked:
                    known.held = replace(known.held, tries=replace(known.held.tries, next_at=0.0))
            self._look_now.set()
            return []

        return take_in

    def _read_again(self) -> None:
        """Another gateway has brought something."""
        for known in self._known.values():
            known.is_old = True
        self._look_now.set()
        self._host.taken_in()

    def _with_files(self, frontend: FrontendSettings) -> FrontendSettings:
        if frontend.tls is None or not frontend.tls.acme:
            return frontend
        pem = self._state.pem(self._wanted_by(frontend))
        return frontend.model_copy(update={"tls": frontend.tls.model_copy(update={"certificate": pem, "key": pem})})

    def _wanted_by(self, frontend: FrontendSettings) -> Wanted:
        settings = self._host.settings()
        return Wanted.of(frontend.server_names, "" if settings is None else settings.directory)

    def _services_of(self, frontends: Mapping[str, FrontendSettings]) -> dict[Wanted, list[str]]:
        found: dict[Wanted, list[str]] = {}
        for service, frontend in frontends.items():
            if frontend.tls is not None and frontend.tls.acme:
                found.setdefault(self._wanted_by(frontend), []).append(service)
        return found

    async def _look_at(self, settings: AcmeSettings, wanted: Wanted, services: Sequence[str]) -> None:
        known = self._known.get(wanted)
        if known is None or known.is_old or awake.monotonic() - known.read_at > _READ_AGAIN_S:
            try:
                known = await self._read(wanted, known)
            except TimeoutError:
                self._tell(
                    f"{self._state.pem(wanted)}: not read within {BRIEF_DISK_S:g} s; check the disk", Held(), services
                )
                return
        if known.held.validity is not None and awake.monotonic() >= known.ask_at:
            await self._ask(settings, wanted, known)
        due_at = self._due_at(known.held)
        is_due = due_at <= self._now() and self._can_be_proved(wanted)
        elsewhere = self._shared.ordered_at(wanted)
        known.waits = known.waits if is_due else ""
        self._tell(_said_of(known, wanted, elsewhere), known.held, services)
        if elsewhere is None and (is_due or (known.held.validity is not None and self._shared.lacks(wanted))):
            await self._in_turn(settings, wanted, known, services, orders=is_due)
            self._tell(_said_of(known, wanted, None), known.held, services)

    def _due_at(self, held: Held) -> float:
        """An order that has begun elsewhere, and that nobody makes any more, is gone on with at once; but only once."""
        is_left = self._shared.goes_on and held.tries.unended == 1
        return order_at(self._now(), held.validity, held.renewal_at, Tries() if is_left else held.tries)

    async def _in_turn(
        self, settings: AcmeSettings, wanted: Wanted, known: _Known, services: Sequence[str], *, orders: bool
    ) -> None:
        """An order, if other gateways leave it to this one."""
        try:
            if not await self._shared.take(wanted):
                return
        except StoreError as error:
            if orders and known.waits != str(error):
                known.waits = str(error)
                self._logger.warning("acme.waits", services=list(services), names=wanted.names, reason=str(error))
            return
        known.waits = ""
        try:
            if orders:
                await self._try(settings, wanted, known, services)
        finally:
            await self._shared.release()

    async def _read(self, wanted: Wanted, before: _Known | None) -> _Known:
        """As the disk has it; but a daemon that could not write down what failed knows it all the same."""
        held = await self._do(partial(self._state.read, wanted, self._now()))
        if before is None:
            self._known[wanted] = _Known(held, awake.monotonic())
        elif before.is_old:
            known = self._known[wanted] = _Known(held, awake.monotonic())
            if held.validity == before.held.validity:
                known.held = replace(held, suggested_at=before.held.suggested_at)
                known.ask_at, known.unwritten, known.waits = before.ask_at, before.unwritten, before.waits
        else:
            before.held = replace(held, tries=before.held.tries, suggested_at=before.held.suggested_at)
            before.read_at = awake.monotonic()
        return self._known[wanted]

    async def _ask(self, settings: AcmeSettings, wanted: Wanted, known: _Known) -> None:
        """When the server would have the certificate renewed; a failure changes nothing, as nobody has to say so."""
        known.ask_at = awake.monotonic() + _ASK_AGAIN_S
        with suppress(AcmeError, OSError):
            work = partial(self._server.suggested_renewal, settings, self._state.pem(wanted))
            suggested_at, again_s = await self._do(work, patience_s=_ORDER_S)
            known.held = replace(known.held, suggested_at=suggested_at)
            known.ask_at = awake.monotonic() + min(max(again_s, _ASK_LEAST_S), DAY_S)

    def _can_be_proved(self, wanted: Wanted) -> bool:
        """Whether nginx answers for all names where the ACME server will ask."""
        served = [it for it in (self._host.served() or {}).values() if it.redirect]
        names = {name for frontend in served for name in frontend.server_names}
        return names >= set(wanted.names)

    async def _try(self, settings: AcmeSettings, wanted: Wanted, known: _Known, services: Sequence[str]) -> None:
        """One order. It counts as failed before it begins: a daemon that dies meanwhile does not order at once again,
        nor does one that cannot write down what it did.
        """
        before = known.held
        cut_off = before.tries.begun(self._now(), _CUT_OFF, before.validity)
        try:
            await self._note(wanted, cut_off)
            if known.unwritten is None:
                answers = self._shared.answers
                work = partial(self._server.order, settings, self._state, wanted, answers, self._tell_account)
                known.unwritten = await self._do(work, patience_s=_ORDER_S)
            pem = known.unwritten
            await self._do(partial(self._state.prove, wanted, pem, self._now()))
            await self._shared.put(f"{wanted}.pem", pem.decode())
            await self._do(partial(self._state.keep, wanted, pem, self._now()))
            known.unwritten = None
            known.held = await self._do(partial(self._state.read, wanted, self._now()))
            known.ask_at = 0.0
            with suppress(OSError, StoreError):  # Of a certificate that is not due no failure counts.
                await self._note(wanted, Tries())
        except AcmeError as error:
            known.unwritten = None
            await self._fail(wanted, known, services, str(error), error.asked_s)
        except StoreError as error:
            await self._fail(wanted, known, services, f"cannot be shared with the other gateways: {error}")
        except TimeoutError:
            await self._fail(wanted, known, services, f"no end within {_ORDER_S:g} s; check the server and the disk")
        except OSError as error:
            await self._fail(wanted, known, services, f"cannot be written: {error}; check the disk of state_dir")
        else:
            self._took(known.held, wanted, services)

    async def _note(self, wanted: Wanted, tries: Tries) -> None:
        """Raises OSError, StoreError."""
        text = await self._do(partial(self._state.note, wanted, tries))
        await self._shared.put(f"{wanted}.json", text)

    async def _fail(
        self, wanted: Wanted, known: _Known, services: Sequence[str], reason: str, asked_s: float = 0.0
    ) -> None:
        held, now = known.held, self._now()
        tries = held.tries.failed(now, reason, held.validity, asked_s)
        known.held = replace(held, tries=tries)
        with suppress(OSError, StoreError):  # It has been told; what was written before counts this order, too.
            await self._note(wanted, tries)
        said = {"services": list(services), "names": wanted.names, "reason": reason, "failures": tries.failures}
        if held.validity is None:
            self._logger.error("acme.failed", **said, again=shown_at(tries.next_at))
        else:
            self._logger.warning("acme.failed", **said, again=shown_at(tries.next_at))
        for service in services:
            self._metrics.acme_orders.labels(service, "failed").inc()

    def _took(self, held: Held, wanted: Wanted, services: Sequence[str]) -> None:
        if held.validity is not None:
            self._logger.info(
                "acme.issued",
                services=list(services),
                names=wanted.names,
                expires_in_days=round((held.validity.ends_at - self._now()) / DAY_S, 1),
                renewal=shown_at(held.renewal_at),
            )
        for service in services:
            self._metrics.acme_orders.labels(service, "issued").inc()
        self._host.taken_in()

    def _tell_account(self, url: str) -> None:
        self._logger.info("acme.account", url=printable(url))

    def _tell(self, text: str, held: Held, services: Sequence[str]) -> None:
        """What `status` and the metrics say. text: what is amiss, if anything is."""
        for service in services:
            self._measured.add(service)
            self._metrics.frontend_problem.labels(service, ACME).set(1 if text else 0)
            if held.validity is not None:
                self._metrics.acme_renewal.labels(service).set(held.renewal_at)
            self._problems.pop(service, None)
            if text:
                is_served = self._places.pem(service).exists()
                stays = "what was there before stays in force" if is_served else "no client gets in until it is there"
                self._problems[service] = f"{text}; {stays}"

    def _forget(self, service: str) -> None:
        """It has no certificate by ACME any more."""
        self._measured.discard(service)
        self._problems.pop(service, None)
        self._metrics.frontend_problem.remove_by_labels({"service": service, "part": ACME})
        for metric in (self._metrics.acme_renewal, self._metrics.acme_orders):
            metric.remove_by_labels({"service": service})

    async def _sweep(self, wanted: Sequence[Wanted]) -> None:
        now = awake.monotonic()
        if self._swept_at is not None and now - self._swept_at < _SWEEP_S:
            return
        self._swept_at = now
        with suppress(OSError):
            gone = await self._do(partial(self._state.sweep, wanted, self._now()))
            await self._shared.drop(gone)

    async def _do(self, work: Callable[[], T], *, patience_s: float = BRIEF_DISK_S) -> T:
        """In a thread of its own. Raises TimeoutError, and what the work raises."""
        return await self._thread.run(work, patience_s=patience_s)


def _said_of(known: _Known, wanted: Wanted, elsewhere: str | None) -> str:
    """What is amiss with a certificate; empty if nothing is. elsewhere: the other gateway that orders it now."""
    held = known.held
    if known.waits:
        return f"{_AWAY}: {known.waits}"
    if held.tries.failures and not (elsewhere is not None and held.tries.unended):
        count = f"{counted(held.tries.failures, 'order')} in a row failed"
        return f"{held.tries.reason} ({count}; the next is due {shown_at(held.tries.next_at)})"
    if held.validity is not None:
        return ""
    names = ", ".join(wanted.names)
    if elsewhere is not None:
        return f"no certificate for {names} yet; gateway '{elsewhere}' orders it"
    return f"no certificate for {names} yet; it is ordered as soon as nginx serves frontend.redirect"
