"""A websocket client for a running ComfyUI that records a whole run and can act in the middle of one."""

from __future__ import annotations

import io
import json
import queue
import struct
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import websocket
from PIL import Image

from . import rest
from .rest import Graph

PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4


@dataclass(frozen=True)
class Event:
    """A JSON message of the server; `at` is when it arrived (time.monotonic)."""

    type: str
    data: dict[str, Any]
    at: float


@dataclass(frozen=True)
class Preview:
    """A binary message: an encoded image and, in the newer form, what the server says about it."""

    image: bytes
    metadata: dict[str, Any]
    at: float

    def open(self) -> Image.Image:
        """The image, decoded."""
        return decode(self.image)


@dataclass
class Run:
    """What happened to one POST /prompt."""

    prompt_id: str = ""
    status: str = "refused"
    """refused, success, error or interrupted."""
    node_errors: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    events: list[Event] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    images: dict[str, list[bytes]] = field(default_factory=dict)

    def of_type(self, kind: str) -> list[Event]:
        """The events of one type, in order."""
        return [event for event in self.events if event.type == kind]

    @property
    def cached(self) -> set[str]:
        """The nodes that were not run because their results were still there."""
        return {node for event in self.of_type("execution_cached") for node in event.data["nodes"]}

    @property
    def executed(self) -> list[str]:
        """The nodes that were run, in order."""
        return [event.data["node"] for event in self.of_type("executing") if event.data["node"] is not None]

    @property
    def error(self) -> dict[str, Any]:
        """What execution_error said, empty without one."""
        return next((event.data for event in self.of_type("execution_error")), {})

    @property
    def texts(self) -> list[str]:
        """Every text that a node showed."""
        return [str(text) for output in self.outputs.values() for text in output.get("text", ())]

    @property
    def trouble(self) -> str:
        """One line about what went wrong, empty when nothing did."""
        lines = rest.complaints({"node_errors": self.node_errors})
        if self.error:
            lines.append(rest.blame(self.error))
        return "; ".join(lines) or self.refusal or ("" if self.status == "success" else self.status)


class Client:
    """One connection to a server, to be closed."""

    def __init__(self, url: str) -> None:
        self.url, self.id = url, uuid.uuid4().hex
        self._messages: queue.Queue[Event | Preview] = queue.Queue()
        self._socket = websocket.create_connection(f"{url.replace('http', 'ws', 1)}/ws?clientId={self.id}", timeout=60)
        self._socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        self._socket.settimeout(None)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Shut the connection and end its reading thread."""
        self._socket.abort()
        self._reader.join(5)
        self._socket.shutdown()

    def object_info(self) -> dict[str, Any]:
        """Every node of the server, as the front end sees it."""
        return rest.get(f"{self.url}/object_info")

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a finished run."""
        return rest.get(f"{self.url}/history/{prompt_id}")[prompt_id]

    def interrupt(self) -> float:
        """Stop what runs now; gives the time at which the server had taken note."""
        rest.post(f"{self.url}/interrupt", {})
        return time.monotonic()

    def free(self) -> None:
        """Make the server forget its models and cached results, so that the next run starts afresh."""
        # The server's worker acts on this between two runs and does not tell when it has. While it still cleans up
        # after a run it does not notice, and would act after the next run only.
        for _ in range(3):
            rest.post(f"{self.url}/free", {"unload_models": True, "free_memory": True})
            time.sleep(0.25)

    def upload_image(self, name: str, image: bytes) -> str:
        """Send an image to the input folder; gives the name that LoadImage knows it by."""
        return rest.upload(self.url, name, image)["name"]

    def prompt(
        self,
        graph: Graph,
        expect_errors: bool = False,
        on_event: Callable[[Event | Preview], None] | None = None,
        timeout: float = 300,
    ) -> Run:
        """Run a graph to its end. `on_event` is called for every message as it is read, and may interrupt the run.

        Anything but a whole success fails the test, unless errors are expected.
        """
        run = Run()
        try:
            answer = rest.post(f"{self.url}/prompt", {"prompt": graph, "client_id": self.id})
        except rest.Refused as refused:
            run.refusal, run.node_errors = str(refused), dict(refused.body.get("node_errors") or {})
        else:
            run.prompt_id, run.node_errors = answer["prompt_id"], answer["node_errors"]
            self.follow(run, on_event, timeout)
        if not expect_errors and run.trouble:
            raise AssertionError(f"the run should succeed, but: {run.trouble}")
        return run

    def follow(self, run: Run, on_event: Callable[[Event | Preview], None] | None = None, timeout: float = 300) -> Run:
        """Record a queued run to its end; of several, in the order in which they are run."""
        self._follow(run, on_event or (lambda _: None), time.monotonic() + timeout)
        self._finish(run)
        return run

    def _follow(self, run: Run, on_event: Callable[[Event | Preview], None], end: float) -> None:
        """Record messages until the server says that nothing of this prompt is executing any more.

        That comes after execution_success or execution_error, and only then is the history filled.
        """
        while True:
            message = self._next(run, end)
            if isinstance(message, Preview):
                run.previews.append(message)
            elif message.data.get("prompt_id") not in (None, run.prompt_id):
                continue
            else:
                run.events.append(message)
                if message.type == "executing" and message.data.get("node") is None and "prompt_id" in message.data:
                    return
            on_event(message)

    def _next(self, run: Run, end: float) -> Event | Preview:
        try:
            return self._messages.get(timeout=max(end - time.monotonic(), 0.001))
        except queue.Empty:
            last = run.events[-1] if run.events else "none"
            raise AssertionError(f"the run should have ended by now; its last event is {last}") from None

    def _finish(self, run: Run) -> None:
        entry = self.history(run.prompt_id)
        kinds = {kind for kind, _ in entry["status"]["messages"]}
        # For an interrupted run status_str is "error" as well.
        run.status = "interrupted" if "execution_interrupted" in kinds else entry["status"]["status_str"]
        run.outputs = entry["outputs"]
        run.images = {
            node: [rest.fetch(rest.view_url(self.url, image)) for image in output["images"]]
            for node, output in run.outputs.items()
            if output.get("images")
        }

    def _read(self) -> None:
        while True:
            try:
                kind, data = self._socket.recv_data()
            except (websocket.WebSocketException, OSError):
                return
            at = time.monotonic()
            if kind == websocket.ABNF.OPCODE_TEXT:
                message = json.loads(data)
                self._messages.put(Event(message["type"], message.get("data") or {}, at))
            elif kind == websocket.ABNF.OPCODE_BINARY and (message := _binary(data, at)):
                self._messages.put(message)
            elif kind == websocket.ABNF.OPCODE_CLOSE:
                return


def decode(image: bytes) -> Image.Image:
    """An encoded image as an RGB image."""
    return Image.open(io.BytesIO(image)).convert("RGB")


def pixels(image: bytes) -> tuple[tuple[int, int], bytes]:
    """Size and pixel bytes of an encoded image: equal for equal images, whatever text the file carries."""
    image = decode(image)
    return image.size, image.tobytes()


def _binary(data: bytes, at: float) -> Event | Preview | None:
    """A preview, or the text that a node shows while it runs as an event `progress_text`."""
    kind, second = struct.unpack_from(">II", data)
    if kind == TEXT:
        return Event("progress_text", {"node": data[8 : 8 + second].decode(), "text": data[8 + second :].decode()}, at)
    if kind == PREVIEW:
        return Preview(data[8:], {}, at)
    if kind == PREVIEW_WITH_METADATA:
        return Preview(data[8 + second :], json.loads(data[8 : 8 + second]), at)
    return None
