"""The forecast before anything is spent: counts from the data, money from the prices, and what it assumes."""

import re

import pytest

from tailor_ray.config import RunConfig
from tailor_ray.demo.mock_server import open_teacher
from tailor_ray.layout import StageId, ledger_folder, stage_folder
from tailor_ray.ops.plan import SAMPLED_PARTS, plan, run_forecast
from tailor_ray.records import ATTEMPT_SCHEMA, Attempt, Verdict, to_table
from tailor_ray.storage import Manifest, PartsDigest, Store, commit_manifest, commit_part
from tailor_ray.tasks import grader_for, load_task
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.parts import Intake
from tailor_ray.teacher.teach import Shard, TeachJob, teach


def config(tmp_path, **teacher):
    return RunConfig(
        name="try",
        storage=str(tmp_path),
        task={"name": "arithmetic", "limit_train": 300},
        teacher={"base_url": "mock", "price": {"input": 10.0, "output": 30.0}, **teacher},
        rounds={"max_rounds": 2},
    )


def test_a_plan_shows_each_round_and_the_sum_and_says_what_it_assumes(tmp_path):
    text = plan(config(tmp_path, budget_usd=5))
    table, _, assumed = text.partition("\n\n")
    rows = [line.split() for line in table.splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "2", "all"]
    requests = [int(row[1].replace(",", "")) for row in rows]
    assert requests[0] >= 300  # a rationale for every question
    assert requests[2] == requests[0] + requests[1]
    dollars = [float(re.search(r"\$([\d.,]+)", line)[1].replace(",", "")) for line in table.splitlines()[1:]]
    assert 0 < dollars[0] < dollars[2]
    assert "teacher.budget_usd is 5" in assumed
    assert not list(tmp_path.iterdir())  # it wrote nothing


def test_plain_distillation_is_planned_without_feedback(tmp_path):
    full, settings = config(tmp_path), config(tmp_path).model_dump(exclude_unset=True)
    rounds = run_forecast(RunConfig(**settings, method="plain"), Store.open(str(tmp_path))).rounds
    assert rounds[0] == run_forecast(full, Store.open(str(tmp_path))).rounds[0]
    assert (rounds[1].requests, rounds[1].cost_usd) == (0, 0.0)


def examine(store, number, questions, wrong_share, size=None):
    """An exam whose students get so many questions wrong, each in two ways; returns its first shard.

    `size` questions a part, all in one if it is not given.
    """
    attempts = [
        Attempt(q.id, k, f"It is {k} + 1, I think. Answer: {int(q.answer) + k % 2 + 1}", "stop", "", verdict, k, 9, 9)
        for index, q in enumerate(questions)
        for verdict in [Verdict.WRONG if index < wrong_share * len(questions) else Verdict.CORRECT]
        for k in range(2)
    ]
    folder, size = stage_folder(store, StageId(number, "exam")), size or len(questions)
    tables = [to_table(attempts[at : at + 2 * size], ATTEMPT_SCHEMA) for at in range(0, len(attempts), 2 * size)]
    parts = [commit_part(folder, "attempts", index, table) for index, table in enumerate(tables)]
    digest = {"attempts": PartsDigest.of(parts)}
    commit_manifest(folder, Manifest("exam", number, "", {}, digest, 1.0, {"questions": len(questions)}))
    return parts[0], Shard(0, questions[:size], attempts[: 2 * size])


def teach_round(store, settings, teacher, number, exam):
    """The round's teaching over HTTP, committed; returns its metrics."""
    folder = stage_folder(store, StageId(number, "teach"))
    part, shard = exam
    ledger, intake = Ledger(ledger_folder(store), keep_batches=True), Intake()
    intake.put(part)
    intake.end()
    try:
        job = TeachJob(teacher, number, grader_for(settings.task), lambda _: shard)
        metrics, parts = teach(job, intake, folder, ledger)
    finally:
        ledger.close()
    commit_manifest(folder, Manifest("teach", number, "", {}, {"lessons": parts}, 2.0, metrics))
    return metrics


@pytest.mark.parametrize("wrong_share", [0.0, 0.3])
def test_after_the_first_round_the_forecast_is_within_a_quarter(tmp_path, monkeypatch, wrong_share):
    """Of requests, tokens and dollars of the next round, from nothing but what is in the run folder."""
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    settings = config(tmp_path / "runs", mode="batch", batch_poll_s=0.1, mock={"wrong_share": wrong_share})
    store = Store.open(str(tmp_path / "runs")).child("try")
    questions = list(load_task(settings.task, settings.seed).train)
    with open_teacher(settings.teacher) as teacher:
        first = teach_round(store, settings, teacher, 1, examine(store, 1, questions, 0.6))
        after = run_forecast(settings, store)
        second = teach_round(store, settings, teacher, 2, examine(store, 2, questions, 0.55))
    for name in ("requests", "input_tokens", "output_tokens", "cost_usd"):
        assert getattr(after.rounds[0], name) == first[name]
        assert getattr(after.rounds[1], name) == pytest.approx(second[name], rel=0.25), name
        assert second["forecast"][name] == pytest.approx(second[name], rel=0.25), name
    assert first["forecast"]["requests"] == first["wanted"] == len(questions)
    assert f"{second['requests']:,}" in plan(settings)
    finished = "\n".join(run_forecast(settings, store).assumptions)
    assert "round 2 counts as what it took" in finished


def test_a_long_exam_is_sampled_and_the_plan_says_so(tmp_path):
    settings = config(tmp_path / "runs")
    store = Store.open(str(tmp_path / "runs")).child("try")
    questions = list(load_task(settings.task, settings.seed).train)
    examine(store, 1, questions, 0.5, size=3)
    made = run_forecast(settings, store)
    assert f"the mistakes of round 1's exam are those of {SAMPLED_PARTS} of its 100 parts" in made.assumptions
    assert made.rounds[1].requests == pytest.approx(0.5 * 2 * len(questions), rel=0.05)
    for index in set(range(100)) - {place * 100 // SAMPLED_PARTS for place in range(SAMPLED_PARTS)}:
        stage_folder(store, StageId(1, "exam")).delete(f"attempts-{index:05d}.parquet")  # not read
    assert run_forecast(settings, store) == made
