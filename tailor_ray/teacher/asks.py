"""`Ask`: one lesson that is wanted, and its way through requests, judgement, other tries, other teachers and peers.

A shard of the exam becomes asks; each ask has at most one request open. `advance` takes a settled request and returns
the next one to send, or None when the ask is done: accepted, or failed with the reason of its last request; then comes
`following`, for what waited for it. What an ask does depends on its own replies and on those that it waited for alone,
so the order in which replies arrive changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tailor_ray.answers import Grader
from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.prompts.parse import parse_score, strip_thinking
from tailor_ray.prompts.teacher import CONTINUE, Messages, TeacherPrompt, Templates
from tailor_ray.records import Attempt, LessonKind, Question, Verdict
from tailor_ray.teacher.budget import CAP_GROWTH
from tailor_ray.teacher.client import TeacherRequest, make_request
from tailor_ray.teacher.dispatch import Settled
from tailor_ray.teacher.lessons import Judged, judge

CUT_OFF = "it was cut off by the length limit. Be briefer."


@dataclass(frozen=True, slots=True)
class Ended:
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
    ended: list[Ended] = field(default_factory=list)
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
        """Round 1 wants rationales of every question, later rounds feedback on every distinct mistake."""
        by_question: dict[str, list[Attempt]] = {question.id: [] for question in questions}
        for attempt in attempts:
            by_question[attempt.question_id].append(attempt)
        asks: list[Ask] = []
        for question in questions:
            own = sorted(by_question[question.id], key=lambda attempt: attempt.sample)
            wrong = [attempt for attempt in own if attempt.verdict == Verdict.WRONG]
            priority = (-len(wrong) / len(own) if own else 0.0, int(question.id in taught), question.id)
            for mistake, sample in self._wanted(wrong):
                kind = LessonKind.RATIONALE if mistake is None else LessonKind.FEEDBACK
                made = [Ask(question, kind, mistake, sample, group, priority) for group in self._groups()]
                for before, ask in zip(asks[-len(made) :] if sample else (), made, strict=False):
                    before.then = ask
                asks += made
        return asks

    def first(self, ask: Ask) -> TeacherRequest:
        return self._open(ask)

    def following(self, ask: Ask) -> TeacherRequest | None:
        """The first request of what waited for this ask, which is done; None where nothing did."""
        if ask.then is None:
            return None
        ask.then.earlier = [*ask.earlier, *([ask.accepted.rationale] if ask.accepted else [])]
        return self._open(ask.then)

    def advance(self, ask: Ask, settled: Settled) -> TeacherRequest | None:
        """Judge the reply; see the module's contract."""
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
            ask.messages = self._prompts[endpoint.model].hinted(ask.question)
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

    def _groups(self) -> list[tuple[EndpointConfig, ...]]:
        endpoints = self._config.teachers
        return [endpoints] if self._config.arrangement == "cascade" else [(endpoint,) for endpoint in endpoints]

    def _end(self, ask: Ask, settled: Settled, outcome: str, reason: str | None) -> None:
        ask.ended.append(Ended(settled, len(ask.ended) + 1, outcome, reason))

    def _next_teacher(self, ask: Ask) -> TeacherRequest | None:
        if ask.turn + 1 >= len(ask.teachers):
            return None
        ask.turn += 1
        ask.tries = 0
        return self._open(ask)

    def _open(self, ask: Ask) -> TeacherRequest:
        prompt = self._prompts[ask.teachers[ask.turn].model]
        if ask.mistake is None:
            ask.messages = prompt.rationale(ask.question, ask.earlier)
        else:
            ask.messages = prompt.feedback(ask.question, ask.mistake.text)
        ask.cap = ask.teachers[ask.turn].max_tokens
        return self._request(ask, ask.teachers[ask.turn], ask.messages)

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
