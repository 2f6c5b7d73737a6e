"""The teaching stage against servers as users meet them: what it commits, what stops it, what the next start asks."""

import asyncio
import itertools
import json
import re

import pytest

from tailor_ray.answers import Grader
from tailor_ray.config.run import load_config
from tailor_ray.config.teacher import TeacherConfig
from tailor_ray.errors import ConfigError, RunFolderError, StageError, Stopped, TeacherAccessError
from tailor_ray.layout import LESSONS, StageId, stage_folder
from tailor_ray.records import AnswerKind, Question
from tailor_ray.rounds.loop import claim_folder
from tailor_ray.storage import Store, committed_parts
from tailor_ray.tasks import grader_for
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.parts import Intake
from tailor_ray.teacher.pool import TeacherPool, start_local
from tailor_ray.teacher.preflight import check_access, try_lesson
from tailor_ray.teacher.teach import TeachJob, teach
from tests.integration.teaching import TASK, parts, shards
from tests.teacher.helpers import reply
from tests.teacher.servers import completion, error, serving, shown


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))


EXAM = list(shards(count=120, size=20, samples=1))
ANSWERS = {question.text: question.answer for shard in EXAM for question in shard.questions}


def lesson(body, way="Count on from the first number, one after the other, until {} is reached."):
    """A good reply to whatever is asked."""
    asked = re.search(r"<question>\n(.*?)\n</question>", shown_text(body), re.DOTALL)
    answer = ANSWERS[asked.group(1)]
    return completion(reply(way.format(answer), answer, "Count again."))


def shown_text(body):
    return "\n".join(message["content"] for message in body["messages"])


def run(folder, url, exam=EXAM, round_=1, **settings):
    """Teach a round from this process; returns its metrics."""
    teacher = {"base_url": url, "requests_per_minute": 1e6, "max_in_flight": 8, **settings}
    job = TeachJob(TeacherConfig(**teacher), round_, grader_for(TASK), lambda part: exam[part.index])
    ledger, intake = Ledger(Store.open(str(folder / "teacher"))), Intake()

    def open_pool(job, ledger, tell):
        return TeacherPool(job.config, ledger, job.round, tell, tell, start_local)

    try:
        with intake.teaching(
            lambda: teach(job, intake, Store.open(str(folder / "out")), ledger, open_pool)
        ) as teaching:
            for part in parts(exam):
                intake.put(part)
            intake.end()
            return teaching.result()[0]
    finally:
        ledger.close()


def committed(folder):
    return committed_parts(Store.open(str(folder / "out")), LESSONS)


def test_a_request_that_gets_no_reply_leaves_its_part_open_and_the_next_start_takes_it(tmp_path):
    poison = EXAM[2].questions[5].text

    def fails(_, body, __):
        return (500, error("boom")) if poison in shown_text(body) else (200, lesson(body))

    with serving(fails) as (url, bodies, _), pytest.raises(Stopped, match=r"1 requests got no reply.*boom"):
        run(tmp_path, url, max_attempts=2)
    assert [part.index for part in committed(tmp_path)] == [0, 1, 3, 4, 5]
    assert len(bodies) == 121
    with serving(lambda _, body, __: (200, lesson(body))) as (url, bodies, _):
        metrics = run(tmp_path, url, max_attempts=2)
    assert (metrics["taught"], metrics["failed"]) == (120, 0)
    assert len(bodies) == 1


def test_what_two_starts_could_not_get_while_others_were_answered_counts_as_failed(tmp_path):
    poison = EXAM[0].questions[5].text

    def fails(_, body, __):
        return (500, error("boom")) if poison in shown_text(body) else (200, lesson(body))

    with serving(fails) as (url, _, __):
        with pytest.raises(Stopped):
            run(tmp_path, url, exam=EXAM[:1], max_attempts=2)
        metrics = run(tmp_path, url, exam=EXAM[:2], max_attempts=2)
    assert (metrics["taught"], metrics["failed"]) == (39, 1)


def test_a_quota_that_ends_in_the_middle_of_the_only_part_loses_no_lesson(tmp_path):
    with (
        serving(lambda n, body, _: (200, lesson(body)) if n < 12 else (402, error("pay"))) as (url, _, __),
        pytest.raises(Stopped, match="quota is used up"),
    ):
        run(tmp_path, url, exam=EXAM[:1])
    assert committed(tmp_path) == []
    with serving(lambda _, body, __: (200, lesson(body))) as (url, bodies, _):
        assert run(tmp_path, url, exam=EXAM[:1])["taught"] == 20
    assert len(bodies) == 8


def test_a_part_with_passing_refusals_is_asked_again_by_the_next_driver_and_not_by_this_one(tmp_path):
    some = {question.text for question in EXAM[0].questions[:3]}

    def refuses(n, body, _):
        if any(text in shown_text(body) for text in some):
            return 400, error("maximum context length is 16 tokens")
        return (200, lesson(body)) if n < 110 else (402, error("pay"))

    with serving(refuses) as (url, bodies, _), pytest.raises(Stopped, match="quota"):
        run(tmp_path, url)
    assert 0 in [part.index for part in committed(tmp_path)]
    assert sum("context" in str(body) for body in bodies) == 0
    with serving(lambda _, body, __: (200, lesson(body))) as (url, _, __):
        assert run(tmp_path, url)["taught"] == 120


USELESS = [
    ((400, error("The model is not deployed for this project")), Stopped, "not deployed for this project"),
    ((200, completion(None, usage=(50, 512))), StageError, "max_tokens"),
    (
        (200, completion(None, "length", {"prompt_tokens": 50, "completion_tokens": 512,
                                          "completion_tokens_details": {"reasoning_tokens": 512}})),
        StageError,
        "512 of 512 tokens were reasoning.*[Rr]aise max_tokens",
    ),
    ((200, completion("I would rather not say anything about that at all.")), StageError, "wrong_answer"),
    ((200, completion('{"reasoning": "3 + 4 = 7 because it is so", "answer": 7}')), StageError, "malformed"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "kind", "says"), USELESS)
def test_the_yield_is_looked_at_from_fifty_asks_on(tmp_path, answer, kind, says):
    with serving(lambda *_: answer) as (url, bodies, _), pytest.raises(kind, match=says):
        run(tmp_path, url, max_in_flight=4, max_asks=2)
    assert 50 <= len(bodies) <= 150
    assert committed(tmp_path) == []  # so that settings can be changed
    with serving(lambda _, body, __: (200, lesson(body))) as (url, _, __):
        changed = {"max_tokens": 1024, "temperature": 0.2, "output": "tagged"}
        assert run(tmp_path, url, **changed)["taught"] == 120


def test_a_yield_that_is_only_low_is_left_alone_until_it_is_sure(tmp_path):
    with serving(lambda n, body, _: (200, lesson(body) if n % 3 == 0 else completion("no"))) as (url, _, __):
        assert run(tmp_path, url, max_asks=1)["taught"] == 40


def test_a_teacher_that_turns_useless_in_the_middle_is_not_paid_to_the_end(tmp_path):
    """The share of all would still do: 20 of 120 are more than 16 %."""

    async def turns(n, body, _):
        await asyncio.sleep(0.05)  # so that the pool is not far ahead of the stage
        return 200, lesson(body) if n < 20 else completion("I would rather not say anything about that at all.")

    with (
        serving(turns) as (url, bodies, _),
        pytest.raises(StageError, match=r"only 0 of the last \d+ lessons were accepted"),
    ):
        run(tmp_path, url, max_in_flight=2, max_asks=1, min_accepted_share=0.16)
    assert len(bodies) < 120


def test_after_a_cut_the_cap_is_doubled_within_a_bound_and_nothing_empty_is_sent(tmp_path):
    caps = []

    def strict(_, body, __):
        caps.append(body["max_tokens"])
        messages = body["messages"]
        roles = [message["role"] for message in messages if message["role"] != "system"]
        if any(not message["content"].strip() for message in messages) or "</think>" in shown(body):
            return 400, error("messages must have content")
        if any(one == other for one, other in itertools.pairwise(roles)):
            return 400, error("roles must alternate")
        if body["max_tokens"] < 200:
            return 200, completion(["", "<think>so much", "<rationale>half of"][len(caps) % 3], "length")
        return 200, lesson(body)

    with serving(strict) as (url, _, __):
        metrics = run(tmp_path, url, exam=EXAM[:1], max_tokens=50, max_asks=4)
    assert metrics["taught"] == 20
    assert set(caps) == {50, 100, 200}
    with serving(lambda *_: (200, completion(None, "length"))) as (url, bodies, _), pytest.raises(StageError):
        run(tmp_path / "b", url, exam=EXAM[:1], max_tokens=50, max_asks=9)
    assert {body["max_tokens"] for body in bodies} == {50, 100, 200}


def test_thinking_alone_is_no_lesson_and_is_not_sent_back(tmp_path):
    def thinks(n, body, _):
        return 200, completion("<think>It is easy.</think>") if n < 20 else lesson(body)

    with serving(thinks) as (url, bodies, _):
        assert run(tmp_path, url, exam=EXAM[:1])["taught"] == 20
    later = list(bodies[20:])
    assert all(len(body["messages"]) == 2 and "cannot be used" in shown(body) for body in later)
    assert "think" not in json.dumps(later)


def test_raising_the_cap_asks_for_what_was_cut_alone(tmp_path):
    def cuts(n, body, _):
        return 200, completion("<rationale>half of it", "length") if body[
            "max_tokens"
        ] < 100 and n % 4 == 0 else lesson(body)

    with serving(cuts) as (url, bodies, _):
        first = run(tmp_path, url, max_tokens=20, max_asks=1)
        cut = 120 - first["taught"]
        assert 20 <= cut <= 40
        bodies.clear()
        (tmp_path / "out").rename(tmp_path / "before")
        assert run(tmp_path, url, max_tokens=120, max_asks=1)["taught"] == 120
    assert len(bodies) == cut


@pytest.mark.parametrize("setting", ["max_tokens=900", "temperature=0.1", "output=json_schema", "reasoning_effort=low",
                                     "cap_parameter=max_completion_tokens"])  # fmt: skip
def test_a_teacher_may_be_asked_otherwise_until_a_lesson_is_committed(tmp_path, setting):
    run_folder = Store.open(str(tmp_path / "run"))
    claim_folder(run_folder, load_config(None))
    changed = load_config(None, [f"teacher.teachers.0.{setting}"])
    with pytest.raises(RunFolderError, match=r"exam\.samples"):
        claim_folder(run_folder, load_config(None, [f"teacher.teachers.0.{setting}", "exam.samples=9"]))
    claim_folder(run_folder, changed)
    with serving(lambda _, body, __: (200, lesson(body))) as (url, _, __):
        run(tmp_path, url, exam=EXAM[:1])
    taught = stage_folder(run_folder, StageId(1, "teach"))
    for name in Store.open(str(tmp_path / "out")).files():
        taught.write_bytes(name, (tmp_path / "out" / name).read_bytes())
    claim_folder(run_folder, changed)
    with pytest.raises(RunFolderError, match=r"teacher\.teachers\.0\."):
        claim_folder(run_folder, load_config(None))


ASKED = [Question("a", "Tom has 3 apples. He buys 4 more. How many apples does Tom have?", "7"), EXAM[0].questions[0]]


def check(folder, url, **settings):
    ledger = Ledger(Store.open(str(folder / "teacher")))
    try:
        check_access(TeacherConfig(base_url=url, **settings), Grader(AnswerKind.NUMBER), ledger, ASKED)
        return ledger.rows()
    finally:
        ledger.close()


def test_before_the_exam_one_real_request_is_made_and_kept(tmp_path):
    with serving(lambda *_: (200, completion())) as (url, bodies, _):
        for _ in range(2):
            (row,) = check(tmp_path, url)
        assert row.outcome == "answered"
    assert len(bodies) == 1
    assert {"temperature", "max_tokens"} <= bodies[0].keys()
    assert bodies[0]["messages"][0]["role"] == "system"


def test_an_endpoint_that_refuses_the_requests_form_is_found_before_the_exam(tmp_path):
    def strict(_, body, __):
        if "temperature" in body:
            return 400, error("Unsupported value: 'temperature' does not support 0.7 with this model.")
        return 200, completion()

    with serving(strict) as (url, bodies, _):
        with pytest.raises(TeacherAccessError, match=r"does not support 0\.7.*temperature \(null"):
            check(tmp_path, url)
        assert len(bodies) == 2
        with pytest.raises(TeacherAccessError, match=r"does not support 0\.7"):
            try_lesson(TeacherConfig(base_url=url), TeacherConfig(base_url=url).teachers[0])
        check(tmp_path, url, temperature=None)


def test_one_question_that_is_refused_for_itself_is_no_reason(tmp_path):
    with serving(lambda n, *_: (400, error("too long")) if n == 0 else (200, completion())) as (url, _, __):
        check(tmp_path, url)


def test_models_are_a_hint_alone(tmp_path):
    """An endpoint that lists other models and answers is used; one that refuses the model is told with the list."""
    with serving(lambda *_: (200, completion())) as (url, _, __):
        check(tmp_path, url)
    with (
        serving(lambda *_: (404, error("no such model", "model_not_found"))) as (url, _, __),
        pytest.raises(TeacherAccessError, match=r"no such model.*it offers alpha, beta"),
    ):
        check(tmp_path / "b", url, model="gamma")


def test_who_refuses_us_is_found_before_the_exam(tmp_path):
    with (
        serving(lambda *_: (401, error("Incorrect API key"))) as (url, bodies, _),
        pytest.raises(TeacherAccessError, match=r"Incorrect API key.*teacher\.api_key_env"),
    ):
        check(tmp_path, url)
    assert len(bodies) == 1
    with serving(lambda *_: (402, error("pay"))) as (url, _, __), pytest.raises(Stopped, match="quota"):
        check(tmp_path, url)
    with pytest.raises(TeacherAccessError, match=r"no answer after 3 tries.*teacher\.base_url"):
        check(tmp_path, "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match=r"teacher\.price"):
        check(tmp_path, "http://127.0.0.1:9/v1", model="unheard-of", budget_usd=1)
