"""What a person reads while stages run: lines in a log, bars on a terminal."""

import io
import re
import threading
import time

import pytest

from tailor_ray.observe.progress import Bar, Progress, duration, rate_text


def test_log_shows_a_line_every_period_for_each_stage():
    stream = io.StringIO()
    with (
        Progress(log_every_s=0.05, stream=stream) as progress,
        progress.stage("round 1 exam", total=400, unit="samples") as exam,
        progress.stage("round 1 teach", total=100, unit="requests") as teach,
    ):
        for _ in range(10):
            exam.advance(20)
            teach.advance(5)
            time.sleep(0.02)
    lines = stream.getvalue().splitlines()
    running = [line for line in lines if "round 1 exam: " in line and "done" not in line]
    assert len(running) >= 2
    assert "/400 (" in running[-1]
    assert "samples/s, " in running[-1]
    assert running[-1].endswith(" left")
    assert any("round 1 teach: " in line and "requests/s" in line for line in lines)
    assert [line.partition(" in ")[0] for line in lines[-2:]] == [
        "round 1 teach: done, 50 requests",
        "round 1 exam: done, 200 samples",
    ]


def test_a_failed_stage_says_stopped_and_lets_the_error_through():
    stream = io.StringIO()

    def fail():
        with Progress(stream=stream) as progress, progress.stage("round 2 train", total=10, unit="steps") as bar:
            bar.advance(3)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert "round 2 train: stopped, 3 steps in" in stream.getvalue()


def test_terminal_shows_bars_rate_time_left_and_lines_above_them():
    stream = io.StringIO()
    with (
        Progress(stream=stream, live=True) as progress,
        progress.stage("round 1 exam", total=100, unit="samples") as bar,
    ):
        deadline = time.monotonic() + 60
        for done in range(10, 60, 10):
            bar.advance(10)
            while f"{done}/100 samples" not in stream.getvalue():  # drawn by a thread of its own
                assert time.monotonic() < deadline
                time.sleep(0.02)
        progress.say("a remark with [brackets]")
    text = stream.getvalue()
    assert "━" in text
    assert "left" in text
    assert "a remark with [brackets]" in text
    assert "round 1 exam: done, 50 samples in" in text


def test_advance_is_exact_from_many_threads():
    bar = Bar("stage", None, "rows")
    threads = [threading.Thread(target=lambda: [bar.advance() for _ in range(5_000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bar.done == 40_000


def test_work_found_done_on_resume_is_no_speed():
    bar = Bar("stage", 1_000, "rows")
    bar.found(900)
    assert bar.rate() == 0.0
    assert bar.seconds_left() is None
    time.sleep(0.05)
    bar.advance(5)
    assert 0 < bar.rate() < 5 / 0.05 + 1
    assert bar.seconds_left() == pytest.approx(95 / bar.rate(), rel=0.2)


def test_total_may_come_late():
    bar = Bar("stage", None, "rows")
    bar.advance(2)
    assert "so far" in bar.line()
    bar.update(total=4, note="one engine restarted")
    assert "2/4 (50%) rows" in bar.line()
    assert bar.line().endswith("one engine restarted")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7_500, "2 h 05 min"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(1234.6, "1,235 x/s"), (12.34, "12.3 x/s"), (0.5, "0.5 x/s"), (0.022, "45 s each"), (0, "0 x/s")]
)
def test_rates_read_well(rate, text):
    assert rate_text(rate, "x") == text


def test_a_count_that_is_set_has_a_rate():
    bar = Bar("stage", 100, "steps")
    for done in (10, 20, 30):
        time.sleep(0.03)
        bar.update(done=done)
    assert bar.done == 30
    assert 30 / 1.0 < bar.rate() <= 30 / 0.09


def test_the_rate_of_slow_steps_does_not_jump():
    """A step of 15 s, asked for and set each second; the first one waits for a minute of preparations."""
    now = 0.0
    bar = Bar("stage", 50, "steps", clock=lambda: now)
    now = 60.0
    for second in range(20 * 15):
        now += 1
        bar.update(done=second // 15)
        assert second // 15 < 9 or 13 < 1 / bar.rate() < 18


def test_a_count_that_goes_down_has_no_negative_rate():
    """A step that is done again after a checkpoint, or a shard that is asked again."""
    bar = Bar("stage", 100, "steps")
    bar.update(done=60)
    time.sleep(0.03)
    before = bar.rate()
    bar.update(done=10)
    assert 0 < bar.rate() <= before
    bar.advance(-10)
    assert bar.rate() > 0
    assert bar.done == 0
    bar.advance(5)
    assert bar.seconds_left() == pytest.approx(95 / bar.rate(), rel=0.2)


def test_the_last_line_has_the_pace_of_what_was_worked():
    stream = io.StringIO()
    with Progress(stream=stream) as progress, progress.stage("round 1 exam", total=1_000, unit="samples") as bar:
        bar.found(900)
        time.sleep(0.1)
        bar.advance(10)
    pace = re.search(r"done, 910 samples in .*, ([\d.]+) samples/s", stream.getvalue())
    assert float(pace[1]) <= 100
