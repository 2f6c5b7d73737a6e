"""The stage without a network: a pool that answers at once. Parts in any order, restarts, and what is counted."""

import random
from dataclasses import replace

import pytest

from tailor_ray.errors import CorruptionError, StageError, Stopped
from tailor_ray.layout import LESSONS, LOG, REQUESTS
from tailor_ray.records import Lesson, from_table
from tailor_ray.storage import PartsDigest, Store, committed_parts, read_part
from tailor_ray.tasks import grader_for
from tailor_ray.teacher.dispatch import Settled
from tailor_ray.teacher.ledger_rows import LedgerFiles, LedgerRow
from tailor_ray.teacher.parts import Intake
from tailor_ray.teacher.teach import Shard, TeachJob, teach
from tests.integration.teaching import TASK, parts, shards
from tests.teacher.helpers import config, reply


class AtOnce:
    """Answers each request before `submit` returns, by what is asked; every third wrongly."""

    def __init__(self, answers, ledger, tell):
        self.answers, self.ledger, self.tell, self.asked = answers, ledger, tell, 0

    def submit(self, requests):
        settled = []
        for request in requests:
            self.asked += 1
            answer = "nothing" if int(request.key[:4], 16) % 3 == 0 else self.answers[request.question_id]
            way = f"Count on from the first number, one after the other, until {answer} is reached."
            text = reply(way, answer, "Count again.")
            row = LedgerRow(
                request.key, "answered", request.model, request.question_id, request.round, request.body, text, "stop",
                input_tokens=10, output_tokens=3, cost_usd=0.1, attempts=1,
            )  # fmt: skip
            settled.append(Settled(request, row, False))
        self.ledger.stage(one.row for one in settled)
        self.ledger.commit()
        self.tell(settled)

    def hold(self):
        raise AssertionError("there is no budget")

    def flush(self):
        pass

    def lasts(self, round_total):
        return True

    def close(self):
        pass


def run(out, ledger, order, exam=None, round_=1, **settings):
    """Teach these parts of the exam in this order; returns metrics, digest and how many requests were sent."""
    exam = exam or list(shards(count=60, size=10))
    answers = {question.id: question.answer for shard in exam for question in shard.questions}
    pools = []

    def open_pool(job, ledger, tell):
        pools.append(AtOnce(answers, ledger, tell))
        return pools[0]

    job = TeachJob(config(max_asks=2, **settings), round_, grader_for(TASK), lambda part: exam[part.index])
    intake = Intake()
    with intake.teaching(lambda: teach(job, intake, Store.open(str(out)), ledger, open_pool)) as teaching:
        for index in order:
            intake.put(parts(exam)[index])
        intake.end()
        return *teaching.result(), pools[0].asked


def test_lessons_have_their_questions_number_whatever_order_the_parts_came_in(tmp_path, ledger):
    exam = list(shards(count=60, size=10))
    first, digest, _ = run(tmp_path / "a", ledger, range(6))
    shuffled = random.Random(1).sample(range(6), 6)
    again, same, _ = run(tmp_path / "b", ledger, shuffled)
    assert same == digest
    assert again == first  # to the last bit of its dollars
    for name in "ab":
        store = Store.open(str(tmp_path / name))
        found = committed_parts(store, LESSONS)
        assert PartsDigest.of(found) == digest
        for part, shard in zip(found, exam, strict=True):
            lessons = from_table(read_part(store, part), Lesson)
            assert {lesson.question_id for lesson in lessons} <= {question.id for question in shard.questions}
        assert [part.index for part in committed_parts(store.child(LOG), REQUESTS)] == list(range(6))
        assert committed_parts(store, REQUESTS) == []


def test_a_restart_knows_its_parts_by_number_and_content_in_any_order(tmp_path, ledger):
    first, digest, asked = run(tmp_path / "a", ledger, range(6))
    again, same, none = run(tmp_path / "a", ledger, (5, 0, 3, 1, 4, 2))
    assert (again, same, none) == (first, digest, 0)
    changed = list(shards(count=60, size=10))
    other = replace(changed[2].questions[0], text="What is 1 plus 1?")
    changed[2] = replace(changed[2], questions=[other, *changed[2].questions[1:]])
    _, differs, few = run(tmp_path / "a", ledger, (5, 0, 3, 1, 4, 2), exam=changed)
    assert 0 < few < asked / 3
    assert differs.sha256 != digest.sha256
    (tmp_path / "a" / LOG / "requests-00004.json").unlink()
    _, same, few = run(tmp_path / "a", ledger, range(6), exam=changed)
    assert same == differs
    assert 0 < few < asked / 3


def test_what_is_counted_is_the_sum_over_the_parts(tmp_path, ledger):
    metrics, _, asked = run(tmp_path / "a", ledger, range(6), round_=2)
    assert metrics["wanted"] == 120
    assert metrics["requests"] == asked == metrics["accepted"] + metrics["rejected"] + metrics["failed"]
    assert metrics["input_tokens"] == 10 * asked
    assert metrics["cost_usd"] == pytest.approx(0.1 * asked)
    assert metrics["rejected"] > 0
    assert sum(metrics["reasons"].values()) == metrics["rejected"] + metrics["failed"]
    with pytest.raises(StageError, match="min_accepted_share"):
        run(tmp_path / "b", ledger, range(6), min_accepted_share=0.99)


def test_of_several_rationales_each_is_asked_for_when_the_one_before_has_ended(tmp_path, ledger):
    metrics, digest, asked = run(tmp_path / "a", ledger, range(6), rationales=3)
    assert metrics["wanted"] == 180
    shown = [row for row in LedgerFiles(ledger.store).read() if "<earlier>" in row.request]
    assert metrics["taught"] > 60
    assert shown, "an accepted one is shown to those that follow"
    again, same, none = run(tmp_path / "b", ledger, (5, 0, 3, 1, 4, 2), rationales=3)
    assert (again["accepted"], same) == (metrics["accepted"], digest)
    assert none == asked


class Silent(AtOnce):
    """Gives no verdict on some."""

    def submit(self, requests):
        mute = [request for request in requests if request.question_id.endswith("3")]
        super().submit([request for request in requests if request not in mute])
        rows = [
            LedgerRow(one.key, "timeout", one.model, one.question_id, one.round, one.body, attempts=9) for one in mute
        ]
        if mute:
            self.tell([Settled(one, row, False, undecided=True) for one, row in zip(mute, rows, strict=True)])


def test_those_that_wait_for_one_without_a_verdict_do_not_hold_the_stage_up(tmp_path, ledger, monkeypatch):
    monkeypatch.setitem(globals(), "AtOnce", Silent)
    with pytest.raises(Stopped, match="got no reply"):
        run(tmp_path / "a", ledger, range(6), rationales=3)


def test_a_part_that_never_came_is_said(tmp_path, ledger):
    with pytest.raises(CorruptionError, match="part 3 is missing"):
        run(tmp_path / "a", ledger, (0, 1, 2, 4, 5))


def test_an_exam_without_mistakes_leaves_empty_parts(tmp_path, ledger):
    exam = [Shard(index, shard.questions, []) for index, shard in enumerate(shards(count=20, size=10))]
    metrics, digest, asked = run(tmp_path / "a", ledger, (1, 0), exam=exam, round_=2)
    assert (digest.count, digest.rows, asked, metrics["wanted"]) == (2, 0, 0, 0)


def test_the_ledger_stays_open_and_what_the_round_added_is_in_storage(tmp_path, ledger):
    _, _, asked = run(tmp_path / "a", ledger, range(6))
    assert len(list(LedgerFiles(ledger.store).read())) == asked
    run(tmp_path / "b", ledger, range(6), round_=2)
    assert len(ledger.rows()) > asked
    assert ledger.spent(1).tokens == 13 * asked
