"""A small teacher on a real socket whose every answer a test decides, and a pool that asks it from this process."""

import asyncio
import json
import queue
import threading
from contextlib import contextmanager

from aiohttp import web

from tailor_ray.storage import Store
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.pool import TeacherPool, start_local
from tests.teacher.helpers import config, reply, request

GOOD = reply("There are 3 + 4 = 7 of them in all.", "7")


def completion(text=GOOD, finish="stop", usage=(50, 20), **message):
    """A chat completion; `usage` is (prompt, completion) or the object itself."""
    if isinstance(usage, tuple):
        usage = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return {
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
        ],
        "usage": usage,
    }


def error(message, code=None, **fields):
    return {"error": {"message": message, "code": code, **fields}}


@contextmanager
def serving(answer, path="/v1/chat/completions"):
    """`answer(number, body, call)` gives (status, value[, headers]) of a call; yields URL, bodies and calls seen."""
    bodies, calls, started, loops = [], [], threading.Event(), []

    async def chat(call):
        body = await call.json()
        bodies.append(body)
        calls.append(call)
        got = answer(len(bodies) - 1, body, call)
        status, value, *headers = await got if asyncio.iscoroutine(got) else got
        if isinstance(value, bytes):
            return web.Response(body=value, status=status, headers=headers[0] if headers else None)
        return web.json_response(value, status=status, headers=headers[0] if headers else None)

    async def models(_):
        return web.json_response({"data": [{"id": "alpha"}, {"id": "beta"}]})

    async def serve():
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post(path, chat)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        loops.append((asyncio.get_running_loop(), asyncio.Event(), runner.addresses[0][1]))
        started.set()
        await loops[0][1].wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    started.wait(10)
    loop, ended, port = loops[0]
    try:
        yield f"http://127.0.0.1:{port}/v1", bodies, calls
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)


class Asked:
    """What came of some requests: settled ones by question, the error that ended the pool, and the ledger's sums."""

    def __init__(self):
        self.settled, self.error, self.spent, self.rows = [], None, None, []

    @property
    def outcomes(self):
        return sorted(one.row.outcome for one in self.settled)


def ask(folder, url, count, **settings):
    """Ask `count` questions from this process until all are settled or the pool stops."""
    chosen = config(base_url=url, **{"requests_per_minute": 1e6, "max_in_flight": 16, **settings})
    ledger, events, asked = Ledger(Store.open(str(folder))), queue.SimpleQueue(), Asked()
    pool = TeacherPool(chosen, ledger, 1, events.put, events.put, start_local)
    pool.submit([request(chosen, number=number) for number in range(count)])
    while len(asked.settled) < count and asked.error is None:
        got = events.get(timeout=60)
        if isinstance(got, BaseException):
            asked.error = got
        else:
            asked.settled += got
    pool.close()
    ledger.commit()
    asked.spent, asked.rows = ledger.spent(), ledger.rows()
    ledger.close()
    return asked


def shown(body):
    return json.dumps(body["messages"])
