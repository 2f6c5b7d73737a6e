"""What kind of mistakes does a student make? `python jobs/benchmarks/mistakes.py RUN_FOLDER [--samples 10]`.

In: the folder of a run on the built-in task, whose problems' structure is known. Out: a table, one line a round, stage
and class, with counts, shares and 95 % Wilson intervals; as the last line the same as a JSON object. `--samples` prints
so many attempts of each class, to be looked at.

Only calculations are read, such as `12 + 7 = 19`, and compared with each way in which the question can be solved. An
attempt's own results count as right where it goes on with them.

- slip: the operations and operands of a way; the result of one, or the conclusion, is wrong.
- misreading: the operations of a way in their order, and another operand, such as a number that is not in the question.
- wrong plan: other operations, another order, or a step too few or too many.
- other: no answer, cut off, without a calculation, or with one that cannot be read.

Corrected is the share of an exam's mistakes whose question was answered right by the attempt with the same number in
the next exam, after the round's training.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tailor_ray.demo.arithmetic.language import Step
from tailor_ray.demo.arithmetic.solver import read
from tailor_ray.layout import ATTEMPTS, QUESTIONS, StageId, rounds_begun, stage_folder
from tailor_ray.records import Attempt, Question, R, Verdict, from_table
from tailor_ray.statistics import wilson_interval
from tailor_ray.storage import Store, read_manifest, read_part, stage_parts

SLIP, MISREADING, PLAN, OTHER = CLASSES = ("slip", "misreading", "wrong plan", "other")
MISTAKES = (Verdict.WRONG, Verdict.UNPARSED, Verdict.TRUNCATED)
STAGES = {"exam": (ATTEMPTS, "train"), "evaluate": ("test", "test")}  # prefix of the attempts, split of the questions
_CALCULATION = re.compile(r"(?<![\d.])(?<![-+*/] )(?<![-+*/])(\d+) ?([-+*/]) ?(\d+) ?= ?(-?\d+)(?!\.?\d)")


@dataclass(frozen=True)
class Mistake:
    """A wrong attempt, its class, and whether the next exam's attempt is right; None where there is none."""

    question: Question
    attempt: Attempt
    kind: str
    corrected: bool | None = None


def classify(question: str, attempt: Attempt) -> str:
    """The class of a wrong attempt; `other` too for questions that are none of the built-in task's."""
    found, shown = read(question), calculations(attempt.text)
    if attempt.verdict is not Verdict.WRONG or found is None or not shown:
        return OTHER
    family, slots = found
    numbers = {slot: int(text) for slot, text in slots.items() if text.isdigit()}
    ways = [family.steps, *(way.steps for way in family.others)]
    if any(follows(way, numbers, shown) for way in ways):
        return SLIP
    operators = [step.operator for step in shown]
    same = any([text.split()[3] for text in way] == operators for way in ways)
    return MISREADING if same else PLAN


def calculations(text: str) -> list[Step]:
    """The calculations of an attempt in order; none where one of them cannot be read."""
    found = [Step(int(a), operator, int(b), int(c)) for a, operator, b, c in _CALCULATION.findall(text)]
    return found if len(found) == text.count("=") else []


def follows(way: Sequence[str], numbers: Mapping[str, int], shown: Sequence[Step]) -> bool:
    """Whether each step has the way's operation and operands, given the results that were shown before."""
    if len(way) != len(shown):
        return False
    known = dict(numbers)
    for text, step in zip(way, shown, strict=True):
        target, _, left, operator, right = text.split()
        operands = [known[name] if name.isalpha() else int(name) for name in (left, right)]
        given = [step.left, step.right]
        if operator != step.operator or (operands != given and (operator in "-/" or operands != given[::-1])):
            return False
        known[target] = step.result
    return True


def mistakes_of(run: Store) -> Iterator[tuple[int, str, int, list[Mistake]]]:
    """Round, stage, number of attempts and the mistakes among them, of each committed exam and evaluation."""
    for number in rounds_begun(run):
        for stage in STAGES:
            asked = attempts_of(run, number, stage)
            if not asked:
                continue
            then = {(one.question_id, one.sample): one for _, one in attempts_of(run, number + 1, stage)}
            found = []
            for question, attempt in asked:
                later = then.get((attempt.question_id, attempt.sample)) if stage == "exam" else None
                corrected = None if later is None else later.verdict is Verdict.CORRECT
                if attempt.verdict in MISTAKES:
                    found.append(Mistake(question, attempt, classify(question.text, attempt), corrected))
            yield number, stage, len(asked), found


def attempts_of(run: Store, number: int, stage: str) -> list[tuple[Question, Attempt]]:
    """The attempts of a stage with their questions; none where it is not committed."""
    prefix, split = STAGES[stage]
    folder = stage_folder(run, StageId(number, stage))
    if read_manifest(folder) is None:
        return []
    questions = {question.id: question for question in _rows(stage_folder(run, QUESTIONS), split, Question)}
    return [(questions[attempt.question_id], attempt) for attempt in _rows(folder, prefix, Attempt)]


def _rows(folder: Store, prefix: str, record: type[R]) -> list[R]:
    return [row for part in stage_parts(folder, prefix) for row in from_table(read_part(folder, part), record)]


def count(run: Store) -> list[dict[str, object]]:
    """A row for each round, stage and class."""
    rows: list[dict[str, object]] = []
    for number, stage, attempts, found in mistakes_of(run):
        for kind in CLASSES:
            some = [one for one in found if one.kind == kind]
            told = [one.corrected for one in some if one.corrected is not None]
            row = {"round": number, "stage": stage, "attempts": attempts, "mistakes": len(found), "class": kind}
            row |= {"count": len(some), **share("share", len(some), len(found))}
            rows.append(row | share("corrected", sum(told), len(told)))
    return rows


def share(name: str, part: int, whole: int) -> dict[str, object]:
    """A share with its interval; null where there is nothing to share."""
    bounds = [round(bound, 6) for bound in wilson_interval(part, whole)]
    return {name: round(part / whole, 6), f"{name}_ci95": bounds} if whole else {name: None, f"{name}_ci95": None}


def table(rows: Sequence[Mapping[str, object]]) -> str:
    heads = ["round", "stage", "mistakes", "class", "count", "share", "corrected"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        asked = f"{row['mistakes']:,} of {row['attempts']:,}"
        cells = [row["round"], row["stage"], asked, row["class"], f"{row['count']:,}"]
        lines.append(f"| {' | '.join(map(str, [*cells, _shown(row, 'share'), _shown(row, 'corrected')]))} |")
    return "\n".join(lines)


def _shown(row: Mapping[str, object], name: str) -> str:
    bounds = row[f"{name}_ci95"]
    if not isinstance(bounds, list):
        return "–"
    return f"{row[name]:.1%} ({bounds[0]:.1%} – {bounds[1]:.1%})"


def samples(run: Store, wanted: int) -> str:
    """So many mistakes of each class, drawn from all rounds and stages."""
    found = [one for _, _, _, some in mistakes_of(run) for one in some]
    lines = []
    for kind in CLASSES:
        some = [one for one in found if one.kind == kind]
        for one in random.Random(0).sample(some, min(wanted, len(some))):
            right = f"{one.question.text} [{one.question.answer}]"
            lines.append(f"{kind}: {right}\n    {one.attempt.verdict}: {' '.join(one.attempt.text.split())}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run, or its storage URI")
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="print so many attempts of each class")
    given = parser.parse_args()
    run = Store.open(given.run)
    rows = count(run)
    if not rows:
        sys.exit(f"{run.uri} has no committed exam or evaluation: give the folder of a run, <storage>/<name>")
    if given.samples:
        print(samples(run, given.samples), end="\n\n")
    print(table(rows), end="\n\n")
    print(json.dumps({"mistakes": rows}))


if __name__ == "__main__":
    main()
