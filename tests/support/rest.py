"""ComfyUI's HTTP interface with the standard library: one call, and the reading of its answers."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

from .errors import DevError

Graph = dict[str, Any]
# A proxy set in the environment must not see requests to this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(DevError):
    """The server answered with an error status; `status` and `body` hold what it said."""

    def __init__(self, status: int, body: Any) -> None:
        self.status, self.body = status, body
        super().__init__("; ".join(complaints(body)) or f"the server answered {status}: {body}")


def fetch(url: str, data: bytes | None = None, content_type: str = "application/json", timeout: float = 60) -> bytes:
    """The answer's bytes; Refused on an error status."""
    headers = {} if data is None else {"Content-Type": content_type}
    try:
        with _opener.open(urllib.request.Request(url, data, headers), timeout=timeout) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise Refused(error.code, _parse(error.read())) from None


def get(url: str) -> Any:
    """GET, the answer read as JSON."""
    return _parse(fetch(url))


def post(url: str, payload: Any) -> Any:
    """POST a JSON document, the answer read as JSON."""
    return _parse(fetch(url, json.dumps(payload).encode()))


def upload(url: str, name: str, image: bytes) -> Any:
    """Send an image to the server's input folder."""
    line = uuid.uuid4().hex
    head = (
        f'--{line}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
        f'--{line}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    body = head.encode() + image + f"\r\n--{line}--\r\n".encode()
    return _parse(fetch(f"{url}/upload/image", body, f"multipart/form-data; boundary={line}"))


def complaints(body: Any) -> list[str]:
    """One line per thing that the answer to POST /prompt finds wrong."""
    if not isinstance(body, dict):
        return []
    lines = [
        f"node {node} ({found.get('class_type')}): {error['message']}: {error['details']}"
        for node, found in (body.get("node_errors") or {}).items()
        for error in found["errors"]
    ]
    error = body.get("error")
    if not lines and isinstance(error, dict):
        lines = [f"{error.get('message')}: {error.get('details')}"]
    return lines


def queue(url: str, graph: Graph) -> str:
    """Queue a graph and give its id; DevError unless every node of it is valid."""
    answer = post(f"{url}/prompt", {"prompt": graph})
    if answer["node_errors"]:
        raise DevError("; ".join(complaints(answer)))
    return answer["prompt_id"]


def wait(url: str, prompt_id: str, alive: Callable[[], None], timeout: float = 600) -> dict[str, Any]:
    """The history entry of a finished run; `alive` raises if the server has died meanwhile."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        alive()
        entry = get(f"{url}/history/{prompt_id}").get(prompt_id)
        if entry is not None:
            return entry
        time.sleep(0.1)
    raise DevError(f"the run should have ended within {timeout:.0f} s, and has not: look at the server's log.")


def failure(entry: dict[str, Any]) -> dict[str, Any] | None:
    """What execution_error reported, None for a run without an error."""
    return next((data for kind, data in entry["status"]["messages"] if kind == "execution_error"), None)


def blame(error: dict[str, Any]) -> str:
    """One line out of execution_error's data: which node, and what it said."""
    said = " ".join(error["exception_message"].split())
    return f"node {error['node_id']} ({error['node_type']}) failed: {error['exception_type']}: {said}"


def view_url(url: str, image: dict[str, str]) -> str:
    """Where an image of the history can be fetched."""
    return f"{url}/view?{urllib.parse.urlencode(image)}"


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")
