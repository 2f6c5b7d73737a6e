"""What the teaching stage's tests share: an exam's shards, a round of teaching, and what is left of it."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from tailor_ray.config.task import TaskConfig
from tailor_ray.config.teacher import TeacherConfig
from tailor_ray.records import Attempt, Lesson, Verdict, from_table
from tailor_ray.storage import FileEntry, Part, Store, committed_parts, read_part
from tailor_ray.tasks import grader_for, load_task
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.parts import Intake
from tailor_ray.teacher.teach import Shard, TeachJob, teach

TASK = TaskConfig(name="arithmetic")
CANARY = "sk-canary-41b7d2e9"


def shards(count=60, size=20, samples=2):
    """Parts of an exam whose attempts are all wrong, so that later rounds have mistakes to give feedback on."""
    questions = list(islice(load_task(TASK, seed=1).train, count))
    for index, start in enumerate(range(0, count, size)):
        some = questions[start : start + size]
        yield Shard(
            index,
            some,
            [
                Attempt(q.id, k, f"It is {k} + 1. Answer: {int(q.answer) + k + 1}", "stop", "", Verdict.WRONG, k, 9, 9)
                for q in some
                for k in range(samples)
            ],
        )


def parts(exam):
    """Their records, for a job that reads its shards from memory."""
    return [Part(index, FileEntry(f"attempts-{index:05d}.parquet", "", 0), {}) for index in range(len(exam))]


BATCH = {"mode": "batch", "batch_poll_s": 0.1}  # no actors: faster where it is not they that matter


def settings(url, **more):
    known = {"requests_per_minute": 1e6, "max_in_flight": 32, "timeout_s": 5.0}
    return TeacherConfig(**{"base_url": url, **known, **more})


def run(tmp_path, config, round_=1, out="out", exam=None, taught=frozenset(), **job):
    """A round as a run of its own makes it, its ledger opened and closed; returns its metrics."""
    came, intake = {}, Intake()

    def read(part):
        return replace(came.pop(part.index), taught=taught)

    work = TeachJob(config, round_, grader_for(TASK), read, **job)
    ledger = Ledger(Store.open(str(tmp_path / "teacher")), keep_batches=config.mode == "batch")
    try:
        with intake.teaching(lambda: teach(work, intake, Store.open(str(tmp_path / out)), ledger)) as teaching:
            for shard in exam or shards():
                came[shard.index] = shard
                intake.put(Part(shard.index, FileEntry(f"attempts-{shard.index:05d}.parquet", "", 0), {}))
            intake.end()
            return teaching.result()[0]
    finally:
        ledger.close()


def lessons(tmp_path, out="out"):
    store = Store.open(str(tmp_path / out))
    return [
        lesson for part in committed_parts(store, "lessons") for lesson in from_table(read_part(store, part), Lesson)
    ]


def answered(log):
    """How often each request was answered, and would have been billed, whether or not somebody was there to hear."""
    lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
    return Counter(
        line["request"] for line in lines if line["outcome"] in ("answered", "wrong", "client_gone", "no_finish")
    )


SUMS = "model, count(*), sum(input_tokens), sum(output_tokens), sum(cost_usd), sum(reasoning_tokens)"


def ledger(tmp_path, query, rest=""):
    return duckdb.sql(f"select {query} from '{tmp_path}/teacher/*.parquet' {rest}").fetchall()


def cluster_knows():
    """What the cluster says of its jobs and actors, to the dashboard and to whoever asks."""
    import ray

    return f"{ray._private.worker.global_worker.gcs_client.get_all_job_info()}{ray._private.state.actors()}"


def holds_no_key(*folders):
    for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
        data = file.read_bytes()
        if file.suffix == ".parquet":  # compressed
            data += repr(pq.read_table(file).to_pylist()).encode()
        assert CANARY.encode() not in data, file
