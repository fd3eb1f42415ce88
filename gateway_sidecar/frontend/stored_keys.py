"""Keys in a store that several gateways share: one entry for each key and each plan, which holds its line of a file of
keys. A key's entry is called by its name, a plan's by `@` and its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from gateway_sidecar.config.values import show
from gateway_sidecar.frontend.keys import PLAN_LINK, Key, KeyFile, no_plan, read_key, read_plan
from gateway_sidecar.frontend.words import NONE, parse_number, written

SHARED_OUT = ("requests_per_minute", "tokens_per_minute", "concurrent")
"""Bounds of which each gateway has its share."""
_MOST_KNOWN = 65536  # A choice: more keys than any fleet of ours was tried with (10,000); beyond, lines are read anew.


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """What a store's entries say. refused: the name of an entry that cannot count -> why; the others do."""

    file: KeyFile
    refused: Mapping[str, str]


def read_stored(entries: Mapping[str, str]) -> StoredKeys:
    """What entries say, by their names."""
    plans: dict[str, Mapping[str, str]] = {}
    keys: dict[str, Key] = {}
    owners: dict[str, str] = {}
    refused: dict[str, str] = {}
    for entry in sorted(entries):  # Plans first: no key's name begins like theirs.
        try:
            if entry.startswith(PLAN_LINK):
                plans[entry.removeprefix(PLAN_LINK)] = _plan(entry, entries[entry])
            else:
                key = _key(entry, entries[entry], plans, owners)
                keys[key.name] = key
                owners |= dict.fromkeys(_digests(key), key.name)
        except ValueError as error:
            refused[entry] = str(error)
    return StoredKeys(KeyFile(keys, plans), refused)


def lines_of(file: KeyFile) -> dict[str, str]:
    """The opposite: the name of each entry -> its line."""
    plans = {PLAN_LINK + name: f"plan {name}{written(words)}" for name, words in file.plans.items()}
    return plans | {key.name: f"{key.name}:{key.digest}{written(key.words)}" for key in file.keys.values()}


def share_of(file: KeyFile, gateways: int) -> KeyFile:
    """The same with one gateway's part of each bound that is shared out; 1 at least."""
    if gateways < 2:
        return file
    plans = {name: _shared(words, gateways) for name, words in file.plans.items()}
    keys = {key.name: Key(key.name, key.digest, _shared(key.words, gateways)) for key in file.keys.values()}
    return KeyFile(keys, plans)


def _key(entry: str, line: str, plans: Mapping[str, object], owners: Mapping[str, str]) -> Key:
    key = _read_key(line)
    if key.name != entry:
        raise ValueError(f"is the line of {show(key.name)}; add each key under its own name")
    plan = key.words.get("plan")
    if plan is not None and plan not in plans:
        raise ValueError(f"plan: {no_plan(plan, plans)}")
    for digest in _digests(key):
        if digest in owners:
            raise ValueError(f"is the same key as {show(owners[digest])}; revoke one of them")
    return key


def _plan(entry: str, line: str) -> Mapping[str, str]:
    name, words = read_plan(line)
    if PLAN_LINK + name != entry:
        raise ValueError(f"is the line of plan {show(name)}; make each plan under its own name")
    return words


@lru_cache(_MOST_KNOWN)
def _read_key(line: str) -> Key:
    return read_key(line)


def _digests(key: Key) -> list[str]:
    return [key.digest, *([key.words["old"]] if "old" in key.words else [])]


def _shared(words: Mapping[str, str], gateways: int) -> Mapping[str, str]:
    shared = {
        word: str(max(1, parse_number(words[word]) // gateways)) for word in SHARED_OUT if words.get(word, NONE) != NONE
    }
    return {**words, **shared}
