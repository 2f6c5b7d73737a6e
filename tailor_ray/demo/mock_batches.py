"""The mock teacher's /v1/files and /v1/batches: kept in memory, answered after the mock's latency."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tailor_ray.demo.mock_replies import error_response

Answer = Callable[[dict[str, Any], str], Awaitable[tuple[int, dict[str, Any]] | None]]


@dataclass(slots=True)
class Batches:
    """`answer(body, custom_id)` gives a line's status and body, or None for a line that the batch does not reach."""

    answer: Answer
    delay_s: float
    most_lines: int
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/files", self.upload)
        app.router.add_get("/v1/files/{id}/content", self.download)
        app.router.add_post("/v1/batches", self.create)
        app.router.add_get("/v1/batches", self.list_all)
        app.router.add_get("/v1/batches/{id}", self.show)

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form.get("file")
        if not isinstance(file, web.FileField) or form.get("purpose") != "batch":
            return error_response(400, "a file and purpose=batch are needed", "invalid_request_error")
        return web.json_response(self._keep(file.filename, file.file.read()))

    async def download(self, request: web.Request) -> web.Response:
        kept = self.files.get(request.match_info["id"])
        return web.Response(body=kept[1]) if kept else error_response(404, "no such file", "not_found")

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("input_file_id") not in self.files:
            return error_response(400, "no such input file", "invalid_request_error")
        batch = {
            "id": f"batch_{uuid.uuid4().hex}",
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "metadata": body.get("metadata"),
            "status": "in_progress",
            "created_at": int(time.time()),
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
        }
        self.batches[batch["id"]] = batch
        task = asyncio.create_task(self._work(batch))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return web.json_response(batch)

    async def list_all(self, request: web.Request) -> web.Response:
        newest = list(reversed(self.batches.values()))
        after = request.query.get("after")
        start = next((i + 1 for i, batch in enumerate(newest) if batch["id"] == after), 0)
        page = newest[start : start + int(request.query.get("limit", 20))]
        last = page[-1]["id"] if page else None
        more = start + len(page) < len(newest)
        return web.json_response({"object": "list", "data": page, "has_more": more, "last_id": last})

    async def show(self, request: web.Request) -> web.Response:
        batch = self.batches.get(request.match_info["id"])
        return web.json_response(batch) if batch else error_response(404, "no such batch", "not_found")

    async def _work(self, batch: dict[str, Any]) -> None:
        await asyncio.sleep(self.delay_s)
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]][1].splitlines()]
        if len(lines) > self.most_lines:
            said = f"{len(lines)} requests, at most {self.most_lines} are allowed"
            refusal = {"object": "list", "data": [{"code": "too_many_tasks", "message": said}]}
            batch.update(status="failed", errors=refusal)
            return
        output: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for line in lines:
            got = await self.answer(line["body"], line["custom_id"])
            entry: dict[str, Any] = {"id": f"req_{uuid.uuid4().hex}", "custom_id": line["custom_id"], "error": None}
            if got is None:
                expired = {"code": "batch_expired", "message": "the batch expired before this request"}
                errors.append(entry | {"response": None, "error": expired})
            else:
                entry["response"] = {"status_code": got[0], "request_id": entry["id"], "body": got[1]}
                (output if got[0] == 200 else errors).append(entry)
        for name, some in (("output_file_id", output), ("error_file_id", errors)):
            if some:
                data = "".join(json.dumps(entry) + "\n" for entry in some).encode()
                batch[name] = self._keep(f"{name}.jsonl", data)["id"]
        missed = any(entry["error"] for entry in errors)
        batch["status"] = "expired" if missed else "completed"

    def _keep(self, name: str, data: bytes) -> dict[str, Any]:
        file_id = f"file-{uuid.uuid4().hex}"
        self.files[file_id] = (name, data)
        return {"id": file_id, "object": "file", "bytes": len(data), "filename": name, "purpose": "batch",
                "created_at": int(time.time()), "status": "processed"}  # fmt: skip
