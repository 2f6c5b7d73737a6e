"""`BatchPool`: the same work as `TeacherPool`, through the OpenAI Batch API: half the price, hours instead of minutes.

Requests gather until a file is full or `flush` says that no more come for now; then a file is uploaded and a batch made
of it, which is polled until it ends. Before anything is sent, a record of the batch and its input are in the run's
storage; the record's id goes along as the batch's metadata. So a driver that finds a record without a batch id looks
for a batch that carries the id, takes it over if there is one, and only else submits: never twice. Replies go to the
same ledger under the same keys as those of online calls.
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
from tailor_ray.teacher.batch_api import BatchApi, Ended
from tailor_ray.teacher.budget import Budget, Spend
from tailor_ray.teacher.dispatch import Settled, access_error, quota_error
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_row import LedgerRow
from tailor_ray.teacher.outcomes import Checked, Fate, Usage
from tailor_ray.teacher.budget import cost_usd, price_of
from tailor_ray.teacher.request import TeacherRequest

log = logging.getLogger(__name__)

QUIET_S = 1.0  # so long without a new request before a file that is not full is sent, once the parts are all in


class BatchPool:
    """Submit from any thread, take settled requests by the callback, close it. One endpoint after the other."""

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
        self._budget = Budget(config, ledger.spent(), ledger.spent(round_))
        self._apis = {endpoint.model: BatchApi(endpoint) for endpoint in config.teachers}
        self._waiting: dict[str, TeacherRequest] = {}  # in no batch yet
        self._batched: dict[str, TeacherRequest] = {}  # in a batch that is not read yet
        self._reserved: set[str] = set()  # those of them for which this driver's budget set the worst case aside
        self._attempts: dict[str, int] = {}
        self._changed = 0.0
        self._flushed = self._held = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="teacher-batches", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[TeacherRequest]) -> None:
        rows = self._ledger.get([request.key for request in requests])
        known = [Settled(r, rows[r.key], True) for r in requests if r.key in rows and rows[r.key].is_final]
        final = {one.request.key for one in known}
        with self._lock:
            self._waiting.update({request.key: request for request in requests if request.key not in final})
            self._changed = time.monotonic()
        if known:
            self._on_settled(known)

    def hold(self) -> None:
        """Send no file, full or not, until all parts have come, so that what is worth most goes first."""
        self._held = True

    def lasts(self, round_total: Spend) -> bool:
        """Whether the budget allows a round that takes so much in all."""
        return self._budget.lasts(round_total)

    def flush(self) -> None:
        """No more parts come: what waits may be sent, also in a file that is not full."""
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
                records = self._open_records()
                for record in records:
                    self._follow(record)
                if not self._send_some():
                    self._closing.wait(self._config.batch_poll_s if records else QUIET_S / 4)
        except (TailorError, OSError, ValueError) as error:
            self._on_error(error)

    def _open_records(self) -> list[dict[str, Any]]:
        """Batches that were begun and not read to their end; a dead driver's answer our requests as our own do."""
        records = [self._store.read_json(name) for name in self._store.files() if name.endswith(".json")]
        with self._lock:
            for key in {key for record in records for key in record["keys"]} & self._waiting.keys():
                self._batched[key] = self._waiting.pop(key)
        return records

    def _send_some(self) -> bool:
        """Make one batch of what waits, if it is time; True if one was made."""
        chosen = self._choose()
        if not chosen:
            return False
        name = uuid.uuid4().hex
        record = {"name": name, "model": chosen[0].model, "keys": [request.key for request in chosen], "batch": None}
        # The worst case is in the ledger before there is a record by which the next driver would submit.
        self._ledger.stage(self._pending_row(request) for request in chosen)
        self._ledger.commit()
        self._store.write_bytes(f"{name}.jsonl", "".join(map(_line, chosen)).encode())
        self._store.write_json(f"{name}.json", record)
        self._follow(record)
        return True

    def _choose(self) -> list[TeacherRequest]:
        """Requests of one endpoint for one file, the most valuable first, within the file's and the budget's limits."""
        limit = int(self._config.batch_max_mib * 2**20)
        with self._lock:
            ready = sorted(self._waiting.values(), key=lambda request: request.priority)
            quiet = self._flushed and time.monotonic() - self._changed >= QUIET_S
        full = len(ready) >= self._config.batch_max_requests or sum(len(r.body) for r in ready) >= limit
        if not ready or self._held or not (quiet or full):
            return []
        chosen: list[TeacherRequest] = []
        size = 0
        for request in ready:
            size += len(_line(request).encode())
            if len(chosen) >= self._config.batch_max_requests or (chosen and size > limit):
                break
            if request.model == ready[0].model:
                if not self._budget.reserve(self._worst(request)):
                    break
                chosen.append(request)
        cap = self._budget.binding(self._worst(ready[0]))
        if not chosen and not self._batched and cap is not None:
            raise Stopped(self._budget.exhausted_message(cap, self._worst(ready[0])))
        with self._lock:
            for request in chosen:
                self._batched[request.key] = self._waiting.pop(request.key)
        self._reserved.update(request.key for request in chosen)
        return chosen

    def _follow(self, record: dict[str, Any]) -> None:
        """Bring one batch forward: submit it if nobody did, look at it, read it when it has ended."""
        api = self._apis.get(record["model"])
        if api is None:
            return  # of a teacher that the configuration no longer names
        if record["batch"] is None:
            found = api.find(record["name"])
            data = self._store.read_bytes(f"{record['name']}.jsonl")
            record["batch"] = found or api.submit(record["name"], data)
            self._store.write_json(f"{record['name']}.json", record)
        ended = api.look(record["batch"])
        if ended is not None:
            self._read(record, ended)

    def _read(self, record: dict[str, Any], ended: Ended) -> None:
        """Put a batch's replies into the ledger and hand them on; what it did not reach is asked again."""
        endpoint = self._endpoints[record["model"]]
        rows = self._ledger.get(record["keys"])
        bodies = _bodies(self._store.read_bytes(f"{record['name']}.jsonl"))
        settled = []
        for key in record["keys"]:
            checked = ended.replies.get(key, Checked("expired", f"the batch ended as {ended.status} before it"))
            row = rows.get(key) or LedgerRow(key, "pending", endpoint.model, "", 0, bodies[key], mode="batch")
            new = self._ended_row(endpoint, row, checked)
            self._ledger.stage([new])
            request = self._take(key)
            if request is not None:
                settled.append((request, new, checked))
        self._ledger.commit()
        self._store.delete(f"{record['name']}.json")
        self._store.delete(f"{record['name']}.jsonl")
        self._check_end(record["batch"], endpoint, ended)
        self._hand_on(settled)

    def _check_end(self, batch_id: str, endpoint: EndpointConfig, ended: Ended) -> None:
        """Raise what ends the run. The batch is read and forgotten by then, so that the next driver asks anew."""
        if ended.refusal is not None:
            raise StageError(
                f"the batch {batch_id} was refused: {ended.refusal}; lower teacher.batch_max_requests or "
                "teacher.batch_max_mib, or set teacher.mode to online, and run the same command"
            )
        for checked in ended.replies.values():
            if checked.rule.fate is Fate.ACCESS:
                raise access_error(endpoint, checked.detail)
            if checked.rule.fate is Fate.QUOTA:
                raise quota_error(endpoint, checked.detail)

    def _take(self, key: str) -> TeacherRequest | None:
        """The request of this driver that a batch's line answers; None for one that only a dead driver knew."""
        with self._lock:
            return self._batched.pop(key, None) or self._waiting.pop(key, None)

    def _hand_on(self, ended: Sequence[tuple[TeacherRequest, LedgerRow, Checked]]) -> None:
        settled = []
        for request, row, checked in ended:
            self._attempts[request.key] = self._attempts.get(request.key, 0) + 1
            if checked.rule.fate is Fate.RETRY and self._attempts[request.key] < self._config.max_attempts:
                with self._lock:
                    self._waiting[request.key] = request
                    self._changed = time.monotonic()
            else:
                settled.append(Settled(request, row, from_ledger=False))
        if settled:
            self._on_settled(settled)

    def _pending_row(self, request: TeacherRequest) -> LedgerRow:
        known = self._ledger.get([request.key]).get(request.key)
        row = known or LedgerRow(
            request.key, "pending", request.model, request.question_id, request.round, request.body
        )
        worst = self._worst(request)
        return replace(
            row,
            outcome="pending",
            mode="batch",
            round=request.round,
            attempts=row.attempts + 1,
            sent=row.sent or time.time(),
            pending_tokens=worst.tokens,
            pending_usd=worst.usd,
        )

    def _ended_row(self, endpoint: EndpointConfig, row: LedgerRow, checked: Checked) -> LedgerRow:
        cost = cost_usd(price_of(endpoint), checked.usage or Usage(), batch=True)
        ended = row.ended(checked, cost, time.time())
        worst, paid = Spend(row.pending_usd, row.pending_tokens), ended.spend - row.spend
        if row.key in self._reserved:
            self._reserved.remove(row.key)
            self._budget.settle(worst, paid)
        else:  # a dead driver's: its worst case was counted as spent when this one began
            self._budget.settle(Spend(), paid - worst)
        return ended

    def _worst(self, request: TeacherRequest) -> Spend:
        usage = Usage(input=request.prompt_tokens, output=request.max_tokens)
        return Spend(cost_usd(price_of(self._endpoints[request.model]), usage, batch=True), request.worst_tokens)


def _line(request: TeacherRequest) -> str:
    """One line of a batch's input file."""
    head = {"custom_id": request.key, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps(head)[:-1] + f', "body": {request.body}}}\n'


def _bodies(data: bytes) -> dict[str, str]:
    lines = [json.loads(line) for line in data.splitlines()]
    return {line["custom_id"]: json.dumps(line["body"], ensure_ascii=False) for line in lines}
