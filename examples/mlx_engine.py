"""A real engine on any CPU: MLX with a tiny random Llama, served over gRPC by SMG's own servicer.

    pip install "smg-grpc-servicer[mlx]" "mlx[cpu]" mlx-lm==0.31.3
    python -m examples.mlx_engine --cache models --socket /run/replicas/chat/r1.sock

The model is made once in the cache directory, from a fixed seed. What it writes is random words; that it is a
real engine, which loads, generates, streams and cancels, is the point.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from examples.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID, byte_tokenizer, tokenizer_config

MODEL_NAME = "tiny-llama"
REQUIREMENTS = '"smg-grpc-servicer[mlx]" "mlx[cpu]" mlx-lm==0.31.3'
LONGEST_ADDRESS = 107
SEED = 0
VOCABULARY = 32768
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
}


def main() -> int:
    """Serve until SIGTERM or SIGINT; 2 if it cannot be done here."""
    options = _parser().parse_args()
    if importlib.util.find_spec("mlx") is None or importlib.util.find_spec("smg_grpc_servicer") is None:
        print(f"MLX or its servicer is not installed; pip install {REQUIREMENTS}", file=sys.stderr)
        return 2
    address = None if options.socket is None else options.socket.absolute()
    if address is not None and len(os.fsencode(address)) > LONGEST_ADDRESS:
        print(f"--socket is longer than {LONGEST_ADDRESS} bytes: {address}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    make_model(options.cache / MODEL_NAME)
    os.chdir(options.cache)  # the servicer serves the model under the path it was given
    host, port = (options.host, options.port) if address is None else ("unix", address)
    _serve(host, port)
    return 0


def make_model(directory: Path) -> None:
    """Make the model in `directory`, unless it is there: configuration, tokenizer, random weights.

    The weights come last and under a temporary name, so a model that was half made is made again.
    """
    weights = directory / "model.safetensors"
    if weights.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    byte_tokenizer(VOCABULARY).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    unfinished = directory / "unfinished.safetensors"
    _random_llama().save_weights(str(unfinished))
    unfinished.rename(weights)


def _random_llama() -> Any:
    random = importlib.import_module("mlx.core").random
    llama = importlib.import_module("mlx_lm.models.llama")
    random.seed(SEED)
    return llama.Model(llama.ModelArgs.from_dict(CONFIG))


def _serve(host: str, port: int | Path) -> None:
    """Run the servicer's own server.

    It joins host and port with a colon, so `unix` and a path make gRPC's address of a Unix socket. Its
    command line takes a number for a port and nothing else, hence the call.
    """
    serve_grpc = importlib.import_module("smg_grpc_servicer.mlx.server").serve_grpc
    settings = argparse.Namespace(
        model=MODEL_NAME,
        host=host,
        port=port,
        adapter_path=None,
        prefill_batch_size=8,
        completion_batch_size=32,
    )
    asyncio.run(serve_grpc(settings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.mlx_engine",
        description="A real MLX engine with a tiny random model, over gRPC.",
    )
    parser.add_argument("--cache", type=Path, required=True, help="directory for the model, made if need be")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, help="serve on this Unix socket")
    where.add_argument("--port", type=int, help="serve on this TCP port")
    parser.add_argument("--host", default="127.0.0.1", help="the TCP port's address (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
