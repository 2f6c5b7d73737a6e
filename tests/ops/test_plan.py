"""The forecast before anything is spent: counts from the data, money from the prices, and what it assumes."""

import re

from tailor_ray.config import RunConfig
from tailor_ray.ops.plan import plan, run_forecast
from tailor_ray.storage import Manifest, Store, commit_manifest


def config(tmp_path, **teacher):
    return RunConfig(
        name="try",
        storage=str(tmp_path),
        task={"name": "arithmetic", "limit_train": 300},
        teacher={"base_url": "sandbox", "price": {"input": 10.0, "output": 30.0}, **teacher},
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


def test_the_last_exam_takes_the_place_of_an_assumed_share_of_mistakes(tmp_path):
    settings = config(tmp_path)
    store = Store.open(str(tmp_path)).child("try")
    before = run_forecast(settings, store).rounds[1].requests
    exam = store.child("rounds", "01", "exam")
    commit_manifest(exam, Manifest("exam", 1, "", {}, (), 1.0, {"attempts": 1000, "wrong": 10}))
    assert 0 < run_forecast(settings, store).rounds[1].requests < before
