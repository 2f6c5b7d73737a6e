"""The mock teacher itself: it reads prompts, solves, corrects, draws accidents by hash, dies with its parent."""

import asyncio
import json
import subprocess
import sys
import textwrap
import time
from collections import Counter
from itertools import islice

import openai
import psutil
import pytest

from tailor_ray.config.task import TaskConfig
from tailor_ray.config.teacher import EndpointConfig, MockConfig, TeacherConfig
from tailor_ray.demo.arithmetic import other_ways, solve
from tailor_ray.demo.mock_replies import Answers, compose
from tailor_ray.demo.mock_server import (
    Limiter,
    MockOptions,
    MockProcess,
    decode_options,
    encode_options,
    open_teacher,
    start_mock,
)
from tailor_ray.errors import DataError, UserError
from tailor_ray.prompts.parse import parse_reply
from tailor_ray.prompts.teacher import CONTINUE, TeacherPrompt, Templates
from tailor_ray.records import AnswerKind, LessonKind, Question
from tailor_ray.tasks import grader_for, load_task
from tailor_ray.teacher.asks import judge
from tailor_ray.teacher.client import Sender
from tests.teacher.helpers import request

ARITHMETIC = TaskConfig(name="arithmetic")


def ask(messages, answers=None, wrong=False, draw=0, schema=None):
    return compose({"messages": messages, "response_format": schema}, answers, wrong, draw)


@pytest.mark.parametrize("structured", [False, True])
def test_it_solves_what_it_reads_and_corrects_attempts(structured):
    grader, prompt = grader_for(ARITHMETIC), TeacherPrompt(AnswerKind.NUMBER, structured)
    for number, question in enumerate(islice(load_task(ARITHMETIC, 3).train, 60)):
        for kind in LessonKind:
            feedback = kind is LessonKind.FEEDBACK
            messages = prompt.feedback(question, "1 + 1 = 3. Answer: 3") if feedback else prompt.rationale(question)
            schema = prompt.response_format(kind)
            good = judge(question, kind, ask(messages, draw=number, schema=schema), grader)
            assert good.reason is None, (question, good)
            assert bool(good.feedback) == feedback
            bad = judge(question, kind, ask(messages, wrong=True, draw=number, schema=schema), grader)
            assert bad.reason == "wrong_answer"


@pytest.mark.parametrize("structured", [False, True])
def test_it_goes_on_from_the_students_right_words(structured):
    grader = grader_for(ARITHMETIC)
    prompt = TeacherPrompt(AnswerKind.NUMBER, structured, Templates(feedback=CONTINUE), continues=True)
    schema = prompt.response_format(LessonKind.FEEDBACK)
    kept = Counter()
    for number, question in enumerate(islice(load_task(ARITHMETIC, 3).train, 60)):
        steps = solve(question.text).steps
        dry = [f"{step}." for step in steps]
        slip = f"{steps[-1].left} {steps[-1].operator} {steps[-1].right} = {steps[-1].result + 1}"
        for attempt in (
            " ".join([*dry[:-1], f"So it is {slip}."]) + f"\nAnswer: {steps[-1].result + 1}",  # a slip
            " ".join([*dry[:-1], "Add up: 1 + 1 = 2."]) + "\nAnswer: 2",  # a wrong plan
            " ".join(dry) + "\nAnswer: 1",  # a wrong conclusion
            " ".join(dry[:-1]) + "\nAnswer: 1",  # a step is missing
            "I guess.\nAnswer: 1",
        ):
            reply = ask(prompt.feedback(question, attempt), draw=number, schema=schema)
            lesson = judge(question, LessonKind.FEEDBACK, reply, grader, structured, continued=attempt)
            assert lesson.reason is None, (question.text, attempt, reply)
            shared = " ".join(dry[:-1])
            kept[lesson.rationale.startswith(shared) and len(shared) > 0] += 1
            if slip in attempt:
                assert lesson.rationale.startswith(f"{shared} So it is {steps[-1].left} {steps[-1].operator}".strip())
    assert kept[True] > 100


def test_a_second_lesson_is_not_the_first_one_again():
    prompt = TeacherPrompt(AnswerKind.NUMBER)
    for number, question in enumerate(islice(load_task(ARITHMETIC, 3).train, 60)):
        first = parse_reply(ask(prompt.rationale(question), draw=number)).rationale
        corrections = {parse_reply(ask(prompt.feedback(question, "No. Answer: 1"), draw=d)).rationale for d in range(9)}
        assert first not in corrections
        assert len(corrections) >= 2


def test_each_of_five_lessons_on_a_question_is_a_new_one():
    prompt = TeacherPrompt(AnswerKind.NUMBER)
    for question in islice(load_task(ARITHMETIC, 3).train, 60):
        given = []
        for number in range(5):
            given.append(parse_reply(ask(prompt.rationale(question, given), draw=number)).rationale)
        assert len(set(given)) == 5, question.text


def test_a_correction_follows_the_students_route():
    prompt = TeacherPrompt(AnswerKind.NUMBER)
    followed = 0
    for number, question in enumerate(islice(load_task(ARITHMETIC, 3).train, 60)):
        way = other_ways(question.text)[0]
        if way.steps[0].result != solve(question.text).steps[0].result:  # not the same one with its sides changed
            reply = ask(prompt.feedback(question, f"{way.steps[0]}.\nAnswer: 1"), draw=number)
            assert str(way.steps[0]) in parse_reply(reply).rationale
            followed += 1
    assert followed > 10


def test_answers_mode(tmp_path, data_folder):
    grader, prompt = grader_for(TaskConfig(name="gsm8k")), TeacherPrompt(AnswerKind.NUMBER)
    path = data_folder / "gsm8k" / "train.jsonl"
    answers = Answers.read(str(path))
    reasons = Counter()
    for line in path.read_text().splitlines()[:300]:
        row = json.loads(line)
        question = Question(row["id"], row["question"], row["answer"])
        reply = ask(prompt.feedback(question, "so it is 3."), answers)
        reasons[judge(question, LessonKind.FEEDBACK, reply, grader).reason] += 1
    assert reasons[None] >= 290


def test_answers_with_choices_and_without_rationale(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(
        json.dumps({"question": "What flows?", "answer": "b", "rationale": None, "choices": {"a": "x", "b": "y"}})
    )
    question = Question("c", "What  flows?", "b", json.dumps({"a": "x", "b": "y"}))
    reply = ask(TeacherPrompt(AnswerKind.CHOICE).rationale(question), Answers.read(str(path)))
    assert "<answer>b</answer>" in reply
    assert "unknown" in ask(
        TeacherPrompt(AnswerKind.CHOICE).rationale(Question("d", "Else?", "a")), Answers.read(str(path))
    )
    path.write_text('{"question": "x"}\n')
    with pytest.raises(DataError, match="line 1"):
        Answers.read(str(path))
    with pytest.raises(DataError, match="cannot be read"):
        Answers.read(str(tmp_path / "none"))


async def test_draws_are_a_function_of_the_request(tmp_path):
    shares = []
    for run in range(2):
        config = MockConfig(wrong_share=0.3, malformed_share=0.2, access_log=str(tmp_path / f"{run}.jsonl"))
        runner, url = await start_mock(MockOptions(config))
        sender = Sender(EndpointConfig(base_url=url), 50)
        wanted = [request(number=n) for n in range(200)]
        first = await asyncio.gather(*(sender.attempt(r.key, r.body) for r in wanted))
        second = await asyncio.gather(*(sender.attempt(r.key, r.body) for r in wanted))
        await sender.close()
        await runner.cleanup()
        shares.append({outcome.key: (outcome.code, outcome.text) for outcome in first})
        assert 20 <= sum(outcome.code == "malformed_json" for outcome in first) <= 60
        assert {outcome.code for outcome in second} == {"answered"}  # a retry succeeds
        log = [json.loads(line) for line in (tmp_path / f"{run}.jsonl").read_text().splitlines()]
        assert len(log) == 400
        assert {line["request"] for line in log} == {r.key for r in wanted}
        assert 60 <= sum(line["outcome"] == "wrong" for line in log) <= 160
    assert shares[0] == shares[1]


async def test_limits_are_kept_with_a_time_to_come_back():
    config = MockConfig(requests_per_minute=600)
    runner, url = await start_mock(MockOptions(config, limit_window_s=1.0))
    sender = Sender(EndpointConfig(base_url=url), 50)
    outcomes = [await sender.attempt(str(n), request(number=n).body) for n in range(12)]
    assert [outcome.code for outcome in outcomes] == ["answered"] * 10 + ["http_429"] * 2
    assert 0 < outcomes[-1].retry_after <= 1.0
    await asyncio.sleep(outcomes[-1].retry_after + 0.1)
    assert (await sender.attempt("x", request().body)).code == "answered"
    await sender.close()
    await runner.cleanup()


def test_tokens_are_limited_and_settled():
    limiter = Limiter(None, 1000, 60.0)
    entry = limiter.admit(0.0, 900)
    assert limiter.admit(1.0, 200) is None
    limiter.settle(entry, 300)
    assert limiter.admit(2.0, 200) is not None
    assert limiter.wait(10.0) == 50.0
    assert limiter.admit(61.0, 700) is not None


def test_the_openai_package_talks_to_it():
    with (
        MockProcess(MockOptions(key="k", models=("m",))) as mock,
        openai.OpenAI(base_url=mock.base_url, api_key="k", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == ["m"]
        question = "Tom has 3 apples. He buys 4 more. How many apples does Tom have?"
        reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": question}])
        assert reply.choices[0].message.content.startswith("<rationale>")
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=[{"role": "user", "content": question}])
        with pytest.raises(openai.BadRequestError):
            client.post("/chat/completions", body={"no": "messages"}, cast_to=object)


async def test_clients_that_hang_up_do_not_stall_it_and_have_their_lines(tmp_path):
    """Each was logged with a traceback to a pipe that nobody read: after some thirty the server stood still."""
    log = tmp_path / "log.jsonl"
    with MockProcess(MockOptions(MockConfig(latency_s=4.0, access_log=str(log)))) as mock:
        hasty = Sender(EndpointConfig(base_url=mock.base_url, timeout_s=1.5), 100)
        given_up = await asyncio.gather(*(hasty.attempt(str(n), request(number=n).body) for n in range(100)))
        patient = Sender(EndpointConfig(base_url=mock.base_url, timeout_s=20), 1)
        outcome = await patient.attempt("last", request().body)
        await hasty.close()
        await patient.close()
    assert {one.code for one in given_up} == {"timeout"}
    assert outcome.code == "answered"
    ends = Counter(json.loads(line)["outcome"] for line in log.read_text().splitlines())
    assert ends["answered"] == 1
    assert ends["client_gone"] >= 40  # those whose request had arrived: the work was done, and would be billed


async def test_it_ends_with_what_it_was_saying_said_and_logged(tmp_path):
    log = tmp_path / "log.jsonl"
    mock = MockProcess(MockOptions(MockConfig(latency_s=0.3, access_log=str(log)))).start()
    sender = Sender(EndpointConfig(base_url=mock.base_url, timeout_s=20), 1)
    await sender.attempt("first", request(number=1).body)  # connected
    second = asyncio.create_task(sender.attempt("second", request(number=2).body))
    await asyncio.sleep(0.15)
    await asyncio.to_thread(mock.stop)
    assert (await second).code == "answered"
    await sender.close()
    assert [json.loads(line)["outcome"] for line in log.read_text().splitlines()] == ["answered"] * 2


def test_its_process_dies_with_its_parent():
    script = textwrap.dedent(
        """
        import os, signal
        from tailor_ray.demo.mock_server import MockOptions
        from tailor_ray.demo.mock_server import MockProcess
        mock = MockProcess(MockOptions()).start()
        print(mock.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(said)) and psutil.Process(int(said)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_bad_options_are_said():
    with pytest.raises(UserError, match="no such fault: nonsense; known: 500"):
        MockProcess(MockOptions(faults=(("nonsense", 1.0),))).start()
    with MockProcess(MockOptions()) as first, pytest.raises(UserError, match="cannot listen"):
        MockProcess(MockOptions(port=int(first.base_url.split(":")[2].split("/")[0]))).start()


def test_options_survive_the_way_to_the_process(monkeypatch):
    monkeypatch.delenv("TAILOR_RAY_MOCK_KEY", raising=False)
    options = MockOptions(MockConfig(latency_s=0.5), faults=(("500", 0.1),), models=("a",), storm=(1.0, 2.0))
    assert decode_options(encode_options(options)) == options
    assert "secret" not in encode_options(MockOptions(key="secret"))


def test_open_teacher_puts_an_address_in_place_of_mock():
    teachers = ({"base_url": "mock"}, {"base_url": "mock", "model": "b"}, {"model": "c"})
    with open_teacher(TeacherConfig(teachers=teachers)) as opened:
        first, second, third = (endpoint.base_url for endpoint in opened.teachers)
        assert first.startswith("http://127.0.0.1:")
        assert (second, third) == (first, "http://127.0.0.1:8765/v1")
    with open_teacher(TeacherConfig()) as same:
        assert same == TeacherConfig()
