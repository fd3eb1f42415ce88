"""One voice for each service that is scaled: of all gateways one adds up the signals of all, recommends, and calls the
hook. `signals/NAME` is what a gateway measured, `scaling/SERVICE` who speaks and what was recommended last.

At most one speaks at any time, by these rules:

- a gateway speaks only under a lease that cannot have ended yet, after it wrote its signals under that lease, and
  after that its own name into `scaling/SERVICE`, by compare-and-set;
- another one takes the voice over only where the signals of who has it are gone, or say that it leaves or does not
  scale the service any more. It stops to speak before it says so.

So a gateway that reads too early fails at its compare-and-set, and one whose writes come too late does as well. What
is recommended is in the store before the hook hears of it, and that the hook accepted it afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from gateway_sidecar.control.autoscaling.service_signals import FleetSignals, ServiceSignals
from gateway_sidecar.control.fleet.membership import Membership
from gateway_sidecar.control.fleet.memory import RememberedStore
from gateway_sidecar.control.fleet.reflector import GATEWAYS, SCALING, SIGNALS, StoreReflector
from gateway_sidecar.domain.fleet import gateways_in
from gateway_sidecar.domain.fleet_signals import (
    Measured,
    Recommended,
    Record,
    Together,
    Voice,
    may_speak,
    records_in,
    voice_in,
)
from gateway_sidecar.domain.model import WorkerType
from gateway_sidecar.domain.store_memory import Snapshot
from gateway_sidecar.errors import StoreConflict, StoreError
from gateway_sidecar.stores.base import Store
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import beating, heartbeat
from gateway_sidecar.telemetry.logs import get_logger

Measures = Callable[[], tuple[Mapping[str, ServiceSignals], bool]]
"""Service -> its signals at this gateway; and whether the gateway is about to stop."""
ROUND_S = 2.0  # As often as other loops look: who scales waits for windows of 30 s and more.
STALE_S = 30.0
"""A gateway that is alive and tells nothing new for so long has signals that are not known."""
_TELL_S = 5.0
"""So often signals are told; at once where requests begin or cease to come or to wait. A store keeps what it is told
until it is compacted, so less is more.
"""
_TELL_IDLE_S = 10.0  # A third of `STALE_S`: two tellings may fail before an idle gateway counts as unknown.
_GAP_S = 0.25  # A tick of the daemon's clock: a crowd of news is one round.
_MIND_S = 0.25  # A tick: a hook that a gateway without the voice still has is silenced within it.


class ScalingVoice:
    """Tells this gateway's signals, and speaks for the services whose voice it has."""

    def __init__(
        self, store: Store, reflector: StoreReflector, membership: Membership, remembered: RememberedStore
    ) -> None:
        self._store = store
        self._reflector = reflector
        self._membership = membership
        self._remembered = remembered
        self._logger = get_logger()
        self._news = asyncio.Event()
        self._holds: dict[str, str] = {}
        """Service -> the lease under which its voice was taken."""
        self._record: Record | None = None
        self._told_under: str | None = None
        self._told_at = 0.0
        self._turns: dict[str, tuple[int, float]] = {}
        """Gateway -> its record's revision, and since when that is known (awake seconds)."""
        self._asked: dict[tuple[str, WorkerType], int] = {}
        """What the hook was asked to take, since this gateway speaks."""
        self._spoke: set[str] = set()
        reflector.on_change(self._look_soon)

    def speaks(self, service: str) -> bool:
        """Whether this gateway may call the service's hook now."""
        lease = self._holds.get(service)
        return lease is not None and self._membership.surely_holds(lease)

    async def run(self, measures: Measures) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            self._news.clear()
            signals, is_leaving = measures()
            scaled = {name: it for name, it in signals.items() if it.service.settings.scaling is not None}
            for name, it in signals.items():
                if name not in scaled:
                    it.fleet = None
                    it.follow({}, awake.now())
            self._holds = {name: at for name, at in self._holds.items() if name in scaled and not is_leaving}
            try:
                await beating(self._round(scaled, is_leaving=is_leaving))
            except StoreConflict:
                self._news.set()
            except StoreError as error:
                self._nothing_known(scaled, f"the store cannot be read or written: {error}")
            await asyncio.sleep(_GAP_S)
            await awake.until_set(self._news, ROUND_S)

    async def mind(self, measures: Measures) -> None:
        """Ends, until cancelled, what a gateway without the voice still says: the store need not answer for that."""
        while True:
            heartbeat()
            signals = dict(measures()[0])
            for name in self._spoke - signals.keys():
                self._spoke.discard(name)
            for name, it in signals.items():
                if self.speaks(name):
                    self._spoke.add(name)
                    continue
                if name in self._spoke:
                    self._spoke.discard(name)
                    self._logger.warning("scaling.voice_lost", service=name)
                await self._fall_silent(name, it)
            await asyncio.sleep(_MIND_S)

    async def _fall_silent(self, name: str, signals: ServiceSignals) -> None:
        await signals.hook.silence()
        self._asked = {key: desired for key, desired in self._asked.items() if key[0] != name}

    # -- one round

    async def _round(self, scaled: Mapping[str, ServiceSignals], *, is_leaving: bool) -> None:
        """Raises StoreError."""
        lease = self._membership.lease
        if lease is None or not self._reflector.is_up:
            reason = self._reflector.status.reason
            self._nothing_known(
                scaled, f"the store cannot be read: {reason}" if reason else "the other gateways do not see this one"
            )
            return
        now = awake.monotonic()
        measured = {
            name: it.measured(now, scaling.window_s)
            for name, it in scaled.items()
            if (scaling := it.service.settings.scaling) is not None
        }
        seen = await self._reflector.read_now(GATEWAYS, SIGNALS, SCALING)
        entry = seen.entries.get(SIGNALS + self._membership.name)
        await self._tell(lease, measured, entry.revision if entry else None, is_leaving=is_leaving)
        records = records_in(seen, SIGNALS)
        self._note_turns(seen)
        for name, it in scaled.items():
            if name not in measured:
                continue
            if is_leaving or not await self._has_voice(name, it, lease, seen, records):
                self._listen(name, it, seen, measured[name], records)
            else:
                await self._speak(name, it, seen, measured[name], records)

    async def _tell(
        self, lease: str, measured: Mapping[str, Measured], revision: int | None, *, is_leaving: bool
    ) -> None:
        """Writes this gateway's record, if that is due. Raises StoreError."""
        before, now = self._record, awake.monotonic()
        turn = 0 if before is None else before.turn + 1
        record = Record(self._remembered.instance, turn, is_leaving, measured)
        pause_s = _TELL_IDLE_S if all(it.idle for it in measured.values()) else _TELL_S
        if (
            self._told_under == lease
            and before is not None
            and _gist(before) == _gist(record)
            and now < self._told_at + pause_s
        ):
            return
        self._told_under = None  # Until it is known what stands there.
        await self._store.swap(SIGNALS + self._membership.name, record.to_json(), seen=revision, lease=lease)
        self._record, self._told_under, self._told_at = record, lease, now

    async def _has_voice(
        self, name: str, signals: ServiceSignals, lease: str, seen: Snapshot, records: Mapping[str, Record]
    ) -> bool:
        """Whether this gateway speaks for the service; it takes the voice if nobody has it."""
        voice = voice_in(seen, SCALING + name)
        is_own = voice is not None and self._is_own(voice)
        if self._holds.get(name) == lease:
            if is_own:
                return True
            del self._holds[name]
        if voice is not None and not is_own:
            signals.hook.accepted.clear()  # What was accepted before somebody else spoke says nothing of now.
            if may_speak(voice, records, name):
                return False
        await self._fall_silent(name, signals)
        # Own name or not: whoever read before our signals were told cannot take the voice after this write.
        await self._write(name, voice.roles if voice is not None else {}, seen)
        self._holds[name] = lease
        self._logger.info("scaling.voice_taken", service=name, before=voice.gateway if voice is not None else None)
        self._news.set()  # The next round speaks: it reads what has just been written.
        return False

    def _listen(
        self, name: str, signals: ServiceSignals, seen: Snapshot, own: Measured, records: Mapping[str, Record]
    ) -> None:
        """Another gateway speaks, or this one begins to."""
        voice = voice_in(seen, SCALING + name)
        signals.follow(voice.roles if voice is not None else {}, awake.now())
        signals.fleet = self._of_all(name, seen, own, records)

    async def _speak(
        self, name: str, signals: ServiceSignals, seen: Snapshot, own: Measured, records: Mapping[str, Record]
    ) -> None:
        """Recommends, and has the hook told. Raises StoreError."""
        signals.fleet = self._of_all(name, seen, own, records)
        if signals.fleet.together is not None:
            signals.evaluate_together(signals.fleet.together, self._membership.gone_s, awake.now())
        hook = signals.hook
        hook.may_tell, hook.on_accepted = partial(self.speaks, name), self._news.set
        voice = voice_in(seen, SCALING + name)
        assert voice is not None
        roles = dict(voice.roles)
        for role, it in signals.roles.items():
            if (desired := it.scaler.desired) is not None:
                before = roles.get(role)
                if before is None or before.desired != desired:
                    roles[role] = Recommended(desired, it.scaler.reason)
                elif not before.is_told and hook.accepted.get(role.value) == desired:
                    roles[role] = Recommended(desired, before.reason, is_told=True)
        if roles != voice.roles:
            await self._write(name, roles, seen)
        for role, recommended in roles.items():
            if recommended.is_told or hook.settings is None or role not in signals.roles:
                continue
            if self._asked.get((name, role)) != recommended.desired:
                self._asked[name, role] = recommended.desired
                hook.tell(signals.notice(role))

    async def _write(self, name: str, roles: Mapping[WorkerType, Recommended], seen: Snapshot) -> None:
        entry = seen.entries.get(SCALING + name)
        text = Voice(self._membership.name, self._remembered.instance, roles).to_json()
        await self._store.swap(SCALING + name, text, seen=entry.revision if entry else None)

    # -- what is known of all

    def _of_all(self, name: str, seen: Snapshot, own: Measured, records: Mapping[str, Record]) -> FleetSignals:
        """The signals of all gateways that are alive and scale the service."""
        voice, parts = voice_in(seen, SCALING + name), {self._membership.name: own}
        problem = ""
        for gateway in gateways_in(seen, GATEWAYS):
            record, (_, since) = records.get(gateway.name), self._turns.get(gateway.name, (0, awake.now()))
            if gateway.name == self._membership.name:
                continue
            if record is None or record.instance != gateway.instance:
                problem = f"gateway '{gateway.name}' has not told its signals"
            elif awake.now() - since > STALE_S:
                problem = f"gateway '{gateway.name}' has told no new signals for {awake.now() - since:.0f} s"
            elif name in record.services:
                parts[gateway.name] = record.services[name]
        together = None if problem else Together([parts[it] for it in sorted(parts)])
        is_own = self.speaks(name)
        speaks = is_own or (voice is not None and not self._is_own(voice) and may_speak(voice, records, name))
        named = voice.gateway if voice is not None and speaks else None
        return FleetSignals(named, is_own, tuple(sorted(parts)), together, problem)

    def _nothing_known(self, scaled: Mapping[str, ServiceSignals], problem: str) -> None:
        for name, it in scaled.items():
            is_own = self.speaks(name)
            voice = self._membership.name if is_own else None
            it.fleet = FleetSignals(voice, is_own, (self._membership.name,), None, problem)

    def _note_turns(self, seen: Snapshot) -> None:
        turns = {key.removeprefix(SIGNALS): it.revision for key, it in seen.entries.items() if key.startswith(SIGNALS)}
        now = awake.now()
        self._turns = {
            name: before if (before := self._turns.get(name)) is not None and before[0] == revision else (revision, now)
            for name, revision in turns.items()
        }

    def _is_own(self, voice: Voice) -> bool:
        return (voice.gateway, voice.instance) == (self._membership.name, self._remembered.instance)

    def _look_soon(self, _: Snapshot) -> None:
        self._news.set()


def _gist(record: Record) -> object:
    """What the others are told at once."""
    return record.leaving, {name: (it.waiting > 0, it.idle) for name, it in record.services.items()}
