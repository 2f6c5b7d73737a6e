"""From rows to a task's splits.

Each row is checked. Test is kept out of train, and validation is held out of train. The rest is streamed.

One pass over the files finds the rows that break a rule, repeat an id or overlap with test. Of a training row it holds
two numbers, its id's and its rank. They take 17 bytes, and 28 while it puts ids in order. Of a row that is left out it
holds the line number, never the row. The splits read the files again each time that they are iterated.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from string import ascii_lowercase
from typing import Any

import numpy as np

from tailor_ray.answers import Grader, normalize_gold
from tailor_ray.config.task import ColumnsConfig, TaskConfig
from tailor_ray.errors import DataError
from tailor_ray.records import AnswerKind, Question, Verdict
from tailor_ray.tasks.base import LISTED, SOLVED, Findings, TaskData, split_solution, written_number
from tailor_ray.tasks.contamination import Overlap, TestIndex, normalized
from tailor_ray.tasks.sources import Row, Source, unique_keys

SHOWN = 5  # bad rows that an error message names
NEWEST_SHARE = 64  # of the ids seen, one in so many may wait in a set, at some 80 bytes, for its place in order
NEWEST = 4096  # that wait before the first are put in order


@dataclass(frozen=True)
class RowReader:
    """Turns rows into questions by the configured columns and the answer kind's rules."""

    columns: ColumnsConfig
    kind: AnswerKind

    def question(self, row: Row, default_id: str) -> Question:
        """The question of a row.

        `default_id` is taken where the row has none. Raises ValueError with the rule that the row breaks.
        """
        text = _text(row, self.columns.question)
        choices = _choices(row, self.columns.choices) if self.kind is AnswerKind.CHOICE else None
        answer = _answer(row, self.columns.answer, self.kind)
        rationale = _text(row, self.columns.rationale) if row.get(self.columns.rationale) else None
        if self.kind is AnswerKind.NUMBER and SOLVED in answer:  # GSM8K's own layout
            solution, answer = split_solution(answer)
            rationale = rationale or solution
        return Question(
            id=_id(row, self.columns.id, default_id),
            text=text.strip(),
            answer=normalize_gold(self.kind, answer, choices),
            choices=json.dumps(choices, ensure_ascii=False) if choices else None,
            rationale=rationale,
        )


@dataclass(frozen=True)
class Split:
    """One split, streamed from its source. Picklable; iterating again gives the same questions."""

    source: Source
    reader: RowReader
    name: str
    skip: frozenset[int]  # numbers of rows that are left out
    limit: int | None = None
    member: Callable[[Question], bool] | None = None

    def __iter__(self) -> Iterator[Question]:
        left = self.limit
        for number, row in self.source:
            if left == 0:
                return
            if number in self.skip or isinstance(row, str):
                continue
            question = self.reader.question(row, f"{self.name}-{number}")
            if self.member is None or self.member(question):
                left = None if left is None else left - 1
                yield question


@dataclass(frozen=True)
class InValidation:
    """Whether a training question belongs to validation: its rank is among the lowest.

    The rank is a seeded hash of the text, not of the id, so that a question and its repeats fall on one side.
    """

    seed: int
    threshold: int
    wanted: bool  # True keeps the held-out questions, False the others

    def __call__(self, question: Question) -> bool:
        return (rank(normalized(question.text), self.seed) <= self.threshold) is self.wanted


def rank(words: str, seed: int) -> int:
    """A number that orders the training questions for validation.

    Returns one below 2**63 that depends on the seed and the `normalized` text alone.
    """
    return _hash(f"{seed}/{words}") >> 1


def assemble(
    config: TaskConfig, seed: int, kind: AnswerKind, demos: tuple[Question, ...], train: Source, test: Source
) -> TaskData:
    """Check everything, then hand over streams.

    `train` and `test` are read once here, and again whenever a split is iterated. Raises DataError naming file, row and
    rule.
    """
    grader = Grader(kind, config.answer_function)
    grader.check()
    check_demos(demos, grader)
    reader = RowReader(config.columns, kind)
    scan = _Scan(config, reader)
    test_index = TestIndex(scan.read(test, "test"), config.contamination_overlap)
    scan.finish(test, "test")
    ranks = array("q")
    for question in scan.read(train, "train"):
        words = normalized(question.text)
        overlap = test_index.overlap(question.id, words)
        if overlap:
            scan.contaminated(overlap, drop=config.contamination == "drop")
        if overlap is None or config.contamination != "drop":
            ranks.append(rank(words, seed))
    scan.finish(train, "train")
    if scan.overlaps and config.contamination == "refuse":
        pairs = "\n  ".join(f"{pair.train} = {pair.test} by {pair.how}" for pair in scan.overlaps[:SHOWN])
        raise DataError(
            f"{scan.overlap_count} questions of {train} overlap with {test}:\n  {pairs}\n"
            "Set task.contamination to drop to leave them out, or raise task.contamination_overlap"
        )
    threshold = _threshold(ranks, config, train)
    skip = frozenset(scan.skip["train"])
    return TaskData(
        name=config.name,
        answer_kind=kind,
        demos=demos,
        train=Split(train, reader, "train", skip, config.limit_train, InValidation(seed, threshold, False)),
        validation=Split(train, reader, "train", skip, None, InValidation(seed, threshold, True)),
        test=Split(test, reader, "test", frozenset(scan.skip["test"]), config.limit_test),
        grader=grader,
        findings=scan.findings(),
    )


def check_demos(demos: tuple[Question, ...], grader: Grader) -> None:
    """Check demos by the task's own grader: a demo teaches the form by example, so it must be right.

    Raises DataError naming the demo that is not.
    """
    for demo in demos:
        try:
            normalize_gold(grader.kind, demo.answer, demo.choice_texts())
        except ValueError as error:
            raise DataError(f"task.demos: the demo {demo.text[:60]!r}: {error}") from None
        shown = f"({demo.answer})" if grader.kind is AnswerKind.CHOICE else demo.answer
        grade = grader.grade(demo, f"{demo.rationale}\nAnswer: {shown}")
        if grader.kind is not AnswerKind.REGEX and grade.verdict is not Verdict.CORRECT:
            raise DataError(
                f"task.demos: the answer {demo.answer!r} of {demo.text[:60]!r} is {grade.verdict} to its grader"
            )


class NumberSet:
    """A set of numbers below 2**64 at 8 to 10 bytes each: an ordered array, and beside it a set of the newest."""

    def __init__(self) -> None:
        self._ordered = np.empty(0, dtype=np.uint64).data  # bisect reads it in half of numpy's time
        self._newest: set[int] = set()

    def __len__(self) -> int:
        return len(self._ordered) + len(self._newest)

    def add(self, number: int) -> bool:
        """Put `number` into the set. Returns whether it is new."""
        if number in self._newest:
            return False
        place = bisect_left(self._ordered, number)
        if place < len(self._ordered) and self._ordered[place] == number:
            return False
        self._newest.add(number)
        if len(self._newest) > max(NEWEST, len(self._ordered) // NEWEST_SHARE):
            newest = np.fromiter(self._newest, dtype=np.uint64, count=len(self._newest))
            self._newest.clear()
            ordered = np.concatenate([self._ordered, newest])
            ordered.sort(kind="stable")  # merges what is in order already: 3 ms for a million
            self._ordered = ordered.data
        return True


@dataclass
class _Scan:
    """What one pass over the files found."""

    config: TaskConfig
    reader: RowReader
    skip: dict[str, set[int]] = field(default_factory=lambda: {"train": set(), "test": set()})
    bad: list[str] = field(default_factory=list)
    bad_count: dict[str, int] = field(default_factory=lambda: {"train": 0, "test": 0})
    overlaps: list[Overlap] = field(default_factory=list)
    overlap_count: int = 0
    _ids: NumberSet = field(default_factory=NumberSet)
    _rows: dict[str, int] = field(default_factory=dict)
    _number: int = 0

    def read(self, source: Source, split: str) -> Iterator[Question]:
        """The split's good questions; the others are noted."""
        self._rows[split] = 0
        for self._number, row in source:
            self._rows[split] += 1
            try:
                if isinstance(row, str):
                    raise ValueError(row)
                question = self.reader.question(row, f"{split}-{self._number}")
                if not self._ids.add(_hash(question.id)):
                    raise ValueError(f"the id {question.id[:60]!r} was seen before; ids are unique over train and test")
            except ValueError as error:
                self.skip[split].add(self._number)
                self.bad_count[split] += 1
                if len(self.bad) < LISTED:
                    self.bad.append(f"{source}, line {self._number}: {error}")
                continue
            yield question

    def finish(self, source: Source, split: str) -> None:
        """Refuse an empty file and one with too many bad rows."""
        rows, bad = self._rows[split], self.bad_count[split]
        if rows == 0:
            raise DataError(f"{source} is empty: it holds no row; set task.path to a folder with questions")
        if bad > self.config.max_bad_share * rows:
            named = [line for line in self.bad if line.startswith(str(source))][:SHOWN]
            raise DataError(
                f"{bad} of {rows} rows break a rule, more than task.max_bad_share={self.config.max_bad_share:g} allows "
                f"(raise it to skip them):\n  " + "\n  ".join(named)
            )

    def contaminated(self, overlap: Overlap, drop: bool) -> None:
        self.overlap_count += 1
        if len(self.overlaps) < LISTED:
            self.overlaps.append(overlap)
        if drop:
            self.skip["train"].add(self._number)

    def findings(self) -> Findings:
        rows = tuple(overlap.to_json() for overlap in self.overlaps)
        return Findings(sum(self.bad_count.values()), tuple(self.bad), self.overlap_count, rows)


def _threshold(ranks: array[int], config: TaskConfig, train: Source) -> int:
    """The rank up to which questions are held out, so that the configured number of them is. Puts `ranks` in order."""
    ordered = np.frombuffer(ranks, dtype=np.int64)
    ordered.sort()  # in place
    below = int(ordered.searchsorted(ordered[-1])) if len(ordered) else 0  # something must be left to train on
    if not below:
        raise DataError(f"{train} leaves no two different questions; one to train on and one to validate are needed")
    held_out = min(config.max_validation, max(1, round(config.validation_share * len(ordered))))
    return int(ordered[min(held_out, below) - 1])


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        raise ValueError(f"there is no {column!r}")
    if not isinstance(value, str):
        raise ValueError(f"{column!r} is a {type(value).__name__}, not text")
    if not value.strip():
        raise ValueError(f"{column!r} is empty")
    if "\0" in value:
        raise ValueError(f"{column!r} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{column!r} holds half a surrogate pair, which is not text") from None
    return value


def _id(row: Mapping[str, Any], column: str, default: str) -> str:
    value = row.get(column)
    if value is None or value == "":
        return default
    return str(value) if isinstance(value, int) else _text(row, column)


def _answer(row: Mapping[str, Any], column: str, kind: AnswerKind) -> str:
    value = row.get(column)
    if isinstance(value, bool):
        if kind is not AnswerKind.YES_NO:
            raise ValueError(f"{column!r} is {value}, which only the answer kind yes_no takes")
        return "yes" if value else "no"
    return written_number(value) if isinstance(value, int | float | Decimal) else _text(row, column)


def _choices(row: Mapping[str, Any], column: str | dict[str, str]) -> dict[str, str]:
    """Letters and texts of {"a": …}, [text, …] or {"label": […], "text": […]}, or JSON of one, or of many columns."""
    value: Any = row.get(column) if isinstance(column, str) else {key: row.get(name) for key, name in column.items()}
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=unique_keys)
        except ValueError as error:
            raise ValueError(f"the choices are not valid JSON: {error}") from None
    pairs: list[tuple[Any, Any]]
    if isinstance(value, Mapping) and isinstance(value.get("label"), list) and isinstance(value.get("text"), list):
        labels, texts = value["label"], value["text"]
        if len(labels) != len(texts):
            raise ValueError(f"the choices have {len(labels)} labels and {len(texts)} texts")
        pairs = list(zip(labels, texts, strict=True))
    elif isinstance(value, list):
        if len(value) > len(ascii_lowercase):
            raise ValueError(f"there are {len(value)} choices, and no more than {len(ascii_lowercase)} letters")
        pairs = list(zip(ascii_lowercase, value, strict=False))
    elif isinstance(value, Mapping):
        pairs = [(letter, text) for letter, text in value.items() if text is not None]  # a column that others use
    else:
        pairs = []
    if len(pairs) < 2:
        raise ValueError("the choices must be a mapping of letters to texts or a list of texts, two at least")
    choices: dict[str, str] = {}
    for written, text in pairs:
        letter = str(written).strip("(). ").lower()
        if len(letter) != 1 or not letter.isalpha():
            raise ValueError(f"a choice is named {letter!r}, not by a letter")
        if letter in choices:
            raise ValueError(f"two choices are named {letter!r}")
        choices[letter] = _text({letter: text}, letter)
    return choices


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
