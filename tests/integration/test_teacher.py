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
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path

import duckdb
import psutil
import pyarrow.parquet as pq
import pytest

from tailor_ray.config.task import TaskConfig
from tailor_ray.config.teacher import PriceConfig, SandboxConfig, TeacherConfig
from tailor_ray.errors import StageError, Stopped, TeacherAccessError
from tailor_ray.records import Attempt, Lesson, Verdict, from_table
from tailor_ray.storage import Store, committed_parts, read_part
from tailor_ray.tasks import grader_for, load_task
from tailor_ray.teacher.ledger_files import decode, encode
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


BATCH = {"mode": "batch", "batch_poll_s": 0.1}  # no actors: faster where it is not they that matter


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
    """How often each request was answered, and would have been billed, whether or not somebody was there to hear."""
    lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
    return Counter(line["request"] for line in lines if line["outcome"] in ("answered", "wrong", "client_gone"))


SUMS = "model, count(*), sum(input_tokens), sum(output_tokens), sum(cost_usd), sum(reasoning_tokens)"


def ledger(tmp_path, query, rest=""):
    return duckdb.sql(f"select {query} from '{tmp_path}/teacher/*.parquet' {rest}").fetchall()


def most_in_flight(log):
    """Calls at once, as the server saw them."""
    calls = [json.loads(line) for line in Path(log).read_text().splitlines()]
    events = sorted((at, step) for call in calls for at, step in ((call["time"], 1), (call["ended"], -1)))
    return max(accumulate(step for _, step in events))


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
        other_order = reversed(list(shards(size=7)))
        again = run(tmp_path, config, out="elsewhere", exam=other_order)  # from the ledger
    assert again["from_ledger"] == again["requests"] == first["requests"]
    assert (again["cost_usd"], again["accepted"]) == (first["cost_usd"], first["accepted"])
    assert sum(answered(log).values()) == calls
    assert seen[-1]["done"] == 60


def test_a_damaged_row_is_asked_again_and_the_loss_is_said(tmp_path, caplog):
    log = tmp_path / "access.jsonl"
    with SandboxProcess(SandboxOptions(SandboxConfig(access_log=str(log)))) as sandbox:
        config = settings(sandbox.base_url, **BATCH)
        first = run(tmp_path, config)
        (file,) = (tmp_path / "teacher").glob("*.parquet")
        rows = decode(pq.read_table(file))
        forged = [replace(row, reply="2 + 2 = 5") if number < 3 else row for number, row in enumerate(rows)]
        file.write_bytes(encode(forged))
        again = run(tmp_path, config, out="elsewhere")
    assert again["from_ledger"] == first["requests"] - 3
    assert [row.key for row in rows[:3]] == [key for row in rows for key in [row.key] if answered(log)[key] == 2]
    assert "3 rows of the ledger file" in caplog.text
    assert lessons(tmp_path, "elsewhere") == lessons(tmp_path)


def test_the_exam_waits_for_a_slower_teacher(tmp_path):
    taken, done, log = 0, 0, tmp_path / "access.jsonl"

    def exam():
        nonlocal taken
        for shard in shards(count=40, size=1):
            taken += 1
            assert taken - done <= OPEN_SHARDS + 4  # one waits at the gate, and `done` is told after a shard's end
            yield shard

    def progress(counts):
        nonlocal done
        done = counts.get("done", 0)

    with SandboxProcess(SandboxOptions(SandboxConfig(latency_s=0.1, access_log=str(log)))) as sandbox:
        metrics = run(tmp_path, settings(sandbox.base_url, max_in_flight=2), exam=exam(), on_progress=progress)
    assert metrics["accepted"] == taken == 40
    assert most_in_flight(log) == 2


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


DRIVER = """
import os
import ray
from pathlib import Path
from tests.integration.test_teacher import cluster_knows, run, settings
ray.init(address="local", num_cpus=1, object_store_memory=100_000_000, include_dashboard=False)
print(ray._private.worker.global_worker.node.get_session_dir_path(), flush=True)
assert os.environ["CANARY_KEY"] not in cluster_knows()
run(Path({folder!r}), settings({url!r}, max_in_flight=8, api_key_env="CANARY_KEY"))
"""


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


def test_a_killed_driver_pays_for_nothing_twice_but_what_was_in_flight(tmp_path):
    """Its key comes from the environment, and is nowhere when it is dead."""
    log, key_file = tmp_path / "access.jsonl", tmp_path.parent / f"{tmp_path.name}-key"
    key_file.write_text(CANARY)
    options = SandboxOptions(SandboxConfig(latency_s=0.3, access_log=str(log)), key=CANARY)
    with SandboxProcess(options) as sandbox:
        script = DRIVER.format(folder=str(tmp_path), url=sandbox.base_url)
        env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "CANARY_KEY": CANARY}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        driver = subprocess.Popen([sys.executable, "-c", script], env=env, **pipe)
        session = Path(driver.stdout.readline().strip())
        while not log.exists() or sum(answered(log).values()) < 25:
            assert driver.poll() is None, "the driver ended by itself"
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        time.sleep(2.0)  # what was on its way is answered
        before = answered(log)
        metrics = run(tmp_path, settings(sandbox.base_url, max_in_flight=8, api_key_file=str(key_file)))
    assert metrics["accepted"] == 60
    assert metrics["from_ledger"] >= 15
    after = answered(log)
    assert sum(number - 1 for number in after.values()) <= 8 + 6  # in flight, or replies on their way to the ledger
    assert len(before) < len(after) == 60
    assert ledger(tmp_path, "count(*)")[0][0] == 60
    assert (session / "logs").is_dir()
    holds_no_key(tmp_path, session / "logs")


def test_a_driver_killed_while_a_batch_is_pending_submits_nothing_twice(tmp_path):
    log = tmp_path / "access.jsonl"
    with SandboxProcess(SandboxOptions(SandboxConfig(latency_s=2.0, access_log=str(log)))) as sandbox:
        config = settings(sandbox.base_url, **BATCH)
        script = textwrap.dedent(
            f"""
            from pathlib import Path
            from tests.integration.test_teacher import BATCH, run, settings
            run(Path({str(tmp_path)!r}), settings({sandbox.base_url!r}, **BATCH))
            """
        )
        env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        driver = subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.DEVNULL)
        while not any(json.loads(file.read_text())["batch"] for file in (tmp_path / "teacher").glob("batches/*.json")):
            assert driver.poll() is None, "the driver ended by itself"
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        metrics = run(tmp_path, config)
    assert metrics["accepted"] == 60
    assert list(answered(log).values()) == [1] * 60
    assert ledger(tmp_path, "count(*), max(attempts), sum(lost_tokens)") == [(60, 1, 0)]


CHOKED = """
import json, os, resource, threading, time
from pathlib import Path
from tests.integration.test_teacher import BATCH, run, settings
folder = Path({folder!r})

def choke():
    while not any(json.loads(file.read_text())["batch"] for file in (folder / "teacher").glob("batches/*.json")):
        time.sleep(0.02)
    (log,) = Path(os.environ["TAILOR_RAY_CACHE"]).glob("ledgers/*-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 4096, resource.RLIM_INFINITY))

threading.Thread(target=choke, daemon=True).start()
run(folder, settings({url!r}, **BATCH))
"""


def test_a_full_disk_stops_the_round_loudly_and_with_space_nothing_is_paid_twice(tmp_path):
    """RLIMIT_FSIZE makes the ledger's writes fail as a full disk does, when the replies are already paid for."""
    log, cache = tmp_path / "access.jsonl", tmp_path / "cache"
    with SandboxProcess(SandboxOptions(SandboxConfig(latency_s=1.0, access_log=str(log)))) as sandbox:
        script = CHOKED.format(folder=str(tmp_path), url=sandbox.base_url)
        env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "TAILOR_RAY_CACHE": str(cache)}
        ended = subprocess.run([sys.executable, "-c", script], env=env, check=False, capture_output=True, text=True)
        assert ended.returncode == 1
        assert "make space there, or point TAILOR_RAY_CACHE at another local disk" in ended.stderr
        assert sum(answered(log).values()) == 60
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TAILOR_RAY_CACHE", str(cache))
            metrics = run(tmp_path, settings(sandbox.base_url, **BATCH))
    assert (metrics["accepted"], sum(answered(log).values())) == (60, 60)


def two_teachers(tmp_path, cheap, dear, **more):
    """Two endpoints, each with a key, a price and parameters of its own."""
    for name in ("cheap", "dear"):
        (tmp_path.parent / f"{tmp_path.name}-{name}").write_text(f"key-of-{name}")
    other = {
        "base_url": dear.base_url,
        "model": "dear",
        "api_key_file": f"{tmp_path.parent}/{tmp_path.name}-dear",
        "price": {"input": 10.0, "output": 30.0},
        "requests_per_minute": 1e6,
        "max_in_flight": 4,
        "temperature": None,
        "cap_parameter": "max_completion_tokens",
        "reasoning_effort": "low",
    }
    own = {"model": "cheap", "api_key_file": f"{tmp_path.parent}/{tmp_path.name}-cheap"}
    return settings(cheap.base_url, **own, price={"input": 1.0, "output": 2.0}, also=(other,), **more)


def test_several_teachers_each_with_its_own_key_price_and_parameters(tmp_path):
    """A server refuses any key but its own, and any model but its own."""
    wrong = SandboxOptions(SandboxConfig(wrong_share=0.5), key="key-of-cheap", models=("cheap",))
    right = SandboxOptions(SandboxConfig(), key="key-of-dear", models=("dear",))
    with SandboxProcess(wrong) as cheap, SandboxProcess(right) as dear:
        cascade = run(tmp_path, two_teachers(tmp_path, cheap, dear, max_asks=1))
        took = {model: rest for model, *rest in ledger(tmp_path, SUMS, "group by model")}
        committee = two_teachers(tmp_path, cheap, dear, arrangement="committee", peer_scores=True, **BATCH)
        run(tmp_path / "c", committee)
    assert (cascade["wanted"], cascade["taught"]) == (60, 60)
    assert took["cheap"][0] == 60
    assert took["dear"][0] == cascade["rejected"] > 10  # what the first failed at
    assert took["dear"][4] == 32 * took["dear"][0] > took["cheap"][4] == 0  # reasoning, a part of the output
    assert took["cheap"][3] == pytest.approx((took["cheap"][1] + 2 * took["cheap"][2]) / 1e6)
    assert took["dear"][3] == pytest.approx((10 * took["dear"][1] + 30 * took["dear"][2]) / 1e6)
    written = Counter(lesson.model for lesson in lessons(tmp_path / "c"))
    assert set(written) == {"cheap", "dear"}
    scores = dict(ledger(tmp_path / "c", "model, count(*) filter (request like '%<reasoning>%')", "group by model"))
    assert scores["cheap"] == 60  # of the other's, and the other way round where a lesson was accepted
    assert scores["dear"] >= written["cheap"]


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
        run(tmp_path, settings(sandbox.base_url, **(BATCH if error is StageError else {})))
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
    assert CANARY not in cluster_knows()
    holds_no_key(tmp_path, session / "logs")
