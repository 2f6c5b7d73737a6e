"""The intake hands parts on in order, holds the exam back, and lets neither side wait for a dead one."""

import signal
import threading
import time

import pytest

from tailor_ray.errors import Stopped
from tailor_ray.storage import FileEntry, Part
from tailor_ray.teacher.parts import Abandoned, End, Intake

PARTS = [Part(index, FileEntry(f"rows-{index}", "", 0), {}) for index in range(6)]


def take_all(intake):
    """Each part answered as soon as it is taken; returns their numbers."""
    taken = []
    while (event := intake.take()) is not End.OF_EXAM:
        taken.append(event.index)
        intake.leave()
    return taken


def test_parts_arrive_in_order_and_the_result_comes_back():
    intake = Intake()
    with intake.teaching(lambda: take_all(intake)) as teaching:
        for part in PARTS:
            intake.put(part)
        intake.end()
        assert teaching.result() == [0, 1, 2, 3, 4, 5]


def put_all(intake, put):
    for part in PARTS:
        intake.put(part)
        put.append(part.index)
    intake.end()


def test_a_part_is_inside_until_it_is_wholly_answered():
    intake, answer = Intake(room=2), threading.Semaphore(0)

    def slow():
        taken = 0
        while intake.take() is not End.OF_EXAM:
            taken += 1
            answer.acquire()
            intake.leave()
        return taken

    with intake.teaching(slow) as teaching:
        put = []
        exam = threading.Thread(target=put_all, args=(intake, put))
        exam.start()
        for answered in range(3):
            time.sleep(0.2)
            assert len(put) == 2 + answered
            answer.release()
        answer.release(3)
        assert teaching.result() == 6
        exam.join()


@pytest.mark.parametrize("opened", [True, False])
def test_no_bound_when_it_is_opened_or_from_the_start(opened):
    intake, put = Intake(room=1) if opened else Intake(room=None), []
    exam = threading.Thread(target=put_all, args=(intake, put))
    exam.start()
    if opened:
        time.sleep(0.2)
        assert put == [0]
        intake.open()
    exam.join(10)
    assert len(put) == 6


def test_telling_never_blocks_and_keeps_its_turn():
    intake = Intake(room=1)
    intake.put(PARTS[0])
    for _ in range(100):
        intake.tell([])
    intake.end()
    assert [intake.take() for _ in range(102)] == [PARTS[0], *[[]] * 100, End.OF_EXAM]


def test_the_teachings_error_reaches_an_exam_that_is_blocked():
    intake = Intake(room=1)

    def broke():
        intake.take()
        raise Stopped("the budget is used up")

    def examine():
        with intake.teaching(broke):
            for part in PARTS:
                intake.put(part)
            pytest.fail("the exam never heard of it")

    with pytest.raises(Stopped, match="budget"):
        examine()
    with pytest.raises(Stopped, match="budget"):
        intake.put(PARTS[0])


def test_the_teachings_error_is_raised_when_its_result_is_asked_for():
    intake = Intake()
    with intake.teaching(lambda: 1 / len(take_all(intake))) as teaching:
        intake.end()
        with pytest.raises(ZeroDivisionError):
            teaching.result()


def test_a_pools_error_comes_before_all_that_waits():
    intake = Intake()
    with intake.teaching(lambda: take_all(intake)) as teaching:
        intake.tell(Stopped("the quota is used up"))
        with pytest.raises(Stopped, match="quota"):
            teaching.result()


def test_the_exams_error_ends_a_teaching_that_waits():
    intake, seen = Intake(), []

    def wait():
        try:
            seen.append(intake.take())
            intake.take()
        except Abandoned as error:
            seen.append(error)
            raise

    started = []

    def examine():
        with intake.teaching(wait) as teaching:
            started.append(teaching)
            intake.put(PARTS[0])
            raise ValueError("engine died")

    with pytest.raises(ValueError, match="engine"):
        examine()
    assert not started[0].is_alive()
    assert seen[-1].__cause__.args == ("engine died",)
    with pytest.raises(Abandoned, match="engine died"):
        started[0].result()


def test_a_signal_is_handled_while_the_result_is_waited_for():
    intake, heard = Intake(), []
    before = signal.signal(signal.SIGUSR1, lambda *_: (heard.append(1), intake.end()))
    try:
        with intake.teaching(lambda: take_all(intake)) as teaching:
            threading.Timer(0.3, signal.raise_signal, [signal.SIGUSR1]).start()
            assert teaching.result() == []
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [1]
