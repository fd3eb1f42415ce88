"""A balancer of 70 lines: `python balancer.py --port N --metrics-port N --order ORDER`; its key is in TOY_KEY.

`/workers` controls it, with the key; whatever else is asked goes on to one of its workers.
"""

import argparse
import asyncio
import itertools
import os
import random

import aiohttp
from aiohttp import web

OURS = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


class Balancer:
    def __init__(self, key: str, order: str) -> None:
        self.key, self.order = key, order
        self.workers: dict[str, dict[str, str]] = {}
        self.numbers = itertools.count(1)
        self.turns = itertools.count()

    async def control(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            raise web.HTTPUnauthorized
        if request.method == "POST":
            worker_id = str(next(self.numbers))
            self.workers[worker_id] = await request.json()
            return web.json_response({"id": worker_id})
        if request.method == "DELETE":
            self.workers.pop(request.match_info["id"], None)
        return web.json_response({"workers": self.workers})

    async def forward(self, request: web.Request) -> web.StreamResponse:
        if not self.workers:
            raise web.HTTPServiceUnavailable
        workers = list(self.workers.values())
        turn = random.randrange(len(workers)) if self.order == "random" else next(self.turns) % len(workers)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in OURS}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, workers[turn]["url"] + request.path_qs, headers=headers, data=await request.read()
            ) as answer,
        ):
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in OURS}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response


async def nothing(_request: web.Request) -> web.Response:
    return web.Response()


async def serve(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--order", required=True)
    arguments = parser.parse_args()
    balancer = Balancer(os.environ["TOY_KEY"], arguments.order)
    app, metrics = web.Application(client_max_size=1 << 30), web.Application()
    app.router.add_route("*", "/workers", balancer.control)
    app.router.add_delete("/workers/{id}", balancer.control)
    app.router.add_route("*", "/{path:.*}", balancer.forward)
    metrics.router.add_get("/metrics", nothing)
    await serve(metrics, arguments.metrics_port)
    await serve(app, arguments.port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
