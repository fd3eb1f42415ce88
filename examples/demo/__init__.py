"""The demo behind `make run`: the real daemon, nginx and SMG, with simulated engines that come and go.

`DEMO=once`, or no terminal, ends it after the show; otherwise it goes on until Ctrl-C. `ENGINE=mlx` adds a real
engine; `ENGINE=vllm` shows real ones alone, and always ends; `FLEET=3` shows three gateways, etcd and HAProxy. It ends
with 0 only if every step went as it should, and leaves nothing running.
"""
