"""What the student is shown and what it is to write back, for the exam, the evaluation and training alike.

Always holds. Every rendered prompt starts with `prefix`, which is the same for all questions. So engines and training
may compute it once. `render(q) + completion(…)` is one training row. A completion ends where the end-of-sequence token
belongs. The conclusion is written once, as the last line, in the form that the grader reads. A prompt is picklable, and
needs no tokenizer in plain style.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from tailor_ray.errors import ConfigError
from tailor_ray.records import AnswerKind, Question

Messages = list[dict[str, str]]
Chat = Callable[[Messages, bool], str]  # (messages, whether the assistant's turn is opened) -> text

_FORM = {
    AnswerKind.NUMBER: "Answer: <number>",
    AnswerKind.CHOICE: "Answer: (<letter>)",
    AnswerKind.YES_NO: "Answer: <yes or no>",
}
CLOSES = "\n</think>\n\n"  # a thought, before the answer
_OPENED = re.compile(r"<(?:think|thinking|reasoning|thought)>\s*$", re.IGNORECASE)
MAX_CONCLUSION = 300  # characters of one; no more of a text's end is searched at a time, so that it takes linear time
_CONCLUDING = re.compile(
    r"(?:^|(?<=[.!?])[ \t]+|\n)[*_ \t]*"
    r"(?:####|A\s?:|(?:(?:therefore|thus|so|hence|finally|in conclusion)\b,?\s+)?(?:the\s+|my\s+)?(?:final\s+)?answer\b"
    r"[*_\s]{0,4}(?:is|:|=))"
    r"[^\n=]{0,100}$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class StudentPrompt:
    """Questions rendered in one style. `chat` is the tokenizer's template (`models.texts.ChatTemplate`)."""

    style: Literal["plain", "chat"]
    kind: AnswerKind
    demos: Sequence[Question] = field(default=())  # worked questions, shown first in every prompt
    chat: Chat | None = None
    thinking: bool = False  # whether the student is to think before it answers

    def __post_init__(self) -> None:
        if self.style == "chat" and self.chat is None:
            raise ConfigError("student.prompt_style: chat needs the tokenizer's chat template; set it to plain")

    @cached_property
    def prefix(self) -> str:
        """The demos as every prompt begins with them; "" without demos."""
        if not self.demos:
            return ""
        if self.chat is None or self.style == "plain":
            return "".join(
                self._block(demo) + self.completion(demo.rationale or "", demo.answer) + "\n\n" for demo in self.demos
            )
        shared = self.chat(self._demo_turns(), False)
        # Some templates write a turn differently when another follows; then nothing is shared, and that is said by "".
        probe = self.chat([*self._demo_turns(), {"role": "user", "content": "?"}], True)
        return shared if probe.startswith(shared) else ""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a completion.

        A student that was never trained goes on with a question of its own.
        """
        return ("\nQuestion:",) if self.style == "plain" else ()

    @cached_property
    def begun(self) -> str:
        """What the prompt has already written of every completion.

        Returns the opening of a thought, or "".
        """
        if self.chat is None or self.style == "plain":
            return ""
        opened = _OPENED.search(self.chat([{"role": "user", "content": "?"}], True))
        return opened[0] if opened else ""

    def render(self, question: Question) -> str:
        """The prompt; the student's completion is to follow it directly."""
        if self.chat is None or self.style == "plain":
            return self.prefix + self._block(question)
        return self.chat([*self._demo_turns(), {"role": "user", "content": self._asked(question)}], True)

    def critique(self, question: Question, mistake: str, feedback: str) -> str:
        """The prompt of a second try, after an own `mistake` and what a teacher said of it (`feedback`).

        It is for training alone.
        """
        if self.chat is None or self.style == "plain":
            return f"{self.prefix}{self._block(question)}{mistake.rstrip()}\nFeedback: {feedback.strip()}\nReasoning:"
        turns = [
            {"role": "user", "content": self._asked(question)},
            {"role": "assistant", "content": mistake.strip()},
            {"role": "user", "content": feedback.strip()},
        ]
        return self.chat([*self._demo_turns(), *turns], True)

    def completion(self, rationale: str, answer: str) -> str:
        """What the student is to write after `render`.

        That is the `rationale`, and the conclusion with the `answer` once, as the last line.
        """
        if self.style == "plain":
            return f" {self._worked(rationale, answer)}"
        if self.begun:
            return self._worked(rationale, answer, f"\n{self.begun.strip().replace('<', '</')}\n\n")
        if self.thinking:
            return f"<think>\n{self._worked(rationale, answer, CLOSES)}"
        return self._worked(rationale, answer)

    def _worked(self, rationale: str, answer: str, between: str = "\n") -> str:
        """Rationale and conclusion; `between` may close a thought that holds the rationale, also an empty one."""
        body = without_conclusion(rationale)
        shown = f"({answer})" if self.kind is AnswerKind.CHOICE else answer
        return f"{body}{between}Answer: {shown}" if body or between != "\n" else f"Answer: {shown}"

    def _block(self, question: Question) -> str:
        return f"Question: {_with_choices(question)}\nReasoning:"

    def _asked(self, question: Question) -> str:
        # No number stands in for the answer here: a small model copies it.
        form = _FORM.get(self.kind, "Answer: <answer>")
        return (
            f"{_with_choices(question)}\n\nSolve this in a few short steps. Then write the answer on the last line, "
            f"in this form:\n{form}"
        )

    def _demo_turns(self) -> Messages:
        turns: Messages = []
        for demo in self.demos:
            turns.append({"role": "user", "content": self._asked(demo)})
            turns.append({"role": "assistant", "content": self._worked(demo.rationale or "", demo.answer)})
        return turns


def without_conclusion(text: str) -> str:
    """A rationale less the lines or sentences at its end that only say the answer ("#### 18", "The answer is 18.").

    A conclusion that still computes ("The answer is 9 * 2 = 18.") belongs to the reasoning and stays.
    """
    text = text.strip()
    end = len(text)
    while match := _CONCLUDING.search(text, max(0, end - MAX_CONCLUSION), end):
        end = match.start()
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end]


def _with_choices(question: Question) -> str:
    choices = question.choice_texts()
    if not choices:
        return question.text
    return f"{question.text}\nChoices: " + " ".join(f"({letter}) {text}" for letter, text in choices.items())
