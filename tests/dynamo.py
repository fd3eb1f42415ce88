"""NVIDIA Dynamo as `make dynamo` installs it: its Python, and its mock workers."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import string
from contextlib import suppress
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PYTHON = os.environ.get("DYNAMO_PYTHON") or str(REPOSITORY / ".venv-dynamo" / "bin" / "python")

needs_dynamo = pytest.mark.skipif(
    not Path(PYTHON).exists(), reason="ai-dynamo is not installed; `make dynamo` installs it into .venv-dynamo"
)

PLANES = {
    "DYN_DISCOVERY_BACKEND": "file",
    "DYN_REQUEST_PLANE": "tcp",
    "DYN_EVENT_PLANE": "zmq",
    "DYN_TCP_RPC_HOST": "127.0.0.1",
    "DYN_EVENT_PLANE_HOST": "127.0.0.1",
    "DYN_LOG": "error",
    "DYN_SKIP_SGLANG_LOG_FORMATTING": "1",  # It leaves a file in the temporary directory.
    "HF_HUB_OFFLINE": "1",
}
_END = "<|end|>"


def write_model(directory: Path) -> None:
    """A model of which there is a tokenizer alone: bytes and pairs of letters, since a mocker wants a vocabulary."""
    directory.mkdir()
    bytes_ = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in bytes_] + [chr(256 + n) for n in range(256 - len(bytes_))]
    pairs = list(itertools.islice(itertools.product(string.ascii_letters, repeat=2), 2044))
    vocabulary = {token: number for number, token in enumerate([*letters, *(a + b for a, b in pairs)])}
    end = len(vocabulary)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": end, "content": _END, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        ],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": pairs},
    }
    chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    config = {"model_type": "llama", "vocab_size": end + 1, "eos_token_id": end, "max_position_embeddings": 32768}
    for name, content in (
        ("tokenizer", tokenizer),
        ("tokenizer_config", {"eos_token": _END, "chat_template": chat}),
        ("config", {"architectures": ["LlamaForCausalLM"], **config}),
        ("generation_config", {"eos_token_id": end}),
    ):
        (directory / f"{name}.json").write_text(json.dumps(content))


class Mocker:
    """A mock worker of Dynamo's, its request plane behind a Unix socket and its entries in a directory beside it."""

    def __init__(self, socket: Path, model: Path) -> None:
        self._socket, self._model = socket, model
        self.entries = socket.with_suffix(".dynamo")
        self._process: asyncio.subprocess.Process | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Starts it, with notes beside its socket; it is not ready yet."""
        self._process = await asyncio.create_subprocess_exec(
            *(PYTHON, "-m", "dynamo.mocker", "--model-path", str(self._model), "--model-name", "tiny"),
            *("--block-size", "16", "--kv-bytes-per-token", "1"),
            env={**os.environ, **PLANES, "DYN_FILE_KV": str(self.entries)},
        )
        self._socket.with_suffix(".yaml").write_text(f"dynamo: {self.entries}\n")
        self._server = await asyncio.start_unix_server(self._carry, self._socket)

    def kill(self) -> None:
        """SIGKILL; what carries its socket is there still."""
        assert self._process is not None
        self._process.kill()

    async def stop(self) -> None:
        """Ends it, and what carries its socket."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        if self._process is not None:
            await self._process.wait()
        if self._server is not None:
            self._server.close()

    def _port(self) -> int:
        """Its request plane's, as its entries say it."""
        [entry, *_] = (self.entries / "v1" / "instances").iterdir()
        address: str = json.loads(entry.read_text())["transport"]["tcp"]
        return int(address.partition("/")[0].rpartition(":")[2])

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port())
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65536):
            target.write(data)
    target.close()
