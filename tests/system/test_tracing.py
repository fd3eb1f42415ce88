"""A trace from a client to its engine through SMG, with a collector that takes what SMG exports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import grpc
import pytest_asyncio

from tests.system.conftest import MakeGateway
from tests.system.gateway import PortBlock
from tests.system.test_access_log import StartRecorder, post, recorder  # noqa: F401 - a fixture

TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01", "tracestate": "vendor=1"}
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS, _TRACE_ID, _SPAN_ID, _PARENT_ID = 1, 2, 2, 1, 2, 4  # trace.proto
_LONGEST_S = 60


@dataclass
class Collector:
    """Takes OTLP over gRPC. spans: (trace, span, parent) of each, in hexadecimal."""

    port: int
    spans: list[tuple[str, str, str]] = field(default_factory=list)

    async def export(self, request: bytes, _: object) -> bytes:
        """`TraceService/Export`; its answer is an empty message."""
        for resource in _fields(request, _RESOURCE_SPANS):
            for scope in _fields(resource, _SCOPE_SPANS):
                for span in _fields(scope, _SPANS):
                    ids = [b"".join(_fields(span, number)).hex() for number in (_TRACE_ID, _SPAN_ID, _PARENT_ID)]
                    self.spans.append((ids[0], ids[1], ids[2]))
        return b""


def _fields(message: bytes, number: int) -> Iterator[bytes]:
    """The values of one field of a protobuf message, if they have a length."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            varint()
        elif tag & 7 == 2:
            size = varint()
            at += size
            if tag >> 3 == number:
                yield message[at - size : at]
        else:
            at += 8 if tag & 7 == 1 else 4


@pytest_asyncio.fixture
async def collector() -> AsyncIterator[Collector]:
    """One that listens until the test ends."""
    ports = PortBlock()
    made = Collector(ports.first)
    server = grpc.aio.server()
    takes = grpc.unary_unary_rpc_method_handler(made.export)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": takes}),))
    server.add_insecure_port(f"127.0.0.1:{made.port}")
    await server.start()
    yield made
    await server.stop(None)
    ports.release()


async def test_a_trace_goes_from_client_to_engine_through_smg(
    make_gateway: MakeGateway,
    recorder: StartRecorder,  # noqa: F811
    collector: Collector,
) -> None:
    """SMG's span is the child of the client's, and the parent of whatever the engine makes."""
    gateway = make_gateway()
    args = ["--enable-trace", "--otlp-traces-endpoint", f"127.0.0.1:{collector.port}"]
    gateway.settings["services"][0]["router"] = {"args": args, "log_level": "info"}
    await gateway.start()
    engine = await recorder(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert (await post(gateway, **SENT))[0] == 200
    (seen,) = engine.seen
    version, trace, parent, flags = seen["traceparent"].split("-")
    assert (version, trace, flags, seen["tracestate"]) == ("00", TRACE, "01", SENT["tracestate"])
    assert parent != CLIENT_SPAN
    async with asyncio.timeout(_LONGEST_S):
        while (TRACE, parent, CLIENT_SPAN) not in collector.spans:
            await asyncio.sleep(0.1)


async def test_without_tracing_a_trace_passes_as_it_came(
    make_gateway: MakeGateway,
    recorder: StartRecorder,  # noqa: F811
) -> None:
    """SMG makes no span then: the engine's is the child of the client's."""
    gateway = make_gateway()
    await gateway.start()
    engine = await recorder(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert (await post(gateway, **SENT))[0] == 200
    assert {name: engine.seen[0].get(name) for name in SENT} == SENT
