"""Protobuf messages as plain data, so that all reading is pure."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct, Value

from gateway_sidecar.domain.discovery import RpcAnswer


def decode(response: type[Message], wire: bytes) -> RpcAnswer:
    """Read the bytes of an answer; ones that are not this message make an answer that is not OK."""
    try:
        message = response.FromString(wire)
    except DecodeError as error:
        return RpcAnswer("DATA_LOSS", {}, f"not a {response.DESCRIPTOR.name}: {error}"[:200])
    return RpcAnswer("OK", _fields(message))


def _fields(message: Message) -> dict[str, object]:
    """The fields that are set, by their names. Unset fields and defaults are absent."""
    return {field.name: _value(value) for field, value in message.ListFields()}


def _value(value: object) -> object:
    if isinstance(value, Struct):
        return {key: _scalar(item) for key, item in value.fields.items()}
    if isinstance(value, Message):
        return _fields(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(_value(item) for item in value)
    return value


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
