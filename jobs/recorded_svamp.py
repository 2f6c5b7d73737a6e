"""SVAMP with recorded rationales of real teachers, as a folder that a run reads: train.jsonl and test.jsonl.

    python jobs/recorded_svamp.py DATA OUT

DATA is laid out as $TAILOR_RAY_DATA is: svamp/{train,test}.jsonl and recorded/fair_svamp_rationales.jsonl. Of the
training questions those are kept for which a recorded rationale reaches the gold answer; the shortest one is taken.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailor_ray.answers import Grader
from tailor_ray.records import AnswerKind, LessonKind, Question
from tailor_ray.teacher.asks import judge


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def taught(data: Path) -> Iterator[dict[str, Any]]:
    """The training rows that have a rationale, with it."""
    grader = Grader(AnswerKind.NUMBER)
    recorded: dict[str, list[str]] = {}
    for row in rows(data / "recorded" / "fair_svamp_rationales.jsonl"):
        recorded.setdefault(row["id"], []).append(row["output"])
    for row in rows(data / "svamp" / "train.jsonl"):
        question = Question(row["id"], row["question"], row["answer"])
        for text in sorted(recorded.get(row["id"], ()), key=len):
            lesson = judge(question, LessonKind.RATIONALE, text, grader)
            if lesson.reason is None:
                yield {**row, "rationale": lesson.rationale}
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = [json.dumps(row, ensure_ascii=True) for row in taught(args.data)]
    (args.out / "train.jsonl").write_text("\n".join(kept) + "\n")
    shutil.copyfile(args.data / "svamp" / "test.jsonl", args.out / "test.jsonl")
    print(f"{len(kept)} training questions with a rationale in {args.out}")  # noqa: T201


if __name__ == "__main__":
    main()
