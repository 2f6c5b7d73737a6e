"""A run folder made by the storage API alone: small, seeded, with everything that the report shows."""

import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from tailor_ray import layout
from tailor_ray.answers.grader import CHANGES, compare
from tailor_ray.layout import StageId
from tailor_ray.records import ATTEMPT_SCHEMA, LESSON_SCHEMA, QUESTION_SCHEMA
from tailor_ray.statistics import accuracy
from tailor_ray.storage import (
    Manifest,
    PartsDigest,
    Store,
    commit_manifest,
    commit_part,
    committed_parts,
    read_manifest,
    read_part,
)

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked=1'> "
    '& \u2028 \x7f "quoted" {{ 7*7 }} <!-- http://example.invalid/x.png'
)
SHARD = 32


def make_run(
    path: Path,
    rounds: int = 3,
    questions: int = 80,
    lift: float = 0.17,
    base: float = 0.25,
    last_stage: str = "evaluate",
) -> Store:
    """A run of `rounds` rounds whose accuracy rises by `lift` each; its last round ends after `last_stage`."""
    run = Store.open(str(path))
    settings = {
        "name": path.name,
        "seed": 42,
        "task": {"name": "arithmetic"},
        "student": {"model": "tiny"},
        "teacher": {"model": "mock-teacher"},
        "training": {"learning_rate": 1e-3 * (1 + lift)},
    }
    run.write_bytes(layout.RUN_FILE, yaml.safe_dump(settings).encode())
    rng = random.Random(f"{path.name} {lift}")
    _questions(run, questions)
    _commit(run, 0, "student", {}, 21.4, {"path": "tiny", "sha256": "ab" * 32})
    _evaluate(run, rng, 0, base)
    for number in range(1, rounds + 1):
        for stage in layout.STAGES:
            share = base + lift * (number - 1)
            if stage == "exam":
                _exam(run, rng, number, questions, share)
            elif stage == "teach":
                _teach(run, rng, number, questions)
            elif stage == "examples":
                _examples(run, number, questions)
            elif stage == "train":
                _train(run, rng, number)
            else:
                _evaluate(run, rng, number, share + lift)
            if number == rounds and stage == last_stage:
                break
    return run


def stage_folder(run, number, stage):
    return layout.stage_folder(run, StageId(number, stage))


def _commit(run, number, stage, parts, seconds, metrics):
    """`parts` are lists of part records by prefix."""
    digests = {prefix: PartsDigest.of(some) for prefix, some in parts.items()}
    manifest = Manifest(stage, number, "5e" * 32, {}, digests, seconds, metrics)
    commit_manifest(stage_folder(run, number, stage), manifest)


def question_row(index):
    text = f"Nadia has {index + 3} pears and buys {index % 7 + 2} more. How many pears does she have now?"
    return {"id": f"train-{index:04d}", "text": HOSTILE if index == 0 else text, "answer": str(index + 5 + index % 7)}


def _questions(run, count):
    folder = layout.stage_folder(run, layout.QUESTIONS)
    rows = [question_row(index) for index in range(count)]
    parts = [
        commit_part(folder, "train", at // SHARD, pa.Table.from_pylist(rows[at : at + SHARD], schema=QUESTION_SCHEMA))
        for at in range(0, count, SHARD)
    ]
    findings = {
        "skipped": 1,
        "skipped_rows": ["train.jsonl, line 7: the answer is empty"],
        "contaminated": 1,
        "contaminated_rows": [{"train": "train-0099", "test": "test-0003", "how": HOSTILE, "overlap": 1.0}],
    }
    metrics = {"train": count, "validation": 50, "test": 200, "findings": findings}
    _commit(run, 0, "questions", {"train": parts}, 0.8, metrics)


def attempt_row(question_id, sample, verdict, text="She has 3 + 2 = 6.\nAnswer: 6", answer="6"):
    stop = "length" if verdict == "truncated" else "stop"
    row = {"question_id": question_id, "sample": sample, "text": text, "finish_reason": stop, "answer": answer}
    return {**row, "verdict": verdict, "seed": sample, "prompt_tokens": 40, "output_tokens": 20, "detail": None}


def commit_exam(run, number, rows, seconds=30.0):
    """An exam whose attempts are given; parts of SHARD questions, as the questions have. Counts as a real one does."""
    folder = stage_folder(run, number, "exam")
    names = list(dict.fromkeys(row["question_id"] for row in rows))
    before = stage_folder(run, number - 1, "exam")
    earlier = [read_part(before, part) for part in committed_parts(before, layout.ATTEMPTS) if read_manifest(before)]
    parts = []
    for index, at in enumerate(range(0, len(names), SHARD)):
        wanted = set(names[at : at + SHARD])
        table = pa.Table.from_pylist([row for row in rows if row["question_id"] in wanted], schema=ATTEMPT_SCHEMA)
        info = {
            "counts": {name: table["verdict"].to_pylist().count(name) for name in VERDICTS},
            "mistaken_questions": len(table.filter(pc.equal(table["verdict"], "wrong"))["question_id"].unique()),
            "changes": compare(earlier[index], table) if earlier else None,
        }
        parts.append(commit_part(folder, layout.ATTEMPTS, index, table, info))
    counts = {name: sum(part.info["counts"][name] for part in parts) for name in VERDICTS}
    disputed = [
        {"question_id": row["question_id"], "sample": row["sample"], "answer": row["answer"], "detail": HOSTILE}
        for row in rows
        if row["verdict"] == "disputed"
    ]
    metrics = {"questions": len(names), "attempts": len(rows), **counts}
    metrics |= {"disputed_attempts": disputed, "quarantined": ["train-0005"]}
    metrics["mistaken_questions"] = sum(part.info["mistaken_questions"] for part in parts)
    changes = sum((Counter(part.info["changes"]) for part in parts), Counter())
    metrics["changes"] = {name: changes[name] for name in CHANGES} if earlier else None
    _commit(run, number, "exam", {layout.ATTEMPTS: parts}, seconds, metrics)


VERDICTS = ("correct", "wrong", "unparsed", "truncated", "disputed", "error")


def _exam(run, rng, number, count, share):
    rows = []
    for index in range(count):
        hard = rng.random()
        for sample in range(4):
            right = rng.random() < min(0.97, max(0.02, share + 0.5 - hard))
            verdict = "correct" if right else rng.choices(VERDICTS[1:5], [80, 7, 9, 4])[0]
            text = (
                HOSTILE
                if index == 0
                else f"She has {index} + {sample} = {index + sample} pears.\nAnswer: {index + sample}"
            )
            rows.append(attempt_row(f"train-{index:04d}", sample, "wrong" if index == 0 else verdict, text, str(index)))
    commit_exam(run, number, rows, 30 + 3 * number)


def lesson_row(question_id, number, **changes):
    row = {"question_id": question_id, "kind": "feedback" if number > 1 else "rationale", "round": number}
    row |= {"text": f"Start with what {question_id} says, then add both numbers.", "answer": "8", "feedback": None}
    row |= {"mistake": None, "mistake_sample": None, "model": "mock-teacher", "request_key": "00" * 32}
    return row | {"input_tokens": 160, "output_tokens": 60, "cost_usd": 0.0001} | changes


def write_lessons(run, number, rows, metrics=None, seconds=34.0):
    """Lesson part i holds the lessons of question part i, whose questions are numbered by SHARD."""
    folder = stage_folder(run, number, "teach")
    count = 1 + max(int(row["question_id"][-4:]) // SHARD for row in rows)
    shards = [[row for row in rows if int(row["question_id"][-4:]) // SHARD == index] for index in range(count)]
    tables = [pa.Table.from_pylist(shard, schema=LESSON_SCHEMA) for shard in shards]
    parts = [commit_part(folder, layout.LESSONS, index, table) for index, table in enumerate(tables)]
    _commit(run, number, "teach", {layout.LESSONS: parts}, seconds, metrics or {})


def _teach(run, rng, number, count):
    rows = []
    for index in range(count):
        about = {"feedback": HOSTILE if index == 0 else "You added the sample number instead of the pears bought."}
        about |= {"mistake": f"She has {index} + 0 = {index} pears.\nAnswer: {index}", "mistake_sample": 0}
        rows.append(lesson_row(f"train-{index:04d}", number, **(about if number > 1 else {})))
    rng.shuffle(rows)
    asked = count + 12
    metrics = {"requests": asked, "from_ledger": 20 * (number - 1), "accepted": count, "rejected": 8, "failed": 4}
    metrics |= {"input_tokens": 160 * asked, "output_tokens": 60 * asked, "cost_usd": 0.0001 * asked}
    metrics |= {"reasons": {"malformed": 4, "wrong answer": 8}}
    metrics |= {"forecast": {"requests": count + 20, "cost_usd": 0.0001 * (count + 20)}}
    write_lessons(run, number, rows, metrics, 34.0 + number)


def _examples(run, number, count):
    folder = stage_folder(run, number, "examples")
    part = commit_part(
        folder, layout.EXAMPLES, 0, pa.table({"question_id": [f"train-{at:04d}" for at in range(count)]})
    )
    _commit(run, number, "examples", {layout.EXAMPLES: [part]}, 2.5, {"examples": count})


def _train(run, rng, number):
    steps = [
        {"step": at + 1, "mle": 1.9 / number * 0.985**at + rng.random() * 0.06, "reflection": 0.9 * 0.99**at}
        | {"learning_rate": 1e-3, "tokens": 9000, "seconds": 0.2}
        for at in range(150)
    ]
    rows = [{**row, "loss": row["mle"] + 0.5 * row["reflection"]} for row in steps]
    log = stage_folder(run, number, "train").child(layout.LOG)
    commit_part(log, layout.STEPS, 0, pa.Table.from_pylist(rows))
    metrics = {"examples": 400 * number, "with_pair": 210 * number, "steps": 150, "tokens": 9000 * 150}
    metrics |= {"loss_first": rows[0]["loss"], "loss_last": rows[-1]["loss"], "student_sha256": f"{number:064x}"}
    _commit(run, number, "train", {}, 48.0 + number, metrics)


def _evaluate(run, rng, number, share):
    folder = stage_folder(run, number, "evaluate")
    parts, metrics = {}, {}
    for split, total in (("validation", 50), ("test", 200)):
        right = [random.Random(f"{split} {index}").random() < share for index in range(total)]
        rng.random()
        rows = [attempt_row(f"{split}-{index:04d}", 0, "correct" if ok else "wrong") for index, ok in enumerate(right)]
        tables = [pa.Table.from_pylist(rows[at : at + 150], schema=ATTEMPT_SCHEMA) for at in range(0, total, 150)]
        parts[split] = [commit_part(folder, split, index, table) for index, table in enumerate(tables)]
        metrics[split] = accuracy(sum(right), total)
    _commit(run, number, "evaluate", parts, 9.5, metrics)
