"""One question on its whole way, as text: what the student reads and writes, and what the grader says.

With a teacher also one lesson: what the teacher reads and writes, and whether it would be learnt from. It costs one
engine's start and one request. Nothing is kept. The question is shown as a run would show it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from tailor_ray.config import RunConfig
from tailor_ray.errors import TailorError
from tailor_ray.models import identify
from tailor_ray.ops.doctor import Finding
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import Attempt, LessonKind, Question, Verdict
from tailor_ray.rounds.cluster import connected
from tailor_ray.rounds.services import reachable_teacher
from tailor_ray.rounds.stages import student_prompt
from tailor_ray.student.pool import EnginePool
from tailor_ray.student.sampling import Sampling, sample_seed
from tailor_ray.tasks import grader_for, load_task
from tailor_ray.teacher.asks import Asker, judge
from tailor_ray.teacher.client import send_once
from tailor_ray.teacher.errors import access_error

TODO = {
    Verdict.TRUNCATED: "it was cut off: raise evaluation.max_new_tokens and exam.max_new_tokens, or show worked "
    "questions (student.few_shot=true)",
    Verdict.UNPARSED: "no answer was found in it: check student.prompt_style and task.answer_kind, or show worked "
    "questions (student.few_shot=true)",
    Verdict.ERROR: "the engine could not answer; what it said is above",
}


@dataclass(frozen=True, slots=True)
class Tried:
    """A question and the student's attempt on it."""

    question: Question
    attempt: Attempt


def student(config: RunConfig) -> Iterator[Finding | Tried]:
    """The first training question through prompt, engine and grader.

    Yields what is found, and last, if it came so far, what was tried.
    """
    try:
        question = next(iter(load_task(config.task, config.seed).train))
        if not config.student.is_given:
            yield Finding("student", "tiny is made when a run begins; there is none yet to be asked")
            return
        model = identify(config.student.model, config.student.revision)
        prompt = student_prompt(config, model)
        asked = prompt.render(question)
        yield Finding("student is asked", f"question {question.id}, answer {question.answer}{_block(asked)}")
        limit = config.evaluation.max_new_tokens
        sampling = Sampling(0.0, 1.0, limit, prompt.stop, prompt.style == "plain")
        seed = sample_seed(config.seed, 0, question.id, 0)
        with connected(config.cluster), ExitStack() as started:
            pool = EnginePool(config.student.model_copy(update={"engines": 1}), config.seed)
            started.callback(pool.stop)
            pool.serve(model)
            said = pool.answer([question.id], [asked], [[seed]], sampling)
    except (TailorError, ConnectionError, RuntimeError) as error:
        yield Finding(
            "student", str(error), "mend the setting that it names; `tailor-ray config-reference` explains each"
        )
        return
    text, reason, unanswered = said.texts[0], said.finish_reasons[0], said.errors[0]
    tokens = f"{said.prompt_tokens[0]} tokens read, {said.output_tokens[0]} of at most {limit} written"
    yield Finding("student writes", f"{tokens}, ended by {reason}{_block(text or unanswered or '')}")
    grade = grader_for(config.task).grade(question, unanswered or text, reason)
    detail = f" ({grade.detail})" if grade.detail else ""
    found = f"{grade.verdict}, read as {grade.answer!r}, gold is {question.answer!r}{detail}"
    yield Finding("grader says", found, TODO.get(grade.verdict))
    attempt = Attempt(
        question.id, 0, text, reason, grade.answer, grade.verdict, seed, said.prompt_tokens[0], said.output_tokens[0]
    )
    yield Tried(question, attempt)


def lesson(config: RunConfig, tried: Tried | None) -> Iterator[Finding]:
    """One lesson of the first teacher, as what is found on its way.

    It is feedback where `tried` is the student's mistake, else a rationale.
    """
    try:
        if config.teacher.teachers[0].serve is not None:
            yield Finding("lesson", "this teacher is served by the run itself, and is not up yet")
            return
        question = tried.question if tried else next(iter(load_task(config.task, config.seed).train))
        grader = grader_for(config.task)
        mistaken = tried is not None and tried.attempt.verdict is Verdict.WRONG
        with reachable_teacher(config) as teacher:
            wrong = [tried.attempt] if tried and mistaken and teacher.max_mistakes else []
            asker = Asker(teacher, grader, 2 if wrong else 1)
            request = asker.first(asker.asks([question], wrong, frozenset())[0])
            shown = "\n".join(f"[{one['role']}]\n{one['content']}" for one in json.loads(request.body)["messages"])
            yield Finding("teacher is asked", f"{request.model}{_block(shown)}")
            endpoint = teacher.teachers[0]
            outcome = send_once(endpoint, request)
            if outcome.code != "answered":
                raise access_error(endpoint, f"{outcome.code}: {outcome.detail}")
    except TailorError as error:
        yield Finding("lesson", "no reply", str(error))
        return
    text, kind = outcome.text or "", LessonKind.FEEDBACK if wrong else LessonKind.RATIONALE
    yield Finding("teacher writes", f"after {outcome.seconds:.1f} s{_block(text)}")
    continued = wrong[0].text if wrong and config.teacher.correction == "continue" else None
    judged = judge(question, kind, text, grader, endpoint.output == "json_schema", continued)
    if judged.reason is not None:
        yield Finding("lesson", f"refused as {judged.reason}: {judged.problem}", "a run asks again; look at the prompt")
        return
    learnt = StudentPrompt("plain", grader.kind).completion(judged.rationale, judged.answer).strip()
    yield Finding("student is to learn", f"{len(learnt.split())} words{_block(learnt)}")


def _block(text: str) -> str:
    """Below the line, each line marked, so that blanks and ends are seen."""
    return "".join(f"\n     | {line}" for line in text.splitlines() or [""])
