"""The tokenizer of every simulated gRPC engine, and the archive in which a router fetches it.

SMG applies its chat template, encodes prompts and decodes answers with it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile

from tokenizers import Tokenizer

from examples.byte_tokenizer import BOS_ID, EOS_ID, byte_tokenizer, tokenizer_config

_FIXED_DATE = (2026, 1, 1, 0, 0, 0)


def encode(text: str) -> list[int]:
    """Token ids of a text, no special ones added."""
    ids: list[int] = _tokenizer().encode(text, add_special_tokens=False).ids
    return ids


@functools.cache
def bundle() -> tuple[bytes, str]:
    """The ZIP archive that GetTokenizer streams, the same for every engine, and its SHA-256 in hex."""
    files = {
        "tokenizer.json": _tokenizer().to_str(),
        "tokenizer_config.json": json.dumps(tokenizer_config()),
        "config.json": json.dumps({"model_type": "llama", "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}),
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for name, text in files.items():
            writer.writestr(zipfile.ZipInfo(name, _FIXED_DATE), text)
    return archive.getvalue(), hashlib.sha256(archive.getvalue()).hexdigest()


@functools.cache
def _tokenizer() -> Tokenizer:
    return byte_tokenizer()
