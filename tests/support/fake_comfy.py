"""A stand-in for ComfyUI's HTTP interface that draws at once, breaks when told to, and records what it was asked.

What a row does is the first word of its Save Image's prefix:
    boom      a node fails
    hold      runs until it is interrupted or `release` is called
    evil      names its file so that it leaves the folder of a careless client
    gone      the file is missing when it is fetched
    twice     saves two images
    none      saves nothing
    refused   is not taken
    half      is taken, with errors in one of its outputs
"""

from __future__ import annotations

import asyncio
import io
import threading
import time
from typing import Any

from aiohttp import web
from PIL import Image

from .server import free_port

OPTIONS = ["origin", "gtr-paper", "gtr-full", "gtr-extreme"]
INFO = {
    "GtR_ClassCondition": {"input": {"required": {"class_list": ["STRING", {}], "model": ["MAR_MODEL", {}]}}},
    "GtR_EmptyLatent": {"input": {"required": {"batch_size": ["INT", {"min": 1, "max": 4096}]}}},
    "GtR_Scheduler": {
        "input": {
            "required": {
                "preset": ["COMBO", {"options": OPTIONS}],
                "order": [["gtr", "random", "halton"], {}],
                "tiles": ["COMBO", {"options": [1, 2, 4]}],
                "shift": ["BOOLEAN", {"default": False}],
            }
        }
    },
    "GtR_Sampler": {
        "input": {
            "required": {"seed": ["INT", {"min": 0, "max": 2**64 - 1}], "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}]},
            "optional": {"cfg_start": ["FLOAT", {"min": 0.0, "max": 1.0}]},
        },
        "display_name": "The sampler",
    },
    "LoadImage": {"input": {"required": {"image": [["one.png"], {"image_upload": True}]}}},
    "Number": {"input": {"required": {"value": ["INT", {}]}}},
    "SaveImage": {"input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}}},
}
GRAPH: dict[str, Any] = {
    "3": {"class_type": "GtR_ClassCondition", "inputs": {"class_list": "0", "model": ["1", 0]}},
    "4": {"class_type": "GtR_EmptyLatent", "inputs": {"batch_size": 1}},
    "5": {
        "class_type": "GtR_Scheduler",
        "inputs": {"preset": "gtr-paper", "order": "gtr", "tiles": 1, "shift": False},
        "_meta": {"title": "The plan"},
    },
    "7": {"class_type": "GtR_Sampler", "inputs": {"seed": 7, "cfg": 3, "positive": ["3", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "image"}},
}
"""A workflow for it."""


class FakeComfy:
    """One server in a thread, to be used in a `with`. `restart` ends it with all that it knows and starts it anew."""

    def __init__(self, info: dict[str, Any] | None = INFO, websocket: bool = True, seconds: float = 0.0) -> None:
        self.info, self.websocket, self.seconds = info, websocket, seconds
        self.port = free_port()
        self.drawn: list[str] = []
        """The prefixes of the runs that were begun."""
        self.posted: list[dict[str, Any]] = []
        self.interrupted: list[str] = []
        self.requests_lost = 0
        """So many times the second and later requests of POST /prompt do not arrive."""
        self.answers_lost = 0
        """So many answers to POST /prompt get lost on their way."""
        self.crash_on = ""
        """The word at which the whole server ends."""
        self._forget()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def left(self) -> list[str]:
        """The ids that are queued or run."""
        return [name for name in self.graphs if name in self.running or name in self.pending]

    def __enter__(self) -> FakeComfy:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def start(self) -> None:
        self._wait(self._start())

    def stop(self) -> None:
        self._wait(self._stop())

    def restart(self, pause: float = 0.0) -> None:
        """End, forget everything, and start again."""
        self.stop()
        time.sleep(pause)
        self.start()

    def replace(self, late: float) -> None:
        """A new server answers at once, `late` seconds before the old one's connections are seen to close."""
        self._wait(self._replace(late))

    def clear(self) -> None:
        """What the page's Clear button does."""
        self._call(self.pending.clear)
        self._wait(self._status())

    def remove(self, number: int) -> None:
        """What the page's X on a queued run does."""
        self._call(lambda: self.pending.pop(number))
        self._wait(self._status())

    def interrupt(self) -> None:
        self._call(self._stop_running.set)

    def release(self) -> None:
        """Let the runs that hold go on, now and later."""
        self._call(self._released.set)

    def until(self, condition: Any, seconds: float = 30) -> None:
        """Wait for something that the client does."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the client did not get there"
            time.sleep(0.02)

    def _forget(self) -> None:
        self.graphs: dict[str, dict[str, Any]] = {}
        self.extra: dict[str, dict[str, Any]] = {}
        self.history: dict[str, Any] = {}
        self.pending: list[str] = []
        self.running: list[str] = []
        self.sockets: list[web.WebSocketResponse] = []

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _call(self, function: Any) -> None:
        async def call() -> None:
            function()

        self._wait(call())

    async def _start(self) -> None:
        self._forget()
        self._stop_running, self._released = asyncio.Event(), asyncio.Event()
        app = web.Application()
        app.add_routes(
            [
                web.get("/ws", self._ws),
                web.get("/object_info", self._object_info),
                web.get("/prompt", self._count),
                web.post("/prompt", self._prompt),
                web.get("/queue", self._queue),
                web.post("/queue", self._delete),
                web.post("/interrupt", self._interrupt),
                web.get("/history", self._history),
                web.get("/history/{name}", self._history),
                web.get("/view", self._view),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self._worker = asyncio.create_task(self._work())

    async def _stop(self) -> None:
        self._worker.cancel()
        for socket in self.sockets:
            await socket.close()
        await self._runner.cleanup()
        self._forget()

    async def _replace(self, late: float) -> None:
        self._worker.cancel()
        sockets = self.sockets
        self._forget()
        self._worker = asyncio.create_task(self._work())
        for socket in sockets:
            await socket.send_json({"type": "status", "data": {}})
        await asyncio.sleep(late)
        for socket in sockets:
            await socket.close()

    async def _send(self, kind: str, data: dict[str, Any]) -> None:
        for socket in self.sockets:
            if not socket.closed:
                await socket.send_json({"type": kind, "data": data})

    async def _status(self) -> None:
        left = len(self.pending) + len(self.running)
        await self._send("status", {"status": {"exec_info": {"queue_remaining": left}}})

    async def _work(self) -> None:
        while True:
            if not self.pending:
                await asyncio.sleep(0.005)
                continue
            name = self.pending.pop(0)
            self.running = [name]
            await self._run(name)

    async def _run(self, name: str) -> None:
        graph = self.graphs[name]
        prefix = graph["9"]["inputs"]["filename_prefix"]
        word, number = prefix.split()[0], len(self.drawn) + 1
        self.drawn.append(prefix)
        said = {"prompt_id": name, "node_id": "7", "node_type": "GtR_Sampler"}
        now = int(time.time() * 1000)
        self._stop_running.clear()
        await self._send("execution_start", {"prompt_id": name})
        await self._send("progress", {"prompt_id": name, "value": 1, "max": 2, "node": "7"})
        if word == self.crash_on:
            asyncio.create_task(self._crash())
            await asyncio.sleep(30)
        if word == "hold":
            waits = [asyncio.create_task(event.wait()) for event in (self._stop_running, self._released)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        elif self.seconds:
            await asyncio.sleep(self.seconds)
        kind, outputs = "execution_success", {}
        if self._stop_running.is_set():
            kind = "execution_interrupted"
        elif word == "boom":
            kind = "execution_error"
            said |= {
                "exception_type": "/path/of/the/pack.gtr_core.errors.GtRError",
                "exception_message": "class 17 should be\none of 0 to 9\n",
            }
        elif word != "none":
            names = {"evil": [r"..\..\evil.png"], "twice": ["a_00001_.png", "a_00002_.png"]}.get(word)
            names = names or [f"{prefix.rpartition('/')[2]}_{number:05d}_.png"]
            outputs = {"9": {"images": [{"filename": file, "subfolder": "", "type": "output"} for file in names]}}
            outputs["10"] = {"images": [{"filename": "plan.png", "subfolder": "", "type": "temp"}], "text": ["report"]}
        messages = [
            ["execution_start", {"prompt_id": name, "timestamp": now}],
            [kind, {**said, "timestamp": now + 1500}],
        ]
        good = kind == "execution_success"
        self.running = []
        self.history[name] = {
            "prompt": [0, name, graph, self.extra[name], ["9"]],
            "outputs": outputs,
            "status": {"status_str": "success" if good else "error", "completed": good, "messages": messages},
        }
        await self._send(kind, said)
        await self._status()
        await self._send("executing", {"node": None, "prompt_id": name})

    async def _crash(self) -> None:
        await self._stop()
        await asyncio.sleep(0.3)
        await self._start()

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        if not self.websocket:
            raise web.HTTPForbidden
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        await socket.send_bytes(b"\0\0\0\1\0\0\0\1preview")
        async for _ in socket:
            pass
        return socket

    async def _object_info(self, _: web.Request) -> web.Response:
        if self.info is None:
            raise web.HTTPNotFound
        return web.json_response(self.info)

    async def _prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.posted.append(body)
        graph = body["prompt"]
        word = graph["9"]["inputs"]["filename_prefix"].split()[0]
        found = {
            "class_type": "GtR_Scheduler",
            "errors": [{"message": "Value not in list", "details": "preset: 'warp'"}],
        }
        if word == "refused":
            error = {"type": "invalid", "message": "Prompt outputs failed validation", "details": ""}
            return web.json_response({"error": error, "node_errors": {"5": found}}, status=400)
        name = body["prompt_id"]
        if self.requests_lost and self.graphs:
            self.requests_lost -= 1
            return web.Response(status=502)
        self.graphs[name], self.extra[name] = graph, body["extra_data"] | {"client_id": body["client_id"]}
        self.pending.append(name)
        if self.answers_lost:
            self.answers_lost -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(
            {"prompt_id": name, "number": 1, "node_errors": {"5": found} if word == "half" else {}}
        )

    async def _count(self, _: web.Request) -> web.Response:
        return web.json_response({"exec_info": {"queue_remaining": len(self.pending) + len(self.running)}})

    async def _queue(self, _: web.Request) -> web.Response:
        def entries(names: list[str]) -> list[Any]:
            return [[0, name, self.graphs[name], self.extra[name], ["9"]] for name in names]

        return web.json_response({"queue_running": entries(self.running), "queue_pending": entries(self.pending)})

    async def _delete(self, request: web.Request) -> web.Response:
        gone = (await request.json())["delete"]
        self.pending = [name for name in self.pending if name not in gone]
        await self._status()
        return web.Response()

    async def _interrupt(self, request: web.Request) -> web.Response:
        name = (await request.json())["prompt_id"]
        self.interrupted.append(name)
        if name in self.running:
            self._stop_running.set()
        return web.Response()

    async def _history(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name")
        found = self.history if name is None else {key: self.history[key] for key in self.history if key == name}
        return web.json_response(found)

    async def _view(self, request: web.Request) -> web.Response:
        if request.query["filename"].startswith("gone"):
            raise web.HTTPNotFound
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (len(request.query["filename"]), 0, 0)).save(file, "PNG")
        return web.Response(body=file.getvalue(), content_type="image/png")
