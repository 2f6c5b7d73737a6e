"""The exam against raw vLLM and transformers, its swaps of weights, a million questions, and its overlap with teaching.

    python jobs/benchmarks/exam.py [--only speed|swap|million|kill|overlap ...] [--questions 128] [--rows 1000000]

Prints a table, and as its last line one JSON object: ratio_to_raw_vllm, ratio_to_hf_generate, swap_seconds,
start_seconds, rows_per_second, driver_growth_mb, overlap_ratio, and what they were computed from. The student is a
random Llama of 3.2 M parameters with a token a character; its prompts have four worked questions, about 1,000 tokens.
Ratios leave out the start of engines and the import of libraries. `million` and `kill` run the whole exam path, from
question parts to attempt parts, over a stand-in for the engines that answers at once, four answers in five right. All
of it takes 25 minutes on 2 cores; `--only` runs a part, and prints its keys.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from exam_rivals import Rival  # beside this script
from stand_ins import InstantEngines, cluster, make_student

from tailor_ray.answers import Grader
from tailor_ray.config.student import StudentConfig
from tailor_ray.config.teacher import EndpointConfig, MockConfig, TeacherConfig
from tailor_ray.demo.mock_server import MockOptions, MockProcess
from tailor_ray.models import identify
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import QUESTION_SCHEMA, AnswerKind, Attempt, Question, from_table, to_table
from tailor_ray.storage import (
    Manifest,
    Part,
    PartsDigest,
    Store,
    commit_manifest,
    commit_part,
    committed_parts,
    find_part,
    read_part,
)
from tailor_ray.student.exam import ExamJob, run_exam
from tailor_ray.student.pool import EnginePool
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.parts import Intake
from tailor_ray.teacher.teach import Shard, TeachJob, teach

NEW_TOKENS = 128
SAMPLES = 4
SHARD = 256
IN_FLIGHT = 32  # calls of the slowed teacher


def question(number: int) -> Question:
    text = f"A farmer has {number} rows of apple trees with 12 trees each and sells the fruit of {number % 7} trees."
    return Question(f"q{number}", text + " How many trees are left to pick?", str(12 * number - number % 7))


def demos() -> tuple[Question, ...]:
    worked = "There are twelve trees in a row, so all rows together have that many trees; the sold ones are taken away."
    return tuple(Question(f"d{n}", question(n).text, question(n).answer, rationale=worked) for n in range(901, 905))


def exam_job(few_shot: bool, samples: int, seed: int = 1) -> ExamJob:
    prompt = StudentPrompt("plain", AnswerKind.NUMBER, demos() if few_shot else ())
    grader = Grader(AnswerKind.NUMBER)
    return ExamJob("attempts", "train", prompt, grader, samples, 1.0, 1.0, NEW_TOKENS, seed, 1)


def write_questions(store: Store, count: int) -> None:
    commit_questions(store, [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)])


def commit_questions(store: Store, numbers: Sequence[range]) -> None:
    """Parts of these questions, and the manifest of their stage."""
    parts = [
        commit_part(store, "train", index, to_table([question(number) for number in some], QUESTION_SCHEMA))
        for index, some in enumerate(numbers)
    ]
    commit_manifest(store, Manifest("questions", 0, "", {}, {"train": PartsDigest.of(parts)}, 0.0))


def ignore(part: Part) -> None:
    """For an exam whose parts nobody waits for."""


# speed and swap


def measure_speed(folder: Path, model: Path, pool: EnginePool, options: argparse.Namespace) -> dict[str, Any]:
    """Interleaved repeats, each on new questions after the same demos; who waits takes no CPU. The first warms up."""
    count = options.questions
    rivals = {name: Rival(name, model, NEW_TOKENS, SAMPLES) for name in options.rivals}
    rates: dict[str, list[float]] = {name: [] for name in ("ours", *rivals)}
    for repeat in range(options.repeats + 1):
        asked = [question(number) for number in range(repeat * count, (repeat + 1) * count)]
        prompts = [exam_job(True, SAMPLES).prompt.render(one) for one in asked]
        questions, out = Store.open(str(folder / f"speed-{repeat}")), Store.open(str(folder / f"speed-out-{repeat}"))
        commit_questions(questions, [range(repeat * count, (repeat + 1) * count)])
        start = time.perf_counter()
        run_exam(pool, exam_job(True, SAMPLES), questions, out, ignore)
        rates["ours"].append(count * SAMPLES / (time.perf_counter() - start))
        for name, rival in rivals.items():
            rates[name].append(rival.run(prompts[: 8 if name == "hf" else count]))
        print({name: round(values[-1], 2) for name, values in rates.items()}, flush=True)
    for rival in rivals.values():
        rival.close()
    middle = {name: statistics.median(values[1:]) for name, values in rates.items()}
    names = {"raw": "raw_vllm", "hf": "hf_generate", "serve": "serve_llm"}
    figures: dict[str, Any] = {f"ratio_to_{names[name]}": round(middle["ours"] / middle[name], 2) for name in rivals}
    return figures | {"samples_per_second": {name: [round(one, 2) for one in rates[name][1:]] for name in rates}}


def measure_swap(pool: EnginePool, students: list[Path]) -> dict[str, Any]:
    """A swap of weights in all engines, beside the new start of all of them that it saves."""
    swaps, starts = [], []
    for turn in range(6):
        start = time.perf_counter()
        pool.serve(identify(str(students[turn % 2])))
        swaps.append(time.perf_counter() - start)
    for _ in range(3):
        pool.stop()
        start = time.perf_counter()
        pool.serve(identify(str(students[0])))
        starts.append(time.perf_counter() - start)
    return {
        "swap_seconds": round(statistics.median(swaps[1:]), 3),
        "start_seconds": round(statistics.median(starts), 1),
    }


# a million questions


def driver(questions: str, attempts: str) -> None:
    """One exam over the stand-in, in a process of its own: prints its memory with every part."""
    with cluster():
        me = psutil.Process()
        start = time.perf_counter()

        def report(part: Part) -> None:
            print(f"@{part.index} {part.entry.rows} {time.perf_counter() - start} {me.memory_info().rss}", flush=True)

        run_exam(
            InstantEngines(),
            exam_job(False, 1),
            Store.open(questions),
            Store.open(attempts),
            report,
        )


def drive(questions: Path, attempts: Path, stop_after: int | None = None) -> list[tuple[int, int, float, int]]:
    """Run `driver`; SIGKILL it once `stop_after` rows are committed. Its reports."""
    command = [sys.executable, __file__, "--driver", str(questions), str(attempts)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    reports, rows = [], 0
    for line in process.stdout:
        if not line.startswith("@"):
            continue
        index, count, seconds, memory = line[1:].split()
        reports.append((int(index), int(count), float(seconds), int(memory)))
        rows += int(count)
        if stop_after is not None and rows >= stop_after:
            process.kill()
            break
    process.wait()
    return reports


def measure_million(questions: Path, rows: int, attempts: Path) -> dict[str, Any]:
    """Rows a second, start of the workers aside, and the driver's growth from the first to the last tenth."""
    reports = drive(questions, attempts)
    tenth = len(reports) // 10
    memory = [report[3] / 2**20 for report in reports]
    first, last = reports[0], reports[-1]
    counted = sum(report[1] for report in reports[1:])
    assert sorted(report[0] for report in reports) == list(range(-(-rows // SHARD)))
    return {
        "rows_per_second": round(counted / (last[2] - first[2])),
        "driver_growth_mb": round(max(memory[-tenth:]) - max(memory[:tenth]), 1),
        "rows": rows,
    }


def measure_kill(questions: Path, rows: int, attempts: Path) -> dict[str, Any]:
    """Killed half-way and run again: each row once, committed parts kept as they are."""
    drive(questions, attempts, stop_after=rows // 2)
    time.sleep(3)  # what Ray started ends with its driver
    out = Store.open(str(attempts))

    def written(part: Part) -> int:
        return Path(out.path(part.entry.path)).stat().st_mtime_ns

    before = {part.index: written(part) for part in committed_parts(out, "attempts")}
    drive(questions, attempts)
    parts = committed_parts(out, "attempts")
    names = [name for part in parts for name in read_part(out, part)["question_id"].to_pylist()]
    kept = sum(written(part) == before.get(part.index) for part in parts)
    return {
        "killed_after_rows": len(before) * SHARD,
        "rows_twice_or_missing": len(names) - len(set(names)) + abs(rows - len(set(names))),
        "parts_run_again": len(before) - kept,
    }


# exam and teaching at the same time


def measure_overlap(folder: Path, pool: EnginePool, count: int) -> dict[str, Any]:
    """The teacher's latency is set so that teaching alone takes as long as the exam alone; then both together."""
    questions = Store.open(str(folder / "overlap"))
    commit_questions(questions, [range(start, min(start + 32, count)) for start in range(0, count, 32)])
    answers = folder / "answers.jsonl"
    with answers.open("w") as file:
        for number in range(count):
            known = question(number)
            taken = f"{12 * number} - {number % 7} = {known.answer}"
            rationale = f"There are 12 * {number} = {12 * number} trees. Less those sold, {taken} are left."
            file.write(json.dumps({"question": known.text, "answer": known.answer, "rationale": rationale}) + "\n")
    alone = Store.open(str(folder / "overlap-alone"))
    job = exam_job(False, SAMPLES)
    start_time = time.perf_counter()
    run_exam(pool, job, questions, alone, ignore)
    exam_seconds = time.perf_counter() - start_time
    latency = max(0.1, exam_seconds * IN_FLIGHT / count - 0.05)
    parts = committed_parts(alone, "attempts")
    teach_seconds = taught(folder, "alone", latency, questions, alone, lambda put: [put(part) for part in parts])
    both = Store.open(str(folder / "overlap-both"))
    both_seconds = taught(
        folder, "both", latency, questions, both, lambda put: run_exam(pool, job, questions, both, put)
    )
    return {
        "overlap_ratio": round(both_seconds / max(exam_seconds, teach_seconds), 3),
        "overlap_seconds": {"exam": exam_seconds, "teaching": teach_seconds, "both": both_seconds},
    }


def taught(
    folder: Path, name: str, latency: float, questions: Store, attempts: Store, produce: Callable[[Any], Any]
) -> float:
    """Seconds from the start of the exam until the last lesson is committed."""
    mock = MockConfig(answers=str(folder / "answers.jsonl"), latency_s=latency)

    def read(part: Part) -> Shard:
        asked = read_part(questions, find_part(questions, "train", part.index))
        return Shard(
            part.index, from_table(asked, Question), from_table(read_part(attempts, part), Attempt), frozenset()
        )

    with MockProcess(MockOptions(mock)) as server:
        endpoint = EndpointConfig(base_url=server.base_url, max_in_flight=IN_FLIGHT, requests_per_minute=1e7)
        config = TeacherConfig(teachers=(endpoint,))
        job, intake = TeachJob(config, 1, Grader(AnswerKind.NUMBER), read), Intake()
        out, ledger = Store.open(str(folder / f"lessons-{name}")), Ledger(Store.open(str(folder / f"ledger-{name}")))
        start = time.perf_counter()
        with intake.teaching(lambda: teach(job, intake, out, ledger)) as teaching:
            produce(intake.put)
            intake.end()
            teaching.result()
        seconds = time.perf_counter() - start
        ledger.close()
        return seconds


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["speed", "swap", "million", "kill", "overlap"])
    parser.add_argument("--questions", type=int, default=128, help="of the speed comparison, 4 samples each")
    parser.add_argument(
        "--rivals", nargs="*", default=["raw", "hf"], help="raw, hf, serve (a Ray Serve LLM deployment)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--driver", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.driver:
        driver(*options.driver)
    else:
        with tempfile.TemporaryDirectory(prefix="bench-exam-") as folder:
            figures = measure(Path(folder), options)
        for name, value in figures.items():
            print(f"{name:24} {value}")
        print(json.dumps(figures))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if {"million", "kill"} & set(options.only):
        write_questions(Store.open(str(folder / "questions")), options.rows)
    if "million" in options.only:
        figures |= measure_million(folder / "questions", options.rows, folder / "attempts")
    if "kill" in options.only:
        figures |= measure_kill(folder / "questions", options.rows, folder / "attempts-killed")
    if {"speed", "swap", "overlap"} & set(options.only):
        students = [make_student(folder / f"student-{seed}", seed, 256, 4, 8) for seed in (0, 1)]
        with cluster():
            pool = EnginePool(StudentConfig(max_model_len=2048, kv_cache_gib=1.0), 1)
            pool.serve(identify(str(students[0])))
            if "speed" in options.only:
                figures |= measure_speed(folder, students[0], pool, options)
            if "swap" in options.only:
                figures |= measure_swap(pool, students)
            if "overlap" in options.only:
                figures |= measure_overlap(folder, pool, 16 * options.questions)
            pool.stop()
    return figures


if __name__ == "__main__":
    main()
