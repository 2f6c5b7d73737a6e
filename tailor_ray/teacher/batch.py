"""`BatchPool`: what `TeacherPool` does, through the OpenAI Batch API: half the price, hours instead of minutes.

Requests gather until a file is full or `flush` says that no more come for now. Then a file is uploaded and a batch made
of it, which is polled until it ends. A file that is too large is made anew in halves. What exceeds the queue waits.
Replies go to the same ledger under the same keys as online ones.

Nothing is submitted twice. First a record of the batch and its input are in the run's storage. Then the record says
that it is about to be submitted. Its id goes along as the batch's metadata. A driver that finds a submitted record
without a batch id looks for a batch that carries the id. It takes that over if there is one, and only else submits. Of
what was never submitted nothing is counted.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.errors import StageError, Stopped, TailorError
from tailor_ray.teacher.batch_api import BatchApi, BatchResult, QueueFull, TooLarge, is_queue_full
from tailor_ray.teacher.budget import Budget, Spend, WorstCase, cost_usd, price_of
from tailor_ray.teacher.client import TeacherRequest, cap_of
from tailor_ray.teacher.dispatch import Settled
from tailor_ray.teacher.errors import access_error, quota_error
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import LedgerRow
from tailor_ray.teacher.outcomes import NO_VERDICT, Category, Outcome, Usage, check_status

log = logging.getLogger(__name__)

MOST_BYTES = 190 << 20  # of an input file; the API allows 200 MB
BYTES_PER_TOKEN = 4  # of an input file, for the queue's limit
LONGEST_PAUSE_S = 600.0  # before a file is tried again that the queue had no room for
QUIET_S = 1.0  # so long without a new request before a file that is not full is sent, once the parts are all in


class BatchPool:
    """Submit from any thread, take settled requests by the callback, close it; `budget` says what is spent.

    It asks one endpoint after the other.
    """

    def __init__(
        self,
        config: TeacherConfig,
        ledger: Ledger,
        round_: int,
        on_settled: Callable[[list[Settled]], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """Batches are recorded in `batches/`, below the ledger's folder."""
        self._config = config
        self._endpoints = {endpoint.model: endpoint for endpoint in config.teachers}
        self._ledger = ledger
        self._store = ledger.store.child("batches")
        self._on_settled = on_settled
        self._on_error = on_error
        self.budget = Budget(config, ledger.spent(), ledger.spent(round_))
        self._apis = {endpoint.model: BatchApi(endpoint) for endpoint in config.teachers}
        self._waiting: dict[str, TeacherRequest] = {}  # in no batch yet
        self._batched: dict[str, TeacherRequest] = {}  # in a batch that is not read yet
        self._reserved: set[str] = set()  # those of them for which this driver's budget set the worst case aside
        largest = ledger.largest_outputs()
        self._worsts = {
            endpoint.model: WorstCase(endpoint, batch=True, seen_output=largest.get(endpoint.model))
            for endpoint in config.teachers
        }
        self._attempts: dict[str, int] = {}
        self._most_bytes = MOST_BYTES  # less after one was too large
        self._queue: dict[str, float] = {}  # tokens that a model's queue was seen to take
        self._pauses = 0  # in a row
        self._paused_until = 0.0
        self._changed = 0.0
        self._flushed = self._held = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="teacher-batches", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[TeacherRequest]) -> None:
        rows = self._ledger.find(requests)
        known = [Settled(r, rows[r.key], True) for r in requests if r.key in rows and rows[r.key].answers(r.max_tokens)]
        final = {one.request.key for one in known}
        with self._lock:
            self._waiting.update({request.key: request for request in requests if request.key not in final})
            self._changed = time.monotonic()
        if known:
            self._on_settled(known)

    def hold(self) -> None:
        self._held = True

    def lasts(self, round_total: Spend) -> bool:
        return self.budget.lasts(round_total)

    def flush(self) -> None:
        self._flushed, self._held = True, False

    def close(self) -> None:
        """Leave; pending batches go on at the server and are found by the next driver."""
        self._closing.set()
        self._thread.join()
        for api in self._apis.values():
            api.close()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                records = self._records()
                with self._lock:  # a dead driver's open batches answer our requests as our own do
                    for key in {key for record in records for key in record["keys"]} & self._waiting.keys():
                        self._batched[key] = self._waiting.pop(key)
                for record in records:
                    self._follow(record)
                if not self._send_some():
                    self._closing.wait(self._config.batch_poll_s if records else QUIET_S / 4)
        except (TailorError, OSError, ValueError) as error:
            self._on_error(error)

    def _send_some(self) -> bool:
        """Make one batch of what waits, if it is time; True if one was made."""
        chosen = self._choose()
        if not chosen:
            return False
        name = uuid.uuid4().hex
        data = "".join(map(_line, chosen)).encode()
        record = {
            "name": name, "model": chosen[0].model, "keys": [request.key for request in chosen], "batch": None,
            "submitted": False, "tokens": len(data) // BYTES_PER_TOKEN,
        }  # fmt: skip
        # The worst case is in the ledger before there is a record by which the next driver would submit.
        for request in chosen:
            row = self._ledger.get([request.key]).get(request.key) or LedgerRow.of(request)
            row = replace(row, mode="batch", round=request.round, sent=row.sent or time.time())
            self._ledger.stage([row.sending(self._worst(request))])
        self._ledger.commit()
        self._store.write_bytes(f"{name}.jsonl", data)
        self._store.write_json(f"{name}.json", record)
        return self._follow(record)

    def _choose(self) -> list[TeacherRequest]:
        """Requests of one endpoint for one file, the most valuable first, within all limits."""
        with self._lock:
            ready = sorted(self._waiting.values(), key=lambda request: request.priority)
            quiet = self._flushed and time.monotonic() - self._changed >= QUIET_S
        full = len(ready) >= self._config.batch_max_requests or sum(len(r.body) for r in ready) >= self._most_bytes
        if not ready or self._held or not (quiet or full) or time.monotonic() < self._paused_until:
            return []
        model = ready[0].model
        queued = sum(record.get("tokens", 0) for record in self._records() if record["model"] == model)
        room = min(self._queue.get(model, float("inf")), self._config.batch_max_queued_tokens or float("inf")) - queued
        chosen: list[TeacherRequest] = []
        size = 0
        for request in ready:
            size += len(_line(request).encode())
            if len(chosen) >= self._config.batch_max_requests or (chosen and size > self._most_bytes):
                break
            if size // BYTES_PER_TOKEN > room and (chosen or queued):
                break
            if request.model == model:
                alone = self.budget.reserved.tokens <= 0
                if not self.budget.reserve(self._worst(request), 1.0 if alone else self._worsts[model].slack):
                    break
                chosen.append(request)
        cap = self.budget.binding(self._worst(ready[0]))
        if not chosen and not self._batched and cap is not None:
            raise Stopped(self.budget.exhausted_message(cap, self._worst(ready[0])))
        with self._lock:
            for request in chosen:
                self._batched[request.key] = self._waiting.pop(request.key)
        self._reserved.update(request.key for request in chosen)
        return chosen

    def _follow(self, record: dict[str, Any]) -> bool:
        """Bring one batch forward: submit it if nobody did, look at it, read it when it has ended.

        False where it could not be submitted; its requests wait again then.
        """
        api = self._apis.get(record["model"])
        if api is None:
            return True  # of a teacher that the configuration no longer names
        if record["batch"] is None:
            data = self._store.read_bytes(f"{record['name']}.jsonl")
            try:
                found = api.find(record["name"]) if record.get("submitted", True) else None
                if found is None:
                    record["submitted"] = True
                    self._store.write_json(f"{record['name']}.json", record)
                record["batch"] = found or api.submit(record["name"], data)
            except TooLarge as error:
                self._make_smaller(record, len(data), str(error))
                return False
            except QueueFull as error:
                self._wait_for_queue(record, str(error))
                return False
            self._store.write_json(f"{record['name']}.json", record)
        ended = api.poll(record["batch"])
        if ended is not None and ended.refusal is not None and is_queue_full(ended.refusal):
            self._wait_for_queue(record, ended.refusal)
            return False
        if ended is not None:
            self._pauses = 0
            self._read(record, ended)
        return True

    def _make_smaller(self, record: dict[str, Any], size: int, said: str) -> None:
        """Take a file back that is too large, and make the next ones half as large."""
        self._most_bytes = max(min(self._most_bytes, size) // 2, 1)
        if len(record["keys"]) == 1:
            self._read(record, BatchResult("refused", {record["keys"][0]: Outcome("http_413", said)}))
            return
        log.warning("a batch file of %.1f MiB is too large (%s): sent in halves", size / 2**20, said)
        self._take_back(record)

    def _wait_for_queue(self, record: dict[str, Any], said: str) -> None:
        """Take a file back that the queue has no room for, and send less, later."""
        queued = sum(one.get("tokens", 0) for one in self._records() if one["model"] == record["model"])
        own = record.get("tokens", 0)
        self._queue[record["model"]] = max(queued - own, own // 2, 1)
        pause = min(self._config.batch_poll_s * 2.0**self._pauses, LONGEST_PAUSE_S)
        self._pauses += 1
        self._paused_until = time.monotonic() + pause
        log.warning("the teacher's queue has no room (%s): sent again in %.0f s, or when others are done", said, pause)
        self._take_back(record)

    def _take_back(self, record: dict[str, Any]) -> None:
        """Nothing of this file was taken on: its requests wait again, and nothing of it is counted."""
        rows = self._ledger.get(record["keys"])
        self._ledger.stage(row.unsent() for row in rows.values() if row.outcome == "pending")
        self._ledger.commit()
        for key, row in rows.items():
            self._give_back(key, Spend(row.pending_usd, row.pending_tokens), Spend())
        with self._lock:
            for key in record["keys"]:
                if key in self._batched:
                    self._waiting[key] = self._batched.pop(key)
        self._forget(record)

    def _give_back(self, key: str, worst: Spend, paid: Spend) -> None:
        if key in self._reserved:
            self._reserved.remove(key)
            self.budget.settle(worst, paid)
        else:  # a dead driver's: its worst case was counted as spent when this one began
            self.budget.settle(Spend(), paid - worst)

    def _records(self) -> list[dict[str, Any]]:
        return [self._store.read_json(name) for name in self._store.files() if name.endswith(".json")]

    def _forget(self, record: dict[str, Any]) -> None:
        self._store.delete(f"{record['name']}.json")
        self._store.delete(f"{record['name']}.jsonl")

    def _read(self, record: dict[str, Any], ended: BatchResult) -> None:
        """Put a batch's replies into the ledger and hand them on; what it did not reach is asked again."""
        endpoint = self._endpoints[record["model"]]
        rows = self._ledger.get(record["keys"])
        lines = [json.loads(line) for line in self._store.read_bytes(f"{record['name']}.jsonl").splitlines()]
        bodies = {line["custom_id"]: json.dumps(line["body"], ensure_ascii=False) for line in lines}
        settled = []
        missing = "batch_lost" if ended.status == "gone" else "expired"
        for key in record["keys"]:
            outcome = ended.replies.get(key, Outcome(missing, f"the batch ended as {ended.status} before it"))
            row = rows.get(key) or LedgerRow(key, "pending", endpoint.model, "", 0, bodies[key], mode="batch")
            worst = Spend(row.pending_usd, row.pending_tokens)
            unknown = self._worsts[endpoint.model].learn(len(row.request), cap_of(row.request), outcome, worst)
            row = replace(row, pending_usd=unknown.usd, pending_tokens=unknown.tokens)
            cost = cost_usd(price_of(endpoint), outcome.usage or Usage(), batch=True)
            new = row.ended(outcome, cost, time.time())
            self._give_back(key, worst, new.spend - row.spend)
            self._ledger.stage([new])
            with self._lock:
                request = self._batched.pop(key, None) or self._waiting.pop(key, None)
            if request is not None:  # else only a dead driver knew of it
                settled.append((request, new, outcome))
        self._ledger.commit()
        self._forget(record)
        self._check_end(record["batch"], endpoint, ended)
        self._hand_on(settled)

    def _check_end(self, batch_id: str, endpoint: EndpointConfig, ended: BatchResult) -> None:
        """Raise what ends the run. The batch is read and forgotten by then, so that the next driver asks anew."""
        if ended.refusal is not None:
            said = json.dumps({"error": {"message": ended.refusal}}).encode()
            if check_status(400, said).rule.category is Category.QUOTA:
                raise quota_error(endpoint, ended.refusal)
            raise StageError(
                f"the batch {batch_id} was refused: {ended.refusal}; lower teacher.batch_max_requests, "
                "or set teacher.mode to online, and run the same command"
            )
        for outcome in ended.replies.values():
            if outcome.rule.category is Category.ACCESS:
                raise access_error(endpoint, outcome.detail)
            if outcome.rule.category is Category.QUOTA:
                raise quota_error(endpoint, outcome.detail)

    def _hand_on(self, ended: Sequence[tuple[TeacherRequest, LedgerRow, Outcome]]) -> None:
        settled = []
        for request, row, outcome in ended:
            self._attempts[request.key] = self._attempts.get(request.key, 0) + 1
            undecided = outcome.rule.category in NO_VERDICT
            tries = self._config.max_attempts if undecided else outcome.rule.tries or 1
            if self._attempts[request.key] < tries:
                with self._lock:
                    self._waiting[request.key] = request
                    self._changed = time.monotonic()
            else:
                settled.append(Settled(request, row, from_ledger=False, undecided=undecided))
        if settled:
            self._on_settled(settled)

    def _worst(self, request: TeacherRequest) -> Spend:
        return self._worsts[request.model].of(request.prompt_tokens, request.max_tokens)


def _line(request: TeacherRequest) -> str:
    """One line of a batch's input file."""
    head = {"custom_id": request.key, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps(head)[:-1] + f', "body": {request.body}}}\n'
