"""A worker of NVIDIA Dynamo (ai-dynamo 1.6). Behind its socket is its request plane, which says nothing of itself: what
it is its entries say (`files/dynamo_entries.py`), in a directory that the operator names.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway_sidecar.domain.discovery import Failure, NoAnswer
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Foreign, Loading, ProbeResult, Ready, WorkerType
from gateway_sidecar.engines.dialect import Engine
from gateway_sidecar.engines.unix_socket import connect
from gateway_sidecar.files.dynamo_entries import fresh_entries, now_of_files

NAME = "dynamo"

_ENDS_WITHIN_S = 0.05
"""A forward whose far end is dead accepts, and closes at once. The request plane waits for requests."""
_ROLES = {
    "aggregated": WorkerType.REGULAR,
    "prefill": WorkerType.PREFILL,
    "decode": WorkerType.DECODE,
    "encode": WorkerType.ENCODE,
}


async def look(address: str, directory: Path) -> ProbeResult | NoAnswer:
    """What its entries say, if it takes a connection: it keeps them fresh while it is well."""
    connection = await connect(address)
    if isinstance(connection, NoAnswer):
        return connection
    try:
        is_closed = await connection.is_readable(_ENDS_WITHIN_S) and not await connection.receive()
    finally:
        connection.close()
    found = await asyncio.to_thread(read_entries, directory)
    if is_closed:
        return NoAnswer(Failure.CLOSED, "" if isinstance(found, Ready) else found.reason)
    return found


def read_entries(directory: Path) -> ProbeResult:
    """The worker that keeps its entries fresh there. Blocks."""
    cards = [card for _, _, card in fresh_entries(directory, now_of_files(), ("mdc",))]
    instances = {card.get("instance_id") for card in cards}
    if not cards:
        return Loading(
            f"no model card in {directory} that is kept fresh; start the worker with DYN_FILE_KV={directory}"
        )
    if len(instances) > 1:
        return Foreign(f"{len(instances)} workers write into {directory}; give each a directory of its own")
    [instance] = instances
    card = cards[0].get("card_json")
    name, role = (card.get("display_name"), card.get("worker_type")) if isinstance(card, dict) else (None, None)
    if not isinstance(instance, int) or not isinstance(name, str) or role not in _ROLES:
        return Foreign(f"the model card in {directory} has not the form of ai-dynamo 1.6; use that version")
    return Ready(
        EngineFacts(NAME, ConnectionMode.TCP, worker_type=_ROLES[role], model=name, instance=format(instance, "x"))
    )


ENGINE = Engine(NAME, look=look)
