"""The charts' data: what is left out, and how curves of several rounds follow each other."""

from tailor_ray.observe.page_data import MAX_POINTS, loss_points, read_losses, run_charts
from tailor_ray.observe.report import page_file
from tailor_ray.observe.summary import load_run, step_count, summarize
from tests.observe.runs import make_run


def steps(first, count):
    return [{"step": first + at, "loss": float(at), "mle": None if at == 1 else 1.0} for at in range(count)]


def test_curves_follow_each_other_whether_steps_count_from_0_or_1():
    for first in (0, 1):
        assert step_count(steps(first, 5)) == 5
        assert [point["x"] for point in loss_points(steps(first, 5), "loss", 0)] == [1, 2, 3, 4, 5]
        assert [point["x"] for point in loss_points(steps(first, 3), "mle", 5)] == [6, 8]  # a missing value is a gap
    assert step_count([]) == 0


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", rounds=1, questions=4)
    monkeypatch.setattr("tailor_ray.observe.page_data.MAX_POINTS", 20)
    (curve,) = read_losses(load_run(run)).values()
    assert len(curve) <= 21 < MAX_POINTS
    assert (curve[0]["step"], curve[-1]["step"]) == (1, 150)


def test_charts_without_data_are_left_out(tmp_path):
    record = load_run(make_run(tmp_path / "run", rounds=0))
    assert set(run_charts(summarize(record), {})) == {"accuracy", "time"}


def test_a_term_that_was_not_trained_on_has_no_curve(tmp_path):
    record = load_run(make_run(tmp_path / "run", rounds=1, questions=8))
    losses = {1: [{"step": at, "loss": 1.0 / at, "mle": 1.0 / at, "reflection": 0.0} for at in (1, 2)]}
    series = run_charts(summarize(record), losses)["loss"]["series"]
    assert [one["name"] for one in series] == ["total", "learning from the teacher"]


def test_every_stage_has_a_colour_of_its_own(tmp_path):
    record = load_run(make_run(tmp_path / "run", rounds=1, questions=8))
    parts = run_charts(summarize(record), {})["time"]["rows"][1]["parts"]
    assert [part["name"] for part in parts if part["value"]][2:4] == ["examples", "train"]
    style = page_file("style.css")
    assert len({part["color"] for part in parts}) == 7
    assert all(f".{part['color']} {{" in style for part in parts)


def test_rejected_requests_are_shown_by_reason(tmp_path):
    record = load_run(make_run(tmp_path / "run", rounds=2, questions=8))
    charts = run_charts(summarize(record), read_losses(record))
    parts = charts["reasons"]["rows"][1]["parts"]
    assert [(part["name"], part["value"]) for part in parts] == [("malformed", 4), ("wrong answer", 8)]
    assert [mark["x"] for mark in charts["loss"]["x"]["marks"]] == [1, 151]
