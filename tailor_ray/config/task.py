"""`task`: the questions, their splits and how answers are graded."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tailor_ray.config.base import OPERATIONAL, Section
from tailor_ray.records import AnswerKind, Question


class ColumnsConfig(Section):
    """Names of the columns in the user's files."""

    id: str = "id"
    """Unique over train and test; where the column is missing, the split and the line number are taken."""
    question: str = "question"
    """Text of the question."""
    answer: str = "answer"
    """Gold answer, or for kind `number` a solution that ends in `#### N`; for kind `regex` the pattern that the
    conclusion must match in full."""
    choices: str | dict[str, str] = "choices"
    """Only for kind `choice`: one column with a mapping of letters to texts or a list, or {letter: column, …}."""
    rationale: str = "rationale"
    """Gold rationale; may be missing."""


class DemoConfig(Section):
    """One worked question of the user's own."""

    question: str = Field(min_length=1)
    """Its text."""
    rationale: str = Field(min_length=1)
    """How the answer is reached, without the conclusion."""
    answer: str = Field(min_length=1)
    """Its answer."""
    choices: dict[str, str] | None = None
    """Letters and texts, for kind `choice`."""


class TaskConfig(Section):
    """What is asked."""

    name: Literal["arithmetic", "jsonl", "gsm8k", "svamp", "multiarith", "csqa", "strategyqa"] = "arithmetic"
    """A built-in task, or `jsonl` for a user's own questions (JSONL or CSV, compressed or not, or parquet)."""
    path: Annotated[str | None, OPERATIONAL] = None
    """Folder with train and test files; None takes $TAILOR_RAY_DATA/<name> or else the hub. Not for `arithmetic`."""
    train_file: Annotated[str | None, OPERATIONAL] = None
    """File below `path`; None takes the only train.jsonl, train.parquet or train.csv."""
    test_file: Annotated[str | None, OPERATIONAL] = None
    """File below `path`; None takes the only test.jsonl, test.parquet or test.csv."""
    columns: ColumnsConfig = ColumnsConfig()
    """Which columns hold what, for `jsonl`."""
    answer_kind: AnswerKind | None = None
    """How answers are graded; None takes the task's own (`jsonl` defaults to number); `math` is symbolic."""
    answer_function: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """For kind `python`: `package.module:function`; function(text, gold) says True, False or None (no answer)."""
    demos: tuple[DemoConfig, ...] = ()
    """Few-shot demos of your own; empty takes the task's. They are shown when `student.few_shot` is on."""
    limit_train: int | None = Field(default=None, ge=1)
    """Use only the first N training questions (after validation is held out); None uses all."""
    limit_test: int | None = Field(default=None, ge=1)
    """Use only the first N test questions; None uses all."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of train held out by seed to decide when to stop; never trained on."""
    max_validation: int = Field(default=500, ge=1)
    """Upper bound on the held-out questions."""
    max_bad_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of a file's rows that may break a rule; they are skipped and listed. More of them stop the run."""
    contamination: Literal["drop", "refuse", "ignore"] = "drop"
    """Training rows that overlap with test: drop and list them, refuse to run, or keep but list them."""
    contamination_overlap: float = Field(default=0.6, gt=0, le=1)
    """Rows overlap when this share of the 8-word sequences of the shorter one is found in the other; 1 is a copy."""

    @model_validator(mode="after")
    def _function_for_python(self) -> TaskConfig:
        if (self.answer_kind is AnswerKind.PYTHON) != (self.answer_function is not None):
            raise ValueError("task.answer_kind: python and task.answer_function go together; set both or neither")
        return self

    def own_demos(self) -> tuple[Question, ...]:
        """The configured demos as worked questions."""
        return tuple(
            Question(
                id=f"demo: {demo.question[:40]}",
                text=demo.question,
                answer=demo.answer,
                choices=json.dumps(demo.choices) if demo.choices else None,
                rationale=demo.rationale,
            )
            for demo in self.demos
        )
