"""`Ask`: one lesson that is wanted, and its way through requests, judgement, other tries, other teachers and peers.

A part of the exam becomes asks. Each ask has at most one request open. `advance` takes a settled request and returns
the next one to send. It returns None when the ask is done: accepted, or failed with the reason of its last request.
Then comes `following`, for what waited for it. What an ask does depends on its own replies and on those that it waited
for alone. So the order in which replies arrive changes nothing.

Whether a reply is a lesson, `judge` says. It has the rules, each with the reason that is counted and the problem that
the teacher is told. It is pure: the same reply is judged alike in every run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tailor_ray.answers import Grader
from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.prompts.parse import parse_reply, parse_score, plain_text, strip_thinking, typeset
from tailor_ray.prompts.teacher import CONTINUE, Messages, TeacherPrompt, Templates
from tailor_ray.records import AnswerKind, Attempt, LessonKind, Question, Verdict
from tailor_ray.teacher.budget import CAP_GROWTH
from tailor_ray.teacher.client import TeacherRequest, make_request
from tailor_ray.teacher.dispatch import Settled

CUT_OFF = "it was cut off by the length limit. Be briefer."
# Words by which a rationale shows that its writer was shown the answer or an attempt; the group is what it speaks of.
# None of them is in the 1,161 recorded rationales of three teachers, nor in GSM8K's 7,473 of people.
_GIVEAWAY = re.compile(
    r"\b(?:the|your|this|that|a|given)\s+(hint)\b"
    r"|\b(hint)\s+(?:says|said|states|stated|tells|told|suggests|indicates)\b"
    r"|\b(?:given|provided|reference|gold|expected|known|hinted)\s+(?:correct\s+|final\s+)?(answer|solution|result)\b"
    r"|\b(?:we|i)\s+(?:are|were|was|am|have\s+been)\s+(?:told|given)\s+(?:that\s+)?the\s+(?:\w+\s+)?(answer)\b"
    r"|\bwe\s+(?:already\s+)?know\s+(?:that\s+)?the\s+(?:correct\s+|final\s+|right\s+)?(answer)\b"
    r"|\b(?:match(?:es|ing)?|confirm(?:s|ing)?|agrees?\s+with)\s+the\s+(?:correct\s+|right\s+|final\s+)?(answer)\b"
    r"|\b(?:the|this|their)\s+(student|attempt)(?:'s)?\b"
    r"|\byour\s+(mistake|error|reasoning|answer|attempt|solution|calculation)s?\b",
    re.IGNORECASE,
)
FEWEST_WORDS = 5  # "198 pages per chapter" is an answer, not a way to it
_NUMBER = re.compile(r"(\$ ?)?(-?\d[\d,]*(?:\.\d+)?)")
_SPACED = re.compile(r"()(?<![\d,.])(-?\d{1,3}(?:[ \u00a0\u202f]\d{3})+)(?![\d,])")  # 100 000


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """One request of an ask, and how it ended: `accepted`; `rejected` by us, and asked again; `failed`, without a
    usable reply or rejected for the last time; or, where it asked a peer about the lesson, `scored`."""

    settled: Settled
    number: int  # 1 for the first try, counted over all teachers
    outcome: str
    reason: str | None


@dataclass(slots=True)
class Ask:
    """One wanted lesson. `sample` tells apart several rationales of one question: all but the first wait for the one
    before, are shown those that were accepted (`earlier`) and asked for another route."""

    question: Question
    kind: LessonKind
    mistake: Attempt | None
    sample: int
    teachers: tuple[EndpointConfig, ...]  # in order; the next is asked when one fails
    priority: tuple[float, int, str]
    ended: list[RequestEnd] = field(default_factory=list)
    accepted: Judged | None = None
    turn: int = 0
    tries: int = 0  # with this teacher
    cap: int = 0  # of its reply, raised after one that was cut
    messages: Messages = field(default_factory=list)
    peers: list[EndpointConfig] = field(default_factory=list)  # still to score the accepted lesson
    scores: list[int] = field(default_factory=list)
    then: Ask | None = None  # what waits for this one
    earlier: list[str] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Asks that wait for this one's end, also those that wait for them."""
        return 0 if self.then is None else 1 + self.then.waiting

    @property
    def order(self) -> tuple[str, str, int, int, str]:
        """By which lessons are sorted before they are written."""
        sample = -1 if self.mistake is None else self.mistake.sample
        return (self.question.id, self.kind.value, sample, self.sample, self.teachers[0].model)


class Asker:
    """Makes asks and moves them on."""

    def __init__(self, config: TeacherConfig, grader: Grader, round_: int) -> None:
        """`grader` judges the answers that replies state; `round_` decides between rationales (1) and feedback."""
        self._config = config
        self._grader = grader
        self._round = round_
        given = {name: text for name, text in config.prompts.model_dump().items() if text is not None}
        self._continues = config.correction == "continue"
        texts = Templates(**({"feedback": CONTINUE} | given if self._continues else given))
        self._prompts = {
            endpoint.model: TeacherPrompt(
                grader.kind,
                endpoint.output == "json_schema",
                texts,
                self._continues,
                None if config.max_words == "auto" else config.max_words,
            )
            for endpoint in config.teachers
        }

    def asks(self, questions: Sequence[Question], attempts: Iterable[Attempt], taught: frozenset[str]) -> list[Ask]:
        """The lessons that a part of the exam wants.

        Round 1 wants rationales of every question, later rounds feedback on every distinct mistake among the
        `attempts`. Questions in `taught` (ids) have a lesson of an earlier round and come after others of their kind.
        """
        by_question: dict[str, list[Attempt]] = {question.id: [] for question in questions}
        for attempt in attempts:
            by_question[attempt.question_id].append(attempt)
        asks: list[Ask] = []
        endpoints = self._config.teachers
        groups = [endpoints] if self._config.arrangement == "cascade" else [(endpoint,) for endpoint in endpoints]
        for question in questions:
            own = sorted(by_question[question.id], key=lambda attempt: attempt.sample)
            wrong = [attempt for attempt in own if attempt.verdict == Verdict.WRONG]
            priority = (-len(wrong) / len(own) if own else 0.0, int(question.id in taught), question.id)
            for mistake, sample in self._wanted(wrong):
                kind = LessonKind.RATIONALE if mistake is None else LessonKind.FEEDBACK
                made = [Ask(question, kind, mistake, sample, group, priority) for group in groups]
                for before, ask in zip(asks[-len(made) :] if sample else (), made, strict=False):
                    before.then = ask
                asks += made
        return asks

    def first(self, ask: Ask) -> TeacherRequest:
        """The request with which an ask begins, or begins anew at its next teacher."""
        prompt = self._prompts[ask.teachers[ask.turn].model]
        if ask.mistake is None:
            ask.messages = prompt.rationale(ask.question, ask.earlier)
        else:
            ask.messages = prompt.feedback(ask.question, ask.mistake.text)
        ask.cap = ask.teachers[ask.turn].max_tokens
        return self._request(ask, ask.teachers[ask.turn], ask.messages)

    def following(self, ask: Ask) -> TeacherRequest | None:
        """The first request of what waited for this `ask`, which is done.

        Returns None where nothing did.
        """
        if ask.then is None:
            return None
        ask.then.earlier = [*ask.earlier, *([ask.accepted.rationale] if ask.accepted else [])]
        return self.first(ask.then)

    def advance(self, ask: Ask, settled: Settled) -> TeacherRequest | None:
        """Judge the reply to the open request of the `ask`.

        Returns the next request, or None when the ask is done.
        """
        if ask.accepted is not None:
            return self._take_score(ask, ask.accepted, settled)
        row = settled.row
        reply = row.reply or ""
        if row.outcome == "answered":
            structured = ask.teachers[ask.turn].output == "json_schema"
            continued = ask.mistake.text if ask.mistake and self._continues else None
            judged = judge(ask.question, ask.kind, reply, self._grader, structured, continued)
        elif row.outcome == "length":
            judged = Judged(reason="length", problem=CUT_OFF)
        else:
            self._end(ask, settled, "failed", row.outcome)
            return self._next_teacher(ask)
        if judged.reason is None:
            self._end(ask, settled, "accepted", None)
            ask.accepted = judged
            if self._config.peer_scores:
                ask.peers = [peer for peer in self._config.teachers if peer.model != row.model]
            return self._next_score(ask, judged)
        ask.tries += 1
        if ask.tries >= self._config.max_asks or not self._ask_otherwise(ask, judged, reply):
            following = self._next_teacher(ask)
            self._end(ask, settled, "rejected" if following else "failed", judged.reason)
            return following
        self._end(ask, settled, "rejected", judged.reason)
        return self._request(ask, ask.teachers[ask.turn], ask.messages)

    def _ask_otherwise(self, ask: Ask, judged: Judged, reply: str) -> bool:
        """Change what is asked by what was wrong; False where nothing is left to change.

        A reply that was cut gets twice the cap, within a bound; of one that was cut in its thinking there is nothing
        to show, so the same is asked again. The last ask of all begins afresh where it may give a hint.
        """
        endpoint = ask.teachers[ask.turn]
        cap = ask.cap
        if judged.reason == "length":
            ask.cap = min(2 * cap, CAP_GROWTH * endpoint.max_tokens)
        last = ask.tries == self._config.max_asks - 1 and ask.turn == len(ask.teachers) - 1
        if last and ask.mistake is None and self._config.last_try == "hinted":
            ask.messages = self._prompts[endpoint.model].hinted(ask.question, ask.earlier)
            return True
        if judged.reason != "length" or strip_thinking(reply):
            ask.messages = self._prompts[endpoint.model].again(ask.messages, reply, judged.problem)
            return True
        return ask.cap > cap

    def _take_score(self, ask: Ask, lesson: Judged, settled: Settled) -> TeacherRequest | None:
        """A peer that gives no score has no say."""
        score = parse_score(settled.row.reply or "")
        self._end(ask, settled, "scored", None if score else "no_score")
        if score:
            ask.scores.append(score)
        following = self._next_score(ask, lesson)
        if following is None and ask.scores and sum(ask.scores) / len(ask.scores) < self._config.min_peer_score:
            ask.accepted = None
            ask.ended = [
                replace(one, outcome="rejected", reason="peer_score") if one.outcome == "accepted" else one
                for one in ask.ended
            ]
        return following

    def _next_score(self, ask: Ask, lesson: Judged) -> TeacherRequest | None:
        if not ask.peers:
            return None
        peer = ask.peers.pop(0)
        messages = self._prompts[peer.model].score(ask.question, lesson.rationale)
        return self._request(ask, peer, messages, structured=False)

    def _wanted(self, wrong: Sequence[Attempt]) -> list[tuple[Attempt | None, int]]:
        if self._round == 1:
            return [(None, sample) for sample in range(self._config.rationales)]
        distinct = {attempt.text.strip(): attempt for attempt in reversed(wrong)}  # the first of equal texts stays
        mistakes = sorted(distinct.values(), key=lambda attempt: attempt.sample)
        return [(mistake, 0) for mistake in mistakes[: self._config.max_mistakes]]

    def _end(self, ask: Ask, settled: Settled, outcome: str, reason: str | None) -> None:
        ask.ended.append(RequestEnd(settled, len(ask.ended) + 1, outcome, reason))

    def _next_teacher(self, ask: Ask) -> TeacherRequest | None:
        if ask.turn + 1 >= len(ask.teachers):
            return None
        ask.turn += 1
        ask.tries = 0
        return self.first(ask)

    def _request(
        self, ask: Ask, endpoint: EndpointConfig, messages: Messages, structured: bool = True
    ) -> TeacherRequest:
        return make_request(
            endpoint,
            messages,
            self._prompts[endpoint.model].response_format(ask.kind) if structured else None,
            sample=ask.sample,
            question_id=ask.question.id,
            round_=self._round,
            priority=ask.priority,
            max_tokens=ask.cap if structured else None,
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """An accepted reply has `reason` None; a rejected one says what to tell the teacher in `problem`."""

    rationale: str = ""
    answer: str = ""
    feedback: str | None = None
    reason: str | None = None
    problem: str = ""


def judge(
    question: Question,
    kind: LessonKind,
    text: str,
    grader: Grader,
    structured: bool = False,
    continued: str | None = None,
) -> Judged:
    """Judge a whole reply by all rules, the first that it breaks being its reason.

    `structured`: an object was asked for, so that prose is none. `continued` is the attempt that the rationale is to
    go on from; what is kept of it is the student's, to the letter.
    """
    reply = parse_reply(text)
    latex = grader.kind is AnswerKind.MATH
    rationale = reply.rationale if continued is not None else plain_text(reply.rationale, latex)
    if rationale and (reply.markup is not None or (structured and reply.form == "prose")):
        return Judged(reason="malformed", problem="it is not laid out in the form that was asked for.")
    if max(len(rationale.split()), len(re.findall(r"\w+", rationale))) < FEWEST_WORDS:  # "80(.95)=76" is one word
        return Judged(reason="empty", problem="it has no reasoning.")
    if is_repetition(rationale):
        return Judged(reason="repetition", problem="its rationale repeats itself.")
    if gives_away(rationale, question.text):
        return Judged(
            reason="giveaway",
            problem="its rationale mentions a hint, a given answer or the student; derive the answer.",
        )
    if kind is LessonKind.FEEDBACK and not reply.feedback:
        return Judged(reason="no_feedback", problem="it does not say where the student's reasoning goes wrong.")
    if continued is not None:
        branch = branch_off(continued, reply.wrong_step or "", rationale)
        if isinstance(branch, Judged):
            return branch
        kept, rest = branch
        rationale = f"{kept}{plain_text(rest, latex)}"
    if (left := typeset(rationale, latex)) is not None:
        return Judged(reason="markup", problem=f"its rationale is typeset ({left!r}); write plain text.")
    conclusion = rationale if reply.answer is None else f"{rationale}\nAnswer: {reply.answer}"
    grade = grader.grade(question, conclusion)
    if grade.verdict is not Verdict.CORRECT:
        return Judged(reason="wrong_answer", problem="its answer is not right. Check each step.")
    if not _reaches(question, rationale, grader.kind):
        return Judged(reason="unsupported", problem="its rationale does not arrive at the answer that it states.")
    return Judged(rationale, grade.answer or question.answer, reply.feedback and plain_text(reply.feedback, latex))


def branch_off(attempt: str, wrong_step: str, rationale: str) -> tuple[str, str] | Judged:
    """The attempt's words before its first wrong step, as the student wrote them, and what the rationale says after
    them; white space may differ. A Judged where the step is none of the attempt's, or other words come before it."""
    wrong = _words(wrong_step)
    place = wrong.search(attempt) if wrong_step.strip() else None
    if place is None:
        return Judged(reason="no_branch", problem="its wrong_step is not copied word for word from the attempt.")
    kept = attempt[: place.start()].lstrip()
    begun = _words(kept).match(rationale)
    rest = rationale[begun.end() :] if begun else ""
    if begun is None or wrong.match(rest.lstrip()):
        return Judged(
            reason="not_continued",
            problem="its rationale does not begin with the student's words before the wrong step, word for word, and "
            "go on otherwise.",
        )
    if kept != kept.rstrip():
        rest = rest.lstrip()
    return (kept, rest) if rest else (kept.rstrip(), "")


def _words(text: str) -> re.Pattern[str]:
    """These words with any white space between them, and no more of a word or number before or behind."""
    words = text.split()
    before = r"(?<!\w)" if words and words[0][0].isalnum() else ""
    behind = r"(?!\w|[.,]\d)" if words and words[-1][-1].isalnum() else ""
    return re.compile(before + r"\s+".join(map(re.escape, words)) + behind)


def gives_away(rationale: str, question: str) -> bool:
    """Whether the rationale speaks of a hint, a given answer or the student, and the question does not."""
    spoken = {word.lower() for found in _GIVEAWAY.finditer(rationale) for word in found.groups() if word}
    return any(word not in question.lower() for word in spoken)


def is_repetition(text: str) -> bool:
    """A loop: three of the same long line, or the same four words making up most of a long text."""
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 15]
    if any(count >= 3 for count in Counter(lines).values()):
        return True
    words = text.split()
    if len(words) < 40:
        return False
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(set(grams)) < 0.4 * len(grams)


def is_near_duplicate(text: str, others: list[str]) -> bool:
    """Whether nine of ten word trigrams are shared with one of the others (all words, for short texts)."""
    own = _shingles(text)
    return any(len(own & other) >= 0.9 * max(1, len(own | other)) for other in map(_shingles, others))


def _reaches(question: Question, rationale: str, kind: AnswerKind) -> bool:
    """For numbers: the gold value stands in the reasoning, so that the answer was not merely copied to its end."""
    if kind is not AnswerKind.NUMBER:
        return True
    try:
        gold = float(question.answer.replace(",", ""))
    except ValueError:
        return True  # a fraction or an expression: the verifiers compared it already
    for currency, digits in (*_NUMBER.findall(rationale), *_SPACED.findall(rationale)):
        value = float("".join(digits.split()).replace(",", ""))
        if value in (gold, abs(gold)) or (currency and math.isclose(100 * value, gold)):
            return True  # 49 cents may stand as $0.49
    return False


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))
