"""Typed reading of what engines say. Nothing here raises: a value of the wrong type is an absent value.

Numbers may be doubles (a protobuf Struct has no others): 8998.0 is a port, 8998.5 and NaN are not.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway_sidecar.domain.discovery import name
from gateway_sidecar.domain.model import BY_KV_ROLE, Unknown, WorkerType

Fields = Mapping[str, object]

LARGEST_PORT = 65535  # TCP's: 16 bits
LARGEST_DP_SIZE = 65536
"""Ranks. Larger numbers are noise."""


def text(fields: Fields, key: str) -> str | None:
    """A name, or None."""
    return name(fields.get(key))


def nested(fields: Fields, key: str) -> Fields:
    """A nested object, or an empty one."""
    value = fields.get(key)
    return value if isinstance(value, Mapping) else {}


def whole(fields: Fields, key: str, largest: int) -> int | None:
    """A whole number from 1 to `largest`, or None. True is no number."""
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 1 <= value <= largest and value == int(value) else None


def started_at(fields: Fields) -> str | None:
    """When the server was started, by its own clock: a protobuf Timestamp in `start_time`."""
    seconds = nested(fields, "start_time").get("seconds")
    return f"started at {seconds}" if isinstance(seconds, int) else None


def port(fields: Fields, key: str) -> int | None:
    """A TCP port, or None."""
    return whole(fields, key, LARGEST_PORT)


def dp_size(fields: Fields, key: str) -> int:
    """The number of data-parallel ranks; 1 by default."""
    return whole(fields, key, LARGEST_DP_SIZE) or 1


_BY_DISAGGREGATION_MODE = {
    "null": WorkerType.REGULAR,  # a string: SGLang's way to say that it is not disaggregated
    "prefill": WorkerType.PREFILL,
    "decode": WorkerType.DECODE,
    "encode": WorkerType.ENCODE,
}


def worker_type_by_mode(server_args: Fields) -> WorkerType | Unknown:
    """The role by `disaggregation_mode`; engines older than disaggregation do not have it."""
    return _role(_BY_DISAGGREGATION_MODE, server_args, "disaggregation_mode")


def worker_type_by_kv_role(fields: Fields) -> WorkerType | Unknown:
    """The role by vLLM's `kv_role`; none, or an empty one, is a regular worker."""
    return _role(BY_KV_ROLE, fields, "kv_role")


def _role(table: Mapping[str, WorkerType], fields: Fields, key: str) -> WorkerType | Unknown:
    """A role that is given but unknown must not become a guess, which would send traffic the wrong way."""
    value = fields.get(key)
    if value is None or value == "":
        return WorkerType.REGULAR
    found = table.get(value) if isinstance(value, str) else None
    return found or Unknown(f"{key} {str(value)[:40]!r} is not a known role")
