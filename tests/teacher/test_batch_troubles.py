"""Batches as accounts and servers limit them: a full queue, files too large, batches that are gone, no batch API."""

import json
import logging
import threading
import time

import pytest
from aiohttp import web

from tailor_ray.errors import ConfigError, Stopped
from tailor_ray.storage import Store
from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.ledger import Ledger
from tests.teacher.servers import completion
from tests.teacher.test_batch import Driver

PRICE = {"input": 10.0, "output": 10.0}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    return Store.open(str(tmp_path / "teacher"))


class Api:
    """A batch API with a queue and a size limit; `ends` decides what becomes of a batch when it is looked at."""

    def __init__(self, most_bytes=1 << 30, most_tokens=1 << 30, ends=None, has_api=True, error=None, lost=0):
        """`error` fails each batch; the answers of the first `lost` creations do not arrive."""
        self.most_bytes, self.most_tokens, self.has_api, self.lost = most_bytes, most_tokens, has_api, lost
        self.error = error
        self.ends = ends or (lambda *_: "completed")
        self.files, self.batches, self.uploads, self.queued = {}, {}, [], []
        self.looked, self.asked = {}, []

    async def upload(self, call):
        if not self.has_api:
            return web.json_response({"detail": "Not Found"}, status=404)
        data = (await call.post())["file"].file.read()
        self.uploads.append(len(data))
        if len(data) > self.most_bytes:
            return web.json_response({"error": {"message": "Maximum content size limit exceeded"}}, status=413)
        name = f"file-{len(self.files)}"
        self.files[name] = data
        return web.json_response(
            {
                "id": name,
                "object": "file",
                "bytes": len(data),
                "filename": "x",
                "created_at": 0,
                "purpose": "batch",
                "status": "processed",
            }
        )

    async def create(self, call):
        body = await call.json()
        tokens = len(self.files[body["input_file_id"]]) // 4
        running = sum(one["tokens"] for one in self.batches.values() if one["status"] == "in_progress")
        name = f"batch_{len(self.queued)}"
        full = tokens + running > self.most_tokens or self.error is not None
        error = self.error or {"code": "token_limit_exceeded", "message": "Enqueued token limit reached for the model"}
        batch = {
            "id": name,
            "object": "batch",
            "status": "failed" if full else "in_progress",
            "endpoint": "x",
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "created_at": int(time.time()),
            "metadata": body["metadata"],
            "errors": {"data": [error]} if full else None,
            "tokens": tokens,
        }
        self.queued.append(running + (0 if full else tokens))
        self.batches[name] = batch
        if len(self.queued) <= self.lost:
            call.transport.close()
        return web.json_response(batch)

    async def show(self, call):
        name = call.match_info["id"]
        batch = self.batches.get(name)
        if batch is None:
            return web.json_response({"error": {"message": "No batch found"}}, status=404)
        self.looked[name] = self.looked.get(name, 0) + 1
        if batch["status"] == "in_progress":
            status = self.ends(batch, self.looked[name])
            if status == "gone":
                del self.batches[name]
                return web.json_response({"error": {"message": "No batch found"}}, status=404)
            if status == "completed":
                self.finish(batch)
            elif status:
                return web.json_response(
                    batch | {"status": status, "request_counts": {"total": 3, "completed": 1, "failed": 0}}
                )
        return web.json_response(batch)

    def finish(self, batch):
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        self.asked += [line["custom_id"] for line in lines]
        good = [
            {"custom_id": one["custom_id"], "response": {"status_code": 200, "body": completion()}} for one in lines
        ]
        bad = [
            {"custom_id": one["custom_id"], "response": None, "error": {"code": "batch_expired"}} for one in lines[:1]
        ]
        for field, rows in (("output_file_id", good), ("error_file_id", bad)):
            self.files[f"{field}-{batch['id']}"] = "\n".join(map(json.dumps, rows)).encode()
            batch[field] = f"{field}-{batch['id']}"
        batch["status"] = "completed"

    async def content(self, call):
        return web.Response(body=self.files[call.match_info["id"]])

    async def listed(self, _):
        return web.json_response({"object": "list", "data": list(self.batches.values())[::-1], "has_more": False})

    def __enter__(self):
        import asyncio

        started, self.loop = threading.Event(), None

        async def serve():
            app = web.Application(client_max_size=1 << 30)
            app.router.add_post("/v1/files", self.upload)
            app.router.add_get("/v1/files/{id}/content", self.content)
            app.router.add_post("/v1/batches", self.create)
            app.router.add_get("/v1/batches", self.listed)
            app.router.add_get("/v1/batches/{id}", self.show)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            started.set()
            await self.ended.wait()
            await runner.cleanup()

        self.thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self.thread.start()
        started.wait(10)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(10)


def test_no_more_tokens_are_queued_than_allowed(store):
    with Api(ends=lambda _, looked: "completed" if looked > 3 else "") as api:
        driver = Driver(store, api.url, batch_max_requests=4, batch_max_queued_tokens=1200)
        driver.ask(20)
        assert {one.row.outcome for one in driver.take(20)} == {"answered"}
        driver.close()
    assert 0 < max(api.queued) <= 1200
    assert len(api.asked) == 20


def test_a_queue_that_is_full_is_waited_for(store):
    with Api(most_tokens=800, ends=lambda _, looked: "completed" if looked > 2 else "") as api:
        driver = Driver(store, api.url, batch_max_requests=10, price=PRICE, budget_usd=5.0)
        driver.ask(30)
        assert {one.row.outcome for one in driver.take(30)} == {"answered"}
        reserved = driver.pool.budget.reserved
        assert reserved == Spend() or abs(reserved.usd) < 1e-9
        driver.close()
    assert len(api.asked) == len(set(api.asked)) == 30
    assert any(batch["status"] == "failed" for batch in api.batches.values())


def test_a_batch_whose_making_is_not_confirmed_is_looked_for_before_it_is_made_again(store):
    with Api(lost=1) as api:
        driver = Driver(store, api.url)
        driver.ask(5)
        assert {one.row.outcome for one in driver.take(5)} == {"answered"}
        driver.close()
    assert len(api.batches) == 1


def test_a_batch_that_fails_for_want_of_quota_stops_the_run_as_such(store):
    said = {"code": "billing_hard_limit_reached", "message": "Billing hard limit has been reached."}
    with Api(error=said) as api:
        driver = Driver(store, api.url)
        driver.ask(5)
        with pytest.raises(Stopped, match="quota is used up"):
            driver.take(5)
        driver.close()
    with Api() as api:
        driver = Driver(store, api.url)
        driver.ask(5)
        assert {one.row.outcome for one in driver.take(5)} == {"answered"}
        driver.close()


def test_a_file_that_is_too_large_is_halved(store):
    with Api(most_bytes=1500) as api:
        driver = Driver(store, api.url, price=PRICE)
        driver.ask(20)
        assert {one.row.outcome for one in driver.take(20)} == {"answered"}
        assert all(row.attempts == 1 for row in driver.ledger.rows())
        spent = driver.ledger.spent().tokens
        driver.close()
    assert len(api.asked) == 20
    assert api.uploads[0] > 2 * 1500
    assert spent == 20 * 70


def test_a_batch_that_is_gone_is_asked_again_and_counted_at_its_worst(store):
    with Api(ends=lambda batch, _: "gone" if batch["id"] == "batch_0" else "completed") as api:
        driver = Driver(store, api.url, price=PRICE)
        driver.ask(5)
        settled = driver.take(5)
        driver.close()
    assert {one.row.outcome for one in settled} == {"answered"}
    assert all(one.row.lost_tokens == one.request.worst_tokens for one in settled)


def test_an_error_line_undoes_no_reply_of_the_same_request(store):
    with Api() as api:
        driver = Driver(store, api.url)
        driver.ask(5)
        assert {one.row.attempts for one in driver.take(5)} == {1}
        driver.close()


def test_a_batch_under_way_is_told_with_age_and_counts(store, caplog):
    caplog.set_level(logging.INFO)
    with Api(ends=lambda _, looked: "completed" if looked > 2 else "finalizing") as api:
        driver = Driver(store, api.url)
        driver.ask(3)
        driver.take(3)
        driver.close()
    assert caplog.text.count("is finalizing after 0.0 h, 1 of 3 done") == 1


def test_a_batch_that_finalizes_for_ever_is_given_up(store, monkeypatch, caplog):
    monkeypatch.setattr("tailor_ray.teacher.batch_api.OVERDUE_S", 0.5)
    with Api(ends=lambda batch, _: "finalizing" if batch["id"] == "batch_0" else "completed") as api:
        driver = Driver(store, api.url)
        driver.ask(3)
        assert {one.row.outcome for one in driver.take(3)} == {"answered"}
        driver.close()
    assert "is still finalizing" in caplog.text


def test_a_server_without_a_batch_api_is_said_to_have_none(store):
    with Api(has_api=False) as api:
        driver = Driver(store, api.url)
        driver.ask(3)
        with pytest.raises(ConfigError, match=r"no batch API.*teacher\.mode to online"):
            driver.take(3)
        driver.close()


def test_what_was_never_submitted_is_no_lost_money_when_the_mode_changes(store):
    with Api(has_api=False) as api:
        driver = Driver(store, api.url, price=PRICE)
        driver.ask(3)
        while not driver.store.child("batches").files():
            time.sleep(0.05)
        time.sleep(0.3)
        driver.die()
    (record,) = [name for name in store.child("batches").files() if name.endswith(".json")]
    prepared = store.child("batches").read_json(record) | {"submitted": False}
    store.child("batches").write_json(record, prepared)  # killed before it said that it would submit
    online = Ledger(store)
    assert online.spent() == Spend()
    assert {row.outcome for row in online.rows()} == {"unsent"}
    online.close()
