"""How the grader does on recorded outputs of real models: `python jobs/benchmarks/grading.py DATA_FOLDER`.

In: a folder with the task data and `recorded/*.jsonl`. Out: a table, one line a file and model: verdicts, how often
the two verifiers agree with each other, and how often the verdict agrees with the source's own label, where it has
one; `--disagreements` prints every text whose verdict and label differ, to be looked at; last, one JSON object.

Labels of the source: `is_correct` where given; else `source_pred`, if it is a number and nothing else, compared by
value. They are sometimes wrong themselves, which is why the texts are printed.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from tailor_ray.answers import Grade
from tailor_ray.config.task import TaskConfig
from tailor_ray.records import Question, Verdict
from tailor_ray.tasks import grader_for

PLAIN = re.compile(r"[$€£]?(-?[\d,]*\.?\d+)[.%]?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with gsm8k/, svamp/, … and recorded/")
    parser.add_argument("--disagreements", action="store_true", help="print every text whose verdict and label differ")
    arguments = parser.parse_args()
    lines = []
    for path in sorted((arguments.data / "recorded").glob("*.jsonl")):
        if path.stem.endswith("feedback"):
            continue  # a teacher's remarks on a wrong answer conclude nothing
        for model, rows in by_model(path).items():
            lines.append(measure(path.stem, model, rows, questions(arguments.data, rows[0]["task"]), arguments))
    print_table(lines)
    print(json.dumps(totals(lines)))


def by_model(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of one recorded file by model and method."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        groups.setdefault(f"{row['model']}, {row['method'].removeprefix('few-shot-')}", []).append(row)
    return groups


def questions(data: Path, task: str) -> dict[str, Question]:
    """The task's questions by id."""
    found = {}
    for split in ("train", "test"):
        for line in (data / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found[row["id"]] = Question(row["id"], row["question"], row["answer"])
    return found


def measure(
    name: str, model: str, rows: list[dict[str, Any]], asked: dict[str, Question], arguments: argparse.Namespace
) -> dict[str, Any]:
    """One line of the table."""
    grader = grader_for(TaskConfig(name=rows[0]["task"]))
    begun = time.process_time()  # others' load does not count
    grades = [grader.grade(asked[row["id"]], row["output"]) for row in rows]
    seconds = time.process_time() - begun
    verdicts = Counter(grade.verdict for grade in grades)
    labelled = [(row, grade) for row, grade in zip(rows, grades, strict=True) if label(row) is not None]
    same = sum((grade.verdict is Verdict.CORRECT) is label(row) for row, grade in labelled)
    if arguments.disagreements:
        for row, grade in differing(labelled):
            print(f"{name} {row['id']} gold {row['gold']}, label {label(row)}, {grade.verdict} ({grade.answer})")
            print(f"    {row['output'][-300:]!r}\n")
    return {
        "file": name,
        "task": rows[0]["task"],
        "model": model,
        "rows": len(rows),
        **{
            verdict.value: verdicts[verdict] for verdict in Verdict if verdict not in (Verdict.ERROR, Verdict.TRUNCATED)
        },
        "verifiers_agree": 1 - verdicts[Verdict.DISPUTED] / len(rows),
        "labelled": len(labelled),
        "label_agrees": same,
        "rows_per_second": len(rows) / seconds,
    }


def label(row: dict[str, Any]) -> bool | None:
    """What the source says of its own output; None where it says nothing."""
    if "is_correct" in row:
        return row["is_correct"]
    prediction = PLAIN.fullmatch(str(row.get("source_pred", "")).strip())
    return None if prediction is None else number(prediction[1]) == number(row["gold"])


def number(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


def differing(labelled: list[tuple[dict[str, Any], Grade]]) -> Iterator[tuple[dict[str, Any], Grade]]:
    for row, grade in labelled:
        if (grade.verdict is Verdict.CORRECT) is not label(row):
            yield row, grade


def print_table(lines: list[dict[str, Any]]) -> None:
    print("| recorded outputs | task | rows | correct | wrong | unparsed | disputed | verifiers agree | label agrees |")
    print("|---|---|---|---|---|---|---|---|---|")
    for line in lines:
        agrees = f"{line['label_agrees']} of {line['labelled']}" if line["labelled"] else "no label"
        share = f" ({line['label_agrees'] / line['labelled']:.2%})" if line["labelled"] else ""
        print(
            f"| {line['model']} | {line['task']} | {line['rows']} | {line['correct']} | {line['wrong']} | "
            f"{line['unparsed']} | {line['disputed']} | {line['verifiers_agree']:.2%} | {agrees}{share} |"
        )


def totals(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Agreement by task over all files."""
    out: dict[str, Any] = {}
    for task in sorted({line["task"] for line in lines}):
        chosen = [line for line in lines if line["task"] == task]
        rows = sum(line["rows"] for line in chosen)
        labelled = sum(line["labelled"] for line in chosen)
        out[task] = {
            "rows": rows,
            "verifiers_agree": 1 - sum(line["disputed"] for line in chosen) / rows,
            "labelled": labelled,
            "label_agrees": sum(line["label_agrees"] for line in chosen) / labelled if labelled else None,
            "rows_per_second": rows / sum(line["rows"] / line["rows_per_second"] for line in chosen),
        }
    return out


if __name__ == "__main__":
    main()
