"""The teaching stage end to end: Ray actors, HTTP to a sandbox teacher in its own process, faults, kills, money."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import duckdb
import psutil
import pytest

from tailor_ray.config.task import TaskConfig
from tailor_ray.config.teacher import PriceConfig, SandboxConfig, TeacherConfig
from tailor_ray.errors import StageError, Stopped, TeacherAccessError
from tailor_ray.records import Attempt, Lesson, Verdict, from_table
from tailor_ray.storage import Store, committed_parts, read_part
from tailor_ray.tasks import grader_for, load_task
from tailor_ray.teacher.sandbox import SandboxOptions
from tailor_ray.teacher.sandbox_process import SandboxProcess
from tailor_ray.teacher.teach import OPEN_SHARDS, TeachJob, teach

TASK = TaskConfig(name="arithmetic")
CANARY = "sk-canary-41b7d2e9"
ACCIDENTS = (
    ("500", 0.04),
    ("reset", 0.04),
    ("html", 0.04),
    ("empty", 0.04),
    ("null_choices", 0.04),
    ("short", 0.04),
    ("no_finish", 0.04),
    ("429", 0.04),
    ("truncated", 0.04),
)

pytestmark = pytest.mark.usefixtures("ray_cluster")


def shards(count=60, size=20, samples=2):
    """Exam shards whose attempts are all wrong, so that later rounds have mistakes to give feedback on."""
    questions = list(islice(load_task(TASK, seed=1).train, count))
    for start in range(0, count, size):
        some = questions[start : start + size]
        yield (
            some,
            [
                Attempt(q.id, k, f"It is {k} + 1. Answer: {int(q.answer) + k + 1}", "stop", "", Verdict.WRONG, k, 9, 9)
                for q in some
                for k in range(samples)
            ],
        )


def settings(url, **more):
    known = {"requests_per_minute": 1e6, "max_in_flight": 32, "timeout_s": 5.0}
    return TeacherConfig(**{"base_url": url, **known, **more})


def run(tmp_path, config, round_=1, out="out", exam=None, **job):
    work = TeachJob(config, round_, grader_for(TASK), **job)
    return teach(work, exam or shards(), Store.open(str(tmp_path / out)), Store.open(str(tmp_path / "teacher")))


def lessons(tmp_path, out="out"):
    store = Store.open(str(tmp_path / out))
    return [
        lesson for part in committed_parts(store, "lessons") for lesson in from_table(read_part(store, part), Lesson)
    ]


def answered(log):
    lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
    return Counter(line["request"] for line in lines if line["outcome"] in ("answered", "wrong"))


def ledger(tmp_path, query):
    return duckdb.sql(f"select {query} from '{tmp_path}/teacher/*.parquet'").fetchall()


def newest_teacher_actor():
    """An earlier test's may still be there."""
    named = [(p.info["create_time"], p) for p in psutil.process_iter(["cmdline", "create_time"]) if p.info["cmdline"]]
    return max(((at, p.pid, p) for at, p in named if p.info["cmdline"][0].startswith("ray::TeacherActor")))[2]


def test_two_rounds_through_every_accident_of_the_wire(tmp_path):
    """Nothing malformed is kept, every question is taught, and the order of arrival changes nothing."""
    told = {}
    for name, jitter, actors in (("a", 0.0, 1), ("b", 0.3, 2)):
        folder, log = tmp_path / name, tmp_path / f"{name}.jsonl"
        options = SandboxOptions(SandboxConfig(wrong_share=0.1, jitter_s=jitter, access_log=str(log)), faults=ACCIDENTS)
        with SandboxProcess(options) as sandbox:
            config = settings(sandbox.base_url, actors=actors)
            first = run(folder, config, 1, "r1")
            second = run(
                folder, config, 2, "r2", taught=frozenset(lesson.question_id for lesson in lessons(folder, "r1"))
            )
        assert first["accepted"] == 60
        assert first["requests"] == first["accepted"] + first["rejected"] + first["failed"]
        assert first["rejected"] >= 1
        assert "wrong_answer" in first["reasons"]
        assert (second["wanted"], second["taught"]) == (120, 120)
        assert max(answered(log).values()) == 1
        told[name] = (lessons(folder, "r1"), lessons(folder, "r2"))
        assert all(lesson.feedback and lesson.mistake for lesson in told[name][1])
        assert {row[0] for row in ledger(folder, "outcome")} == {"answered"}
        assert ledger(folder, "count(*), count(distinct key), max(attempts)")[0][2] >= 2
        assert ledger(folder, "count(*)")[0][0] == sum(answered(log).values())
    assert told["a"] == told["b"]


def test_teaching_starts_with_the_first_shard_and_a_restart_asks_nothing_again(tmp_path):
    log, seen = tmp_path / "access.jsonl", []
    gate = threading.Event()

    def exam():
        for number, shard in enumerate(shards()):
            yield shard
            if number == 0:
                assert gate.wait(60), "the first shard was not taught while the exam went on"

    def progress(counts):
        seen.append(counts)
        if counts.get("done", 0) >= 20:
            gate.set()

    with SandboxProcess(SandboxOptions(SandboxConfig(access_log=str(log)))) as sandbox:
        config = settings(sandbox.base_url)
        first = run(tmp_path, config, exam=exam(), on_progress=progress)
        calls = sum(answered(log).values())
        assert run(tmp_path, config) == first  # from the committed parts
        again = run(tmp_path, config, out="elsewhere")  # from the ledger
    assert again["from_ledger"] == again["requests"] == first["requests"]
    assert (again["cost_usd"], again["accepted"]) == (first["cost_usd"], first["accepted"])
    assert sum(answered(log).values()) == calls
    assert seen[-1]["done"] == 60


def test_the_exam_waits_for_a_slower_teacher(tmp_path):
    taken, done = 0, 0

    def exam():
        nonlocal taken
        for shard in shards(count=40, size=1):
            taken += 1
            assert taken - done <= OPEN_SHARDS + 4  # one waits at the gate, and `done` is told after a shard's end
            yield shard

    def progress(counts):
        nonlocal done
        done = counts.get("done", 0)

    with SandboxProcess(SandboxOptions(SandboxConfig(latency_s=0.1))) as sandbox:
        metrics = run(tmp_path, settings(sandbox.base_url, max_in_flight=2), exam=exam(), on_progress=progress)
    assert metrics["accepted"] == taken == 40


def test_a_killed_actor_is_replaced_and_its_leases_are_given_to_another(tmp_path):
    log = tmp_path / "access.jsonl"

    def strike():
        while not log.exists() or sum(answered(log).values()) < 15:
            time.sleep(0.05)
        newest_teacher_actor().kill()

    with SandboxProcess(SandboxOptions(SandboxConfig(latency_s=0.4, access_log=str(log)))) as sandbox:
        killer = threading.Thread(target=strike)
        killer.start()
        metrics = run(tmp_path, settings(sandbox.base_url, actors=2, max_in_flight=16))
        killer.join()
    assert metrics["accepted"] == 60
    twice = [key for key, number in answered(log).items() if number > 1]
    assert max(answered(log).values()) <= 2
    assert len(twice) <= 8  # one actor's share of the calls in flight
    lost = ledger(tmp_path, "count(*) filter (attempts > 1), sum(lost_tokens)")[0]
    assert 1 <= lost[0] <= 8 + 6
    assert lost[1] > 0  # both calls are counted, the lost one at its worst


def test_a_killed_driver_pays_for_nothing_twice_but_what_was_in_flight(tmp_path):
    log = tmp_path / "access.jsonl"
    with SandboxProcess(SandboxOptions(SandboxConfig(latency_s=0.3, access_log=str(log)))) as sandbox:
        script = textwrap.dedent(
            f"""
            import ray
            from pathlib import Path
            from tests.integration.test_teacher import run, settings
            ray.init(address="local", num_cpus=1, object_store_memory=100_000_000, include_dashboard=False)
            run(Path({str(tmp_path)!r}), settings({sandbox.base_url!r}, max_in_flight=8))
            """
        )
        env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        driver = subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.DEVNULL)
        while not log.exists() or sum(answered(log).values()) < 25:
            assert driver.poll() is None, "the driver ended by itself"
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        time.sleep(2.0)  # what was on its way is answered
        before = answered(log)
        metrics = run(tmp_path, settings(sandbox.base_url, max_in_flight=8))
    assert metrics["accepted"] == 60
    assert metrics["from_ledger"] >= 15
    after = answered(log)
    assert sum(number - 1 for number in after.values()) <= 8 + 6  # in flight, or on their way to an actor
    assert len(before) < len(after) == 60
    assert ledger(tmp_path, "count(*)")[0][0] == 60


def test_a_budget_stops_the_run_and_a_raise_goes_on(tmp_path):
    log = tmp_path / "access.jsonl"
    with SandboxProcess(SandboxOptions(SandboxConfig(access_log=str(log)))) as sandbox:
        price = PriceConfig(input=10.0, output=30.0)
        config = settings(sandbox.base_url, price=price, budget_usd=0.08, max_tokens=100)  # all 60 cost 0.11
        with pytest.raises(Stopped, match=r"teacher\.budget_usd"):
            run(tmp_path, config)
        spent = ledger(tmp_path, "sum(cost_usd)")[0][0]
        assert 0.05 < spent <= 0.08
        metrics = run(tmp_path, config.model_copy(update={"budget_usd": 1.0}))
    assert sum(answered(log).values()) == 60  # what the first try paid for was not asked again
    assert metrics["forecast"]["requests"] == 60
    assert 0.3 < metrics["forecast"]["input_tokens"] / metrics["input_tokens"] < 3
    assert metrics["accepted"] == 60
    assert max(answered(log).values()) == 1
    assert metrics["cost_usd"] == pytest.approx(ledger(tmp_path, "sum(cost_usd)")[0][0])


@pytest.mark.parametrize(
    ("faults", "error", "says"),
    [
        ((("quota", 1.0),), Stopped, "quota"),
        ((("401", 1.0),), TeacherAccessError, "teacher.api_key_env"),
        ((("refusal", 0.5), ("content_filter", 0.5)), StageError, "min_accepted_share"),
    ],
)
def test_what_ends_a_round_says_why(tmp_path, faults, error, says):
    with SandboxProcess(SandboxOptions(faults=faults, fault_calls=10)) as sandbox, pytest.raises(error, match=says):
        run(tmp_path, settings(sandbox.base_url))
    if error is StageError:
        assert {row[0] for row in ledger(tmp_path, "outcome")} == {"refusal", "content_filter"}
        assert max(row[0] for row in ledger(tmp_path, "attempts")) == 1  # terminal: not retried


def test_the_key_is_nowhere_but_on_the_wire(tmp_path, monkeypatch):
    import ray

    key_file = tmp_path.parent / f"{tmp_path.name}-key"
    key_file.write_text(CANARY)
    with SandboxProcess(SandboxOptions(key=CANARY)) as sandbox:
        config = settings(sandbox.base_url, api_key_file=str(key_file))
        assert run(tmp_path, config)["accepted"] == 60
        assert CANARY not in repr(config) + str(config.model_dump())
        key_file.write_text(CANARY + "-wrong")
        with pytest.raises(TeacherAccessError) as refused:
            run(tmp_path, config, round_=2, out="r2")
    assert CANARY not in str(refused.value)
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    for folder in (tmp_path, session / "logs"):
        for file in folder.rglob("*"):
            if file.is_file():
                assert CANARY.encode() not in file.read_bytes(), file
