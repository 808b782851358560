#!/usr/bin/env python3
"""Queue one picture per row of a CSV file in a running ComfyUI and save the results, without a browser.

    python run_csv.py prompts.csv --workflow demo.json --url http://127.0.0.1:8188 --out pictures

The columns are named after what they set, and all are optional but one:
    class     Class Label's class_list (an index, a name, or several)
    prompt    LightGen Text Encode's text
    seed, cfg, temperature    of GtR Sampler
    preset    of GtR Scheduler
    batch     Empty MAR Latent's batch_size
    name      the first part of the saved file's name
    NODE.INPUT, such as 5.steps    any input of the node with that id in the workflow

Every row is queued at once, so the server works through them while models stay loaded. Ctrl-C interrupts the running
one and takes the rest out of the queue. Needs aiohttp, which comes with ComfyUI.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import csv
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp

COLUMNS = {
    "class": ("GtR_ClassCondition", "class_list", str),
    "prompt": ("GtR_EncodeText", "text", str),
    "seed": ("GtR_Sampler", "seed", int),
    "cfg": ("GtR_Sampler", "cfg", float),
    "temperature": ("GtR_Sampler", "temperature", float),
    "preset": ("GtR_Scheduler", "preset", str),
    "batch": ("GtR_EmptyLatent", "batch_size", int),
    "name": ("SaveImage", "filename_prefix", str),
}
BAR = 24


def graphs(workflow: dict[str, Any], rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One graph per row: the workflow with the row's values. Raises ValueError with the row and the column."""
    made = []
    for number, row in enumerate(rows, start=1):
        graph = copy.deepcopy(workflow)
        for column, value in row.items():
            if value:
                for node, name, kind in targets(workflow, column):
                    try:
                        graph[node]["inputs"][name] = kind(value)
                    except ValueError:
                        raise ValueError(f"row {number}, column '{column}': '{value}' is not a number") from None
        made.append(graph)
    return made


def targets(workflow: dict[str, Any], column: str) -> list[tuple[str, str, type]]:
    """The (node, input, type) that a column sets. Raises ValueError if there is none."""
    node, dot, name = column.partition(".")
    if dot and name in workflow.get(node, {}).get("inputs", {}):
        return [(node, name, type(workflow[node]["inputs"][name]))]
    class_type, name, kind = COLUMNS.get(column, ("", "", str))
    found = [(node, name, kind) for node, entry in workflow.items() if entry["class_type"] == class_type]
    if not found:
        raise ValueError(f"column '{column}' sets nothing in this workflow: use {', '.join(COLUMNS)} or NODE.INPUT")
    return found


class Queue:
    """The runs of one client: queued together, followed over one websocket, saved as they end."""

    def __init__(self, session: aiohttp.ClientSession, url: str, out: Path) -> None:
        self.session, self.url, self.out = session, url, out
        self.client = uuid.uuid4().hex
        self.waiting: dict[str, int] = {}

    async def run(self, made: list[dict[str, Any]]) -> int:
        """Queue the graphs and see them through; returns how many failed."""
        failed = 0
        async with self.session.ws_connect(f"{self.url}/ws?clientId={self.client}", max_msg_size=0) as socket:
            for number, graph in enumerate(made, start=1):
                self.waiting[await self.queue(number, graph)] = number
            try:
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        failed += await self.heed(json.loads(message.data), len(made))
                    if not self.waiting:
                        break
            except asyncio.CancelledError:
                await self.stop()
                raise
        if self.waiting:
            raise ValueError(f"the server closed the connection with {len(self.waiting)} rows to go: see its log")
        return failed

    async def queue(self, number: int, graph: dict[str, Any]) -> str:
        body = {"prompt": graph, "client_id": self.client}
        async with self.session.post(f"{self.url}/prompt", json=body) as answer:
            said = await answer.json()
        errors = [
            f"node {node}: {error['message']}: {error['details']}"
            for node, found in (said.get("node_errors") or {}).items()
            for error in found["errors"]
        ]
        if errors or answer.status != 200:
            raise ValueError(f"row {number} was refused: {'; '.join(errors) or said}")
        return said["prompt_id"]

    async def heed(self, message: dict[str, Any], total: int) -> int:
        """Act on one event; returns 1 if it ends a row that failed."""
        kind, data = message["type"], message.get("data") or {}
        number = self.waiting.get(data.get("prompt_id", ""))
        if number is None:
            return 0
        if kind == "progress":
            show(number, total, data["value"] / max(data["max"], 1), f"step {data['value']}/{data['max']}")
        elif kind == "execution_error":
            show(number, total, 1.0, "")
            print(f"\nrow {number}: {data['node_type']}: {data['exception_message'].strip()}", file=sys.stderr)
        # The last message of a run; the history is complete only now.
        elif kind == "executing" and data.get("node") is None:
            del self.waiting[data["prompt_id"]]
            return await self.save(number, total, data["prompt_id"])
        return 0

    async def save(self, number: int, total: int, prompt_id: str) -> int:
        async with self.session.get(f"{self.url}/history/{prompt_id}") as answer:
            entry = (await answer.json())[prompt_id]
        if entry["status"]["status_str"] != "success":
            return 1
        images = [
            image
            for output in entry["outputs"].values()
            for image in output.get("images", ())
            if image["type"] == "output"
        ]
        for image in images:
            async with self.session.get(f"{self.url}/view", params=image) as answer:
                (self.out / f"{number:04d}_{image['filename']}").write_bytes(await answer.read())
        show(number, total, 1.0, f"{len(images)} saved")
        return 0

    async def stop(self) -> None:
        """Interrupt what runs and take the rest out of the queue."""
        await self.session.post(f"{self.url}/queue", json={"delete": list(self.waiting)})
        await self.session.post(f"{self.url}/interrupt", json={"prompt_id": next(iter(self.waiting), "")})


def show(number: int, total: int, share: float, note: str) -> None:
    """The progress bar: rows done, and the part of this one."""
    done = (number - 1 + share) / total
    bar = "#" * round(BAR * done)
    print(f"\r[{bar:.<{BAR}}] {number}/{total}  {note:<20}", end="", file=sys.stderr, flush=True)


async def main(options: argparse.Namespace) -> int:
    workflow = json.loads(options.workflow.read_text(encoding="utf-8"))
    with options.csv.open(newline="", encoding="utf-8-sig") as file:
        made = graphs(workflow, list(csv.DictReader(file, skipinitialspace=True)))
    if not made:
        raise ValueError(f"{options.csv} should hold a line of column names and at least one row, and has no row")
    options.out.mkdir(parents=True, exist_ok=True)
    async with aiohttp.ClientSession() as session:
        failed = await Queue(session, options.url.rstrip("/"), options.out).run(made)
    print(f"\n{len(made) - failed} of {len(made)} rows done: {options.out}", file=sys.stderr)
    return min(failed, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("csv", type=Path)
    parser.add_argument("--workflow", type=Path, default=Path(__file__).with_name("demo.json"), help="in API format")
    parser.add_argument("--url", default="http://127.0.0.1:8188")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    try:
        sys.exit(asyncio.run(main(parser.parse_args())))
    except (ValueError, OSError, aiohttp.ClientError) as error:
        sys.exit(f"run_csv.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
