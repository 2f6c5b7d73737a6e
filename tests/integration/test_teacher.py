"""The teaching stage end to end: Ray actors, HTTP to a mock teacher in its own process, faults, money."""

import json
import threading
from collections import Counter
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tailor_ray.config.teacher import MockConfig, PriceConfig
from tailor_ray.demo.mock_server import MockOptions, MockProcess
from tailor_ray.errors import StageError, Stopped, TeacherAccessError
from tailor_ray.records import Verdict
from tailor_ray.teacher.ledger_rows import decode, encode, table_of
from tailor_ray.teacher.parts import OPEN_PARTS
from tailor_ray.teacher.teach import Shard
from tests.integration.teaching import (
    BATCH,
    CANARY,
    SUMS,
    answered,
    cluster_knows,
    holds_no_key,
    ledger,
    lessons,
    run,
    settings,
    shards,
)

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


def most_in_flight(log):
    """Calls at once, as the server saw them."""
    calls = [json.loads(line) for line in Path(log).read_text().splitlines()]
    events = sorted((at, step) for call in calls for at, step in ((call["time"], 1), (call["ended"], -1)))
    return max(accumulate(step for _, step in events))


def test_two_rounds_through_every_accident_of_the_wire(tmp_path):
    """Nothing malformed is kept, every question is taught, and the order of arrival changes nothing."""
    told = {}
    for name, jitter, actors in (("a", 0.0, 1), ("b", 0.3, 2)):
        folder, log = tmp_path / name, tmp_path / f"{name}.jsonl"
        options = MockOptions(MockConfig(wrong_share=0.1, jitter_s=jitter, access_log=str(log)), faults=ACCIDENTS)
        with MockProcess(options) as mock:
            config = settings(mock.base_url, actors=actors, max_asks=6)  # three wrong replies in a row come to be seen
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


def test_teaching_starts_with_the_first_part_and_a_restart_asks_nothing_again(tmp_path):
    log, seen = tmp_path / "access.jsonl", []
    gate = threading.Event()

    def exam():
        for number, shard in enumerate(shards()):
            yield shard
            if number == 0:
                assert gate.wait(60), "the first part was not taught while the exam went on"

    def progress(counts):
        seen.append(counts)
        if counts.get("done", 0) >= 20:
            gate.set()

    with MockProcess(MockOptions(MockConfig(access_log=str(log)))) as mock:
        config = settings(mock.base_url)
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
    with MockProcess(MockOptions(MockConfig(access_log=str(log)))) as mock:
        config = settings(mock.base_url, **BATCH)
        first = run(tmp_path, config)
        (file,) = (tmp_path / "teacher").glob("*.parquet")
        rows = decode(pq.read_table(file))
        forged = [replace(row, reply="2 + 2 = 5") if number < 3 else row for number, row in enumerate(rows)]
        file.write_bytes(encode(table_of(row.values() for row in forged)))
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
            assert taken - done <= OPEN_PARTS + 4  # one waits to be let in, and `done` is told after a shard's end
            yield shard

    def progress(counts):
        nonlocal done
        done = counts.get("done", 0)

    with MockProcess(MockOptions(MockConfig(latency_s=0.1, access_log=str(log)))) as mock:
        metrics = run(tmp_path, settings(mock.base_url, max_in_flight=2), exam=exam(), on_progress=progress)
    assert metrics["accepted"] == taken == 40
    assert most_in_flight(log) == 2


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
    wrong = MockOptions(MockConfig(wrong_share=0.5), key="key-of-cheap", models=("cheap",))
    right = MockOptions(MockConfig(), key="key-of-dear", models=("dear",))
    with MockProcess(wrong) as cheap, MockProcess(right) as dear:
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


def test_a_budget_that_will_not_last_goes_to_the_mistakes_worth_most_of_the_whole_exam(tmp_path):
    """More parts than are taken in at a time, the worst of them last."""
    log, wrong_of = tmp_path / "access.jsonl", {}
    exam = [Shard(0, [], [])]  # says nothing of what the round will take
    for number, shard in enumerate(shards(count=60, size=2, samples=4)):
        attempts = shard.attempts
        for question in shard.questions:
            wrong_of[question.id] = wrong = 1 + number // 8
            attempts = [
                replace(a, verdict=Verdict.CORRECT) if a.question_id == question.id and a.sample >= wrong else a
                for a in attempts
            ]
        exam.append(Shard(number + 1, shard.questions, attempts))
    order = sorted(wrong_of, key=lambda name: (-wrong_of[name], name))
    with MockProcess(MockOptions(MockConfig(latency_s=0.02, access_log=str(log)))) as mock:
        price = PriceConfig(input=10.0, output=30.0)
        config = settings(mock.base_url, price=price, max_mistakes=1, max_tokens=100, max_in_flight=4)
        with pytest.raises(Stopped, match=r"teacher\.budget_usd"):
            run(tmp_path, config.model_copy(update={"budget_usd": 0.06}), 2, exam=exam, questions=60)
        asked = {name for (name,) in ledger(tmp_path, "question_id")}
        assert 10 < len(asked) < 50
        assert asked == set(order[: len(asked)])
        metrics = run(tmp_path, config.model_copy(update={"budget_usd": 5.0}), 2, exam=exam, questions=60)
    assert metrics["wanted"] == metrics["taught"] == 60
    assert max(answered(log).values()) == 1


def test_a_budget_stops_the_run_and_a_raise_goes_on(tmp_path):
    log = tmp_path / "access.jsonl"
    with MockProcess(MockOptions(MockConfig(access_log=str(log)))) as mock:
        price = PriceConfig(input=10.0, output=30.0)
        config = settings(mock.base_url, price=price, budget_usd=0.08, max_tokens=100)  # all 60 cost 0.11
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
    with MockProcess(MockOptions(faults=faults, fault_calls=10)) as mock, pytest.raises(error, match=says):
        run(tmp_path, settings(mock.base_url, **(BATCH if error is StageError else {})))
    if error is StageError:
        assert {row[0] for row in ledger(tmp_path, "outcome")} == {"refusal", "content_filter"}
        assert max(row[0] for row in ledger(tmp_path, "attempts")) == 1  # terminal: not retried


def test_the_key_is_nowhere_but_on_the_wire(tmp_path, monkeypatch):
    import ray

    key_file = tmp_path.parent / f"{tmp_path.name}-key"
    key_file.write_text(CANARY)
    with MockProcess(MockOptions(key=CANARY)) as mock:
        config = settings(mock.base_url, api_key_file=str(key_file))
        assert run(tmp_path, config)["accepted"] == 60
        assert CANARY not in repr(config) + str(config.model_dump())
        key_file.write_text(CANARY + "-wrong")
        with pytest.raises(TeacherAccessError) as refused:
            run(tmp_path, config, round_=2, out="r2")
    assert CANARY not in str(refused.value)
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    assert CANARY not in cluster_knows()
    holds_no_key(tmp_path, session / "logs")
