"""Protobuf messages as plain data, so that all reading is pure."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct, Value

from gateway_sidecar.domain.discovery import RpcAnswer

MOST_MESSAGE_BYTES = 256 * 1024
"""A real SGLang's GetServerInfo has 20 KiB. A message of so many empty messages takes 10 MB and 5 ms to decode."""
MOST_VALUES = 10_000
"""In one message. What is left of a real one has some hundreds."""


class _TooManyError(Exception):
    """Raised to stop the reading."""


def decode(response: type[Message], wire: bytes) -> RpcAnswer:
    """Read the bytes of an answer; ones that are not this message make an answer that is not OK."""
    name = response.DESCRIPTOR.name
    if len(wire) > MOST_MESSAGE_BYTES:
        return RpcAnswer("RESOURCE_EXHAUSTED", {}, f"a {name} of more than {MOST_MESSAGE_BYTES} bytes")
    try:
        return RpcAnswer("OK", _Reader().fields(response.FromString(wire)))
    except DecodeError as error:
        return RpcAnswer("DATA_LOSS", {}, f"not a {name}: {error}")
    except _TooManyError:
        return RpcAnswer("RESOURCE_EXHAUSTED", {}, f"a {name} of more than {MOST_VALUES} values")


class _Reader:
    """Reads one message, value by value."""

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def fields(self, message: Message) -> dict[str, object]:
        """The fields that are set, by their names. Unset fields and defaults are absent."""
        return {field.name: self._value(value) for field, value in message.ListFields()}

    def _value(self, value: object) -> object:
        self._left -= 1
        if isinstance(value, Struct):
            self._spend(len(value.fields))
            return {key: _scalar(item) for key, item in value.fields.items()}
        if isinstance(value, Message):
            return self.fields(value)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            self._spend(len(value))
            return tuple(self._value(item) for item in value)
        return value

    def _spend(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise _TooManyError


def _scalar(value: Value) -> object:
    """A string, number or bool of a Struct. A nested value is not opened, but does not read as absent either."""
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            return value.number_value
        case "bool_value":
            return value.bool_value
        case "null_value" | None:
            return None
        case nested:
            return (nested,)
