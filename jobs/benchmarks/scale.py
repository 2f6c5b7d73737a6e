"""The whole data plane with stand-ins for engines and teacher: what ten million questions would meet.

    python jobs/benchmarks/scale.py [--questions 100000] [--samples 4] [--only plane|scaling|ledger|limits ...]

`plane` does a round's stages one after the other on one machine, by the run's own stage functions: engines and a
teacher that answer at once (four attempts in five right), real examples, and training on two real workers for a few
steps. `scaling` runs exams on 4 and on 64 stand-in engines of a set speed. `ledger` and `limits` time the teacher's
durable rows and the grants of its rate limits. Prints a table, and as its last line one JSON object: questions,
rows_per_second (of each stage), driver_peak_mb, driver_growth_mb (from a tenth of a stage to all of it, the most of any
stage), worker_peak_mb (resident memory of a training worker), weak_scaling_64, ledger_rows_per_second,
grants_per_second. 100,000 questions take about 4 minutes on 2 cores; 2,000,000 take an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
from stand_ins import SPEED, PacedEngines, StandIns, answer_of, cluster, solution  # beside this script

from tailor_ray.answers import Grader
from tailor_ray.config import RunConfig
from tailor_ray.config.student import TinyConfig
from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import QUESTION_SCHEMA, AnswerKind, Question, to_table
from tailor_ray.rounds.loop import Commits, do_stage, exam_and_teach
from tailor_ray.rounds.spec import stages_of
from tailor_ray.storage import Manifest, Part, PartsDigest, Store, commit_manifest, commit_part
from tailor_ray.student.exam import ExamJob, run_exam
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import LedgerRow
from tailor_ray.teacher.limits import RateLimiter

TEST = 200
WORKERS = 2
PART = 512  # questions; by default the tokens that an answer may have decide it, and these answers have few
STEPS = 20  # of training: its rate is the business of training.py, here it is what a worker holds
PACED_PART = 256  # questions, where engines take their time
SECONDS = 80  # that each engine of `scaling` is kept busy
SAMPLE_S = 0.5


def write_task(folder: Path, count: int) -> None:
    """train.jsonl and test.jsonl; the test questions are of another kind, so none is contaminated."""
    with (folder / "train.jsonl").open("w") as file:
        for number in range(count):
            text = f"A farmer has {number} rows of apple trees with 12 trees each and fells {number % 7} of the trees."
            row = {"id": f"q{number}", "question": f"{text} How many trees are left?", "answer": answer_of(number)}
            file.write(json.dumps(row) + "\n")
    with (folder / "test.jsonl").open("w") as file:
        for number in range(TEST):
            text = (
                f"In month {number} a mill grinds flour on 20 days, 3 sacks a day. How many sacks, and {number} more?"
            )
            file.write(json.dumps({"id": f"t{number}", "question": text, "answer": 60 + number}) + "\n")


def write_student(folder: Path) -> None:
    """A small student that nobody schooled: its tokenizer is real."""
    from tailor_ray.demo import tiny

    texts = [
        f"Question: {word}\nReasoning: {solution(7)}\nAnswer: 77" for word in ("A farmer has rows of apple trees",)
    ]
    config = TinyConfig(hidden_size=64, layers=2, heads=2)
    tokenizer = tiny.make_tokenizer(texts * 50, 400)
    tiny.make_model(config, tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def drive(folder: Path, samples: int) -> None:
    """The stages of round 0 and 1 in a process of its own; prints a line of figures for each."""
    config = RunConfig.model_validate(
        {
            "name": "scale",
            "storage": str(folder / "runs"),
            "task": {"name": "jsonl", "path": str(folder), "answer_kind": "number", "max_validation": 100},
            "student": {"model": str(folder / "student"), "max_model_len": 256},
            "exam": {"samples": samples, "shard_questions": PART},
            "teacher": {"model": "instant", "requests_per_minute": 1e9, "temperature": None},
            "training": {"steps": STEPS, "workers": WORKERS, "max_length": 256, "greedy_check": 0, "batch_size": 32},
        }
    )
    run = Store.open(config.storage).child(config.name)
    with cluster():
        services: Any = StandIns(config, run)
        commits = Commits(config, run)
        questions, student, _ = stages_of(config, 0)
        exam, teach, examples, train, _ = stages_of(config, 1)
        for spec in (questions, student, exam, teach, examples, train):
            started = time.monotonic()
            if spec is teach:
                exam_and_teach(commits, (exam, teach), services, started)
            else:
                do_stage(commits, spec, services, started)
            seconds = time.monotonic() - started
            rows = sum(parts.rows for parts in commits.manifest(spec.id).parts.values())
            memory = round(psutil.Process().memory_info().rss / 2**20)
            said = {"stage": spec.id.name, "rows": rows, "seconds": round(seconds, 2), "driver_mb": memory}
            print("@" + json.dumps(said), flush=True)
        services.trainers.close()
        services.ledger.close()
        print("@" + json.dumps({"growth": services.progress.growth}), flush=True)


class Watch(threading.Thread):
    """The most resident memory of a process, and of any training worker below it."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._driver = psutil.Process(pid)
        self.driver = self.worker = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(SAMPLE_S):
            try:
                self.driver = max(self.driver, self._driver.memory_info().rss)
                for process in self._driver.children(recursive=True):
                    if "TrainWorker" in " ".join(process.cmdline()):
                        self.worker = max(self.worker, process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue


def measure_plane(folder: Path, questions: int, samples: int) -> dict[str, Any]:
    write_task(folder, questions)
    write_student(folder / "student")
    command = [sys.executable, __file__, "--drive", str(folder), "--samples", str(samples)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = Watch(process.pid)
    watch.start()
    figures: dict[str, Any] = {"questions": questions, "rows_per_second": {}, "seconds": {}}
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("@"):
            continue
        print(line.strip(), flush=True)
        said = json.loads(line[1:])
        if "growth" in said:
            figures["driver_growth_mb"] = round(max(said["growth"].values()), 1)
            continue
        figures["seconds"][said["stage"]] = said["seconds"]
        if said["rows"]:
            figures["rows_per_second"][said["stage"]] = round(said["rows"] / said["seconds"])
    watch.ended.set()
    if process.wait():
        sys.exit("the driver failed: see above")
    return figures | {"driver_peak_mb": round(watch.driver / 2**20), "worker_peak_mb": round(watch.worker / 2**20)}


def measure_scaling(folder: Path) -> dict[str, Any]:
    """Samples a second of each engine, among 64 and among 4 that have the same work each."""
    job = ExamJob(
        "attempts",
        "train",
        StudentPrompt("plain", AnswerKind.NUMBER),
        Grader(AnswerKind.NUMBER),
        4,
        1.0,
        1.0,
        128,
        seed=1,
        round=1,
    )
    rates = {}
    with cluster():
        for engines in (4, 64):
            store = Store.open(str(folder / f"questions-{engines}"))
            count, size = round(engines * SPEED * SECONDS / job.samples), PACED_PART
            parts = []
            for start in range(0, count, size):
                asked = [
                    Question(f"q{n}", f"How many trees are {n} rows?", str(answer_of(n)))
                    for n in range(start, start + size)
                ]
                parts.append(commit_part(store, "train", start // size, to_table(asked, QUESTION_SCHEMA)))
            commit_manifest(store, Manifest("questions", 0, "", {}, {"train": PartsDigest.of(parts)}, 0.0))
            ended: list[float] = []

            def note(_: Part, ended: list[float] = ended) -> None:
                ended.append(time.monotonic())

            run_exam(PacedEngines(engines), job, store, store, note)
            quarter = len(ended) // 4  # until then processes still start: Python and its imports, four seconds each
            rows = size * job.samples * (len(ended) - 1 - quarter)
            rates[engines] = rows / (ended[-1] - ended[quarter]) / engines
    return {
        "weak_scaling_64": round(rates[64] / rates[4], 3),
        "rows_per_second_per_engine": {str(engines): round(rate, 1) for engines, rate in rates.items()},
    }


def measure_ledger(folder: Path, rows: int = 100_000, batch: int = 256) -> dict[str, Any]:
    """Rows of about 1.5 kB, made durable a batch at a time while they are written to storage and merged there."""
    ledger = Ledger(Store.open(str(folder / "ledger")))
    body, reply = "x" * 1000, "y" * 400
    started = time.perf_counter()
    for start in range(0, rows, batch):
        ledger.stage(
            LedgerRow(f"{n:064x}", "answered", "m", f"q{n}", 1, body, reply=reply, attempts=1, sent=n, settled=n)
            for n in range(start, start + batch)
        )
        ledger.commit()
    ledger.flush()
    seconds = time.perf_counter() - started
    ledger.close()
    return {"ledger_rows_per_second": round(rows / seconds)}


def measure_limits(grants: int = 200_000) -> dict[str, Any]:
    """Grants under both limits, each settled with what it took."""
    endpoint = EndpointConfig(requests_per_minute=1e8, tokens_per_minute=1e11)
    limiter, now = RateLimiter(endpoint, 0.0), 0.0
    started = time.perf_counter()
    for _ in range(grants):
        now += 1e-5
        grant = limiter.reserve(500, now)
        assert grant is not None
        limiter.settle(grant, now + 0.5, 400)
    return {"grants_per_second": round(grants / (time.perf_counter() - started))}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=["plane", "scaling", "ledger", "limits"])
    parser.add_argument("--folder", help="where the run is made; it is removed at the end unless this is given")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.drive:
        drive(Path(options.drive), options.samples)
        return
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
        folder, figures = Path(name), dict[str, Any]()
        os.environ.setdefault("TAILOR_RAY_CACHE", str(folder / "cache"))
        if "plane" in options.only:
            figures |= measure_plane(folder, options.questions, options.samples)
        if "scaling" in options.only:
            figures |= measure_scaling(folder)
        if "ledger" in options.only:
            figures |= measure_ledger(folder)
        if "limits" in options.only:
            figures |= measure_limits()
    for key, value in figures.items():
        print(f"{key:28} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
