"""Grade a file of recorded outputs: the verdicts, and where they differ from given labels.

In: a file of rows: JSONL, CSV or parquet, compressed or not. A row has a question, a gold answer and a model's output.
It may have a label (whether a person calls it right), choices and a finish reason.
Out: a line for each row, the counts, and every row whose verdict and label differ.
Nothing is asked of a model and nothing is spent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor_ray.answers import Grade, Grader
from tailor_ray.config.task import ColumnsConfig
from tailor_ray.errors import ConfigError, DataError
from tailor_ray.records import AnswerKind, Verdict
from tailor_ray.tasks.sources import FileRows
from tailor_ray.tasks.splits import RowReader

# What a row says, and the columns that it is looked for in.
COLUMNS = {
    "question": ("question",),
    "gold": ("gold", "answer"),
    "output": ("output", "text"),
    "label": ("label", "is_correct"),
    "choices": ("choices",),
    "finish_reason": ("finish_reason",),
}
LABELS = {"true": True, "correct": True, "right": True, "yes": True, "1": True}
LABELS |= {"false": False, "wrong": False, "incorrect": False, "no": False, "0": False}
REASONS = ("stop", "length", "error")
SHOWN_BAD = 20
TAIL = 300  # characters of an output that a disagreement shows


@dataclass(frozen=True, slots=True)
class Graded:
    """One row's verdict. `label` is None where the row has none."""

    line: int
    gold: str
    output: str
    grade: Grade
    label: bool | None

    @property
    def differs(self) -> bool:
        """Whether the label says otherwise; a disputed verdict says nothing."""
        if self.label is None or self.grade.verdict is Verdict.DISPUTED:
            return False
        return (self.grade.verdict is Verdict.CORRECT) is not self.label


def answer_kind(name: str) -> AnswerKind:
    """The kind of that name. Raises ConfigError naming those that there are."""
    try:
        return AnswerKind(name)
    except ValueError:
        raise ConfigError(f"--kind {name!r} is none of {', '.join(kind.value for kind in AnswerKind)}") from None


def grade_file(
    path: Path, kind: AnswerKind, function: str | None, columns: list[str], brief: bool, say: Callable[[str], None]
) -> None:
    """Grade every row of the file and `say` what came of it, a line for each row unless it is to be `brief`.

    `columns` are texts NAME=COLUMN; `function` grades where `kind` is python. Raises ConfigError for options that do
    not go together, and DataError for a file without rows or, at the end, naming the rows that break a rule.
    """
    if not path.is_file():
        raise DataError(f"{str(path)!r} is not a file; give one with the columns question, gold and output")
    if (kind is AnswerKind.PYTHON) != (function is not None):
        raise ConfigError("--kind python and --function go together; give both or neither")
    grader = Grader(kind, function)
    grader.check()
    named = dict(COLUMNS)  # where to look for what
    for one in columns:
        name, equals, column = one.partition("=")
        if not equals or not column or name not in COLUMNS:
            raise ConfigError(f"--column {one!r} is not NAME=COLUMN with one of the names {', '.join(COLUMNS)}")
        named[name] = (column,)
    source, bad = FileRows(str(path)), []
    graded: list[Graded] = []
    for line, row in source:
        try:
            if isinstance(row, str):
                raise ValueError(row)
            graded.append(_grade(grader, row, line, named))
        except ValueError as error:
            bad.append(f"{path}, line {line}: {error}")
            continue
        if not brief:
            say(_line(graded[-1]))
    if not graded and not bad:
        raise DataError(f"{path} is empty: it holds no row to grade")
    _sum_up(graded, say)
    if bad:
        more = f"\n  and {len(bad) - SHOWN_BAD} more" if len(bad) > SHOWN_BAD else ""
        raise DataError(f"{len(bad)} rows of {path} were not graded:\n  " + "\n  ".join(bad[:SHOWN_BAD]) + more)


def _grade(grader: Grader, row: dict[str, Any], line: int, named: dict[str, tuple[str, ...]]) -> Graded:
    """Raises ValueError with the rule that the row breaks."""
    found = {
        name: next((one for one in places if row.get(one) is not None), places[0]) for name, places in named.items()
    }
    columns = ColumnsConfig(
        id="\0", question=found["question"], answer=found["gold"], choices=found["choices"], rationale="\0"
    )
    question = RowReader(columns, grader.kind).question(row, f"line-{line}")
    output = row.get(found["output"])
    if not isinstance(output, str):
        what = "there is no" if output is None else f"a {type(output).__name__}, not text, is in"
        raise ValueError(f"{what} {found['output']!r}, the model's output; --column output=NAME names another column")
    reason = row.get(found["finish_reason"]) or "stop"
    if reason not in REASONS:
        raise ValueError(f"{found['finish_reason']!r} is {reason!r}, none of {', '.join(REASONS)}")
    said, label = row.get(found["label"]), None
    if said not in (None, ""):
        label = LABELS.get(str(said).strip().lower().removesuffix(".0"))
        if label is None:
            raise ValueError(f"{found['label']!r} is {said!r}; a label is true or false, correct or wrong, 1 or 0")
    return Graded(line, question.answer, output, grader.grade(question, output, reason), label)


def _line(row: Graded) -> str:
    answer = "no answer" if row.grade.answer is None else f"answer {row.grade.answer[:60]!r}"
    why = f" ({row.grade.detail})" if row.grade.detail else ""
    return f"line {row.line}: {row.grade.verdict.value}, {answer}, gold {row.gold[:60]!r}{why}"


def _sum_up(graded: list[Graded], say: Callable[[str], None]) -> None:
    verdicts = Counter(row.grade.verdict for row in graded)
    say(f"{len(graded)} outputs: " + ", ".join(f"{verdicts[one]} {one.value}" for one in Verdict if verdicts[one]))
    labelled = [row for row in graded if row.label is not None]
    if not labelled:
        return
    differing = [row for row in labelled if row.differs]
    disputed = sum(row.grade.verdict is Verdict.DISPUTED for row in labelled)
    say(
        f"{len(labelled)} labelled: {len(labelled) - len(differing) - disputed} agree, {len(differing)} differ, "
        f"{disputed} disputed"
    )
    for row in differing:
        say(f"{_line(row)}, but labelled {'correct' if row.label else 'wrong'}: {row.output[-TAIL:]!r}")
