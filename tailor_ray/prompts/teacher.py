"""What the teacher is asked: chat messages for a rationale, for feedback on a mistake, and for another try.

In: a Question, for feedback also the student's attempt, for another try the rejected reply and what was wrong with
it. Out: messages of the chat completions API. The parts of a prompt stand in tags of their own. So the teacher tells
the student's words from ours, and a tag of ours inside those words is defused. The same input gives the same messages,
for they are part of the ledger's key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailor_ray.prompts.parse import strip_thinking
from tailor_ray.records import AnswerKind, LessonKind, Question

Messages = list[dict[str, str]]

SYSTEM = "You are a patient teacher. You explain briefly and correctly, one step after the other."

RATIONALE = """\
Solve this question step by step.

<question>
{question}
</question>

{form}"""

HINTED = """\
Solve this question step by step. The hint is its right answer: find the way there, and write it as if nobody had told \
the answer. Never mention the hint.

<question>
{question}
</question>

<hint>
{answer}
</hint>

{form}"""

ANOTHER = """\
These ways are known already. Take another route to the answer; where there is none, explain it in other words and in \
another order.

<earlier>
{earlier}
</earlier>"""

_MISTAKE = """

<question>
{question}
</question>

<attempt>
{attempt}
</attempt>

<hint>
{answer}
</hint>

{form}"""

FEEDBACK = (
    """\
A student answered this question wrongly. Say in one or two sentences where the student's reasoning first goes wrong, \
then write the reasoning as the student should have written it: complete, from the start, and as if nobody had told \
the answer. Never mention the student, the hint or the reference answer in the corrected reasoning."""
    + _MISTAKE
)

CONTINUE = (
    """\
A student answered this question wrongly. Find the first wrong step and copy it word for word. Say in one or two \
sentences what is wrong with it. Then write the reasoning as the student should have written it: begin with all that \
the student wrote before that step, word for word, and go on from there to the answer, as if nobody had told it. Where \
the very first step is wrong, nothing is kept. Never mention the student, the hint or the reference answer in it."""
    + _MISTAKE
)

SCORE = """\
Another teacher wrote this reasoning for a student. Its answer is right. Judge how clear and how complete it is: can a \
student follow each step, and is no step missing or needless? Give your reasons first, then a score from 1 (unclear or \
full of gaps) to 5 (clear and complete).

<question>
{question}
</question>

<reasoning>
{reasoning}
</reasoning>

Reply in exactly this form:
<reasons>one or two sentences</reasons>
<score>a whole number from 1 to 5</score>"""

AGAIN = "That reply cannot be used: {problem} Write the whole reply again, in the same form."

ANSWER_FORMS: Mapping[AnswerKind, str] = {
    AnswerKind.NUMBER: "the number alone, without unit or separator",
    AnswerKind.CHOICE: "the letter of the choice alone",
    AnswerKind.YES_NO: "yes or no",
    AnswerKind.TEXT: "the answer alone, as short as it can be",
    AnswerKind.REGEX: "the answer alone, as short as it can be",
    AnswerKind.MATH: "the expression alone, in LaTeX",
    AnswerKind.PYTHON: "the answer alone",
}

TEXTS: Mapping[str, str] = {
    "feedback": "where the student's reasoning first goes wrong",
    "wrong_step": "the student's first wrong step, copied word for word",
    "rationale": "the reasoning, step by step",
}

_TAGS = re.compile(
    r"<(/?)(question|attempt|hint|earlier|feedback|wrong_step|rationale|answer|reasoning|reasons|score)>", re.IGNORECASE
)
_PLACEHOLDER = re.compile(r"\{(question|choices|answer|attempt|form|problem|reasoning|earlier)\}")


@dataclass(frozen=True, slots=True)
class Templates:
    """The texts that a configuration may replace."""

    system: str = SYSTEM
    rationale: str = RATIONALE
    hinted: str = HINTED
    feedback: str = FEEDBACK
    again: str = AGAIN


@dataclass(frozen=True, slots=True)
class TeacherPrompt:
    """Renders requests for one task; `structured` asks for JSON by schema instead of tagged text, `continues` for
    corrections that go on from the student's words, `words` bounds a rationale."""

    kind: AnswerKind
    structured: bool = False
    templates: Templates = Templates()
    continues: bool = False
    words: int | None = None

    def rationale(self, question: Question, earlier: Sequence[str] = ()) -> Messages:
        """Asks for a rationale of the question.

        Where there are `earlier` ones they are shown, and another route is asked for.
        """
        return _below(self._messages(self.templates.rationale, question, LessonKind.RATIONALE), earlier)

    def hinted(self, question: Question, earlier: Sequence[str] = ()) -> Messages:
        """Asks for a rationale and shows the answer; `earlier` as in `rationale`."""
        return _below(self._messages(self.templates.hinted, question, LessonKind.RATIONALE), earlier)

    def feedback(self, question: Question, attempt: str) -> Messages:
        return self._messages(self.templates.feedback, question, LessonKind.FEEDBACK, attempt)

    def score(self, question: Question, rationale: str) -> Messages:
        """Asks a peer what another teacher's `rationale` is worth, from 1 to 5.

        The reply is for `parse_score`.
        """
        values = {"question": _defuse(with_choices(question)), "reasoning": _defuse(rationale)}
        return [{"role": "user", "content": _fill(SCORE, values)}]

    def again(self, messages: Messages, reply: str, problem: str) -> Messages:
        """The conversation so far, and what was wrong with its last reply.

        Of the reply goes back what is no thinking; where nothing is left, what was wrong stands below the last
        message, for servers refuse empty ones and two of one role.
        """
        content, shown = _fill(self.templates.again, {"problem": problem}), strip_thinking(reply)
        if not shown:
            last = messages[-1]
            return [*messages[:-1], {**last, "content": f"{last['content']}\n\n{content}"}]
        return [*messages, {"role": "assistant", "content": shown}, {"role": "user", "content": content}]

    def response_format(self, lesson: LessonKind) -> dict[str, Any] | None:
        """The JSON schema to send along with the request for a `lesson` of this kind.

        Returns None where tagged text is asked for.
        """
        if not self.structured:
            return None
        texts = {**TEXTS, "answer": ANSWER_FORMS[self.kind]}
        names = self._fields(lesson)
        schema = {
            "type": "object",
            "properties": {name: {"type": "string", "description": texts[name]} for name in names},
            "required": names,
            "additionalProperties": False,
        }
        return {"type": "json_schema", "json_schema": {"name": lesson.value, "strict": True, "schema": schema}}

    def _messages(self, template: str, question: Question, lesson: LessonKind, attempt: str = "") -> Messages:
        names, texts = self._fields(lesson), {**TEXTS, "answer": ANSWER_FORMS[self.kind]}
        if self.structured:
            fields = ", ".join(f"`{name}` ({texts[name]})" for name in names)
            layout = f"Reply with one JSON object and nothing else. Its fields are texts: {fields}."
        else:
            texts["feedback"] = "where it goes wrong"
            tags = [f"<{name}>{texts[name]}</{name}>" for name in names]
            layout = "\n".join(["Reply in exactly this form:", *tags])
        without = "Markdown" if self.kind is AnswerKind.MATH else "Markdown or LaTeX"
        bound = f", in at most {self.words} words" if self.words else ""
        values = {
            "question": _defuse(with_choices(question) if "{choices}" not in template else question.text),
            "choices": _defuse(choice_lines(question)),
            "attempt": _defuse(attempt.strip()),
            "answer": question.answer,
            "form": f"Write the reasoning as plain text without {without}{bound}. {layout}",
        }
        system = [{"role": "system", "content": self.templates.system}] if self.templates.system else []
        return [*system, {"role": "user", "content": _fill(template, values)}]

    def _fields(self, lesson: LessonKind) -> list[str]:
        """What a reply consists of, in order."""
        if lesson is LessonKind.RATIONALE:
            return ["rationale", "answer"]
        return ["feedback", *(["wrong_step"] if self.continues else []), "rationale", "answer"]


def choice_lines(question: Question) -> str:
    """The choices as "(a) text" lines; empty when there are none."""
    return "\n".join(f"({letter}) {text}" for letter, text in question.choice_texts().items())


def with_choices(question: Question) -> str:
    choices = choice_lines(question)
    return f"{question.text}\n{choices}" if choices else question.text


def section(messages: Sequence[Mapping[str, Any]], tag: str) -> str | None:
    """What stands in a `tag` of a built-in prompt's first user message.

    Returns None when it has no such tag.
    """
    for message in messages:
        content = message.get("content")
        if message.get("role") == "user" and isinstance(content, str):
            found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", content, re.DOTALL)
            return found.group(1) if found else None
    return None


def _below(messages: Messages, earlier: Sequence[str]) -> Messages:
    """The messages with the rationales that are known already below the last one."""
    if not earlier:
        return messages
    known = _fill(ANOTHER, {"earlier": "\n\n".join(map(_defuse, earlier))})
    return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}\n\n{known}"}]


def _defuse(text: str) -> str:
    return _TAGS.sub(r"<\1 \2>", text)


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Fill in known placeholders in one pass: braces in questions, attempts and JSON stay what they are."""
    return _PLACEHOLDER.sub(lambda found: values.get(found.group(1), found.group(0)), template)
