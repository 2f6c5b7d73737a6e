"""A driver killed in the middle of an exam: nothing that it started lives on, and the next try does only the rest."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tailor_ray.records import Attempt, Question, from_table
from tailor_ray.storage import Store, committed_parts, read_part
from tailor_ray.student.exam import run_exam
from tailor_ray.student.examiner import PartialAnswers
from tests.integration.engines import attempts, exam_job, ref, write_questions

ROOT = Path(__file__).parents[2]
JOB = exam_job(samples=8, max_new_tokens=96)
ONE_PART = exam_job(samples=4, max_new_tokens=160)
DRIVER = """
import sys
from tailor_ray.config.run import ClusterConfig
from tailor_ray.config.student import StudentConfig
from tailor_ray.models import identify
from tailor_ray.rounds.cluster import connected
from tailor_ray.storage import Store
from tailor_ray.student.exam import run_exam
from tailor_ray.student.pool import EnginePool
from tests.integration import test_exam_killed

if __name__ == "__main__":
    job, sequences, model, questions, out = sys.argv[1:]
    with connected(ClusterConfig(num_cpus=2, object_store_gib=0.2, dashboard=False)):
        config = StudentConfig(engines=1, kv_cache_gib=0.125, max_model_len=512, max_num_seqs=int(sequences))
        pool = EnginePool(config, seed=7)
        pool.serve(identify(model))
        parts = Store.open(questions), Store.open(out)
        run_exam(pool, getattr(test_exam_killed, job), *parts, lambda part: print("committed", part.index, flush=True))
"""


def start(folder, job, sequences, student, questions, out):
    script = folder / "driver.py"
    script.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"}
    command = [sys.executable, str(script), job, str(sequences), str(student), questions.uri, out.uri]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def kill(driver):
    """SIGKILL, after which nothing that it started may live on."""
    started = psutil.Process(driver.pid).children(recursive=True)
    assert any("ray::StudentEngine" in " ".join(process.cmdline()) for process in started)
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert [process.cmdline() for process in alive] == []


def test_what_was_answered_of_a_part_that_is_not_whole_is_not_asked_again(engine_pool, students, tmp_path):
    asked = [Question(f"q{i}", f"Ann has {i} pens and buys {i % 7} more. How many now?", str(i)) for i in range(120)]
    questions, out = Store.open(str(tmp_path / "questions")), Store.open(str(tmp_path / "out"))
    write_questions(questions, asked, size=120)
    driver = start(tmp_path, "ONE_PART", 16, students[0], questions, out)
    deadline = time.monotonic() + 200
    while not PartialAnswers.rows(out, "attempts"):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kill(driver)
    kept, total = PartialAnswers.rows(out, "attempts"), 4 * len(asked)
    assert 0 < kept < total
    assert committed_parts(out, "attempts") == []
    engine_pool.serve(ref(students[0]))
    run_exam(engine_pool, ONE_PART, questions, out, print)
    assert engine_pool.answered() == total - kept
    rows = attempts(out)
    assert [(row.question_id, row.sample) for row in rows] == [(q.id, k) for q in asked for k in range(4)]
    whole = Store.open(str(tmp_path / "whole"))
    run_exam(engine_pool, ONE_PART, questions, whole, print)
    assert attempts(whole) == rows
    assert out.folders() == []


def test_a_killed_driver_leaves_no_process_and_its_exam_goes_on(engine_pool, students, tmp_path):
    asked = [Question(f"q{i}", f"Ann has {i} pens and buys {i % 7} more. How many now?", str(i)) for i in range(120)]
    questions, out = Store.open(str(tmp_path / "questions")), Store.open(str(tmp_path / "out"))
    write_questions(questions, asked, size=8)
    driver = start(tmp_path, "JOB", 256, students[0], questions, out)
    assert "committed" in driver.stdout.readline()
    kill(driver)

    before = {part.index: part for part in committed_parts(out, "attempts")}
    assert 0 < len(before) < 15
    stamps = {part.index: Path(out.path(part.entry.path)).stat().st_mtime_ns for part in before.values()}
    engine_pool.serve(ref(students[0]))
    index, part = next(iter(before.items()))
    kept = from_table(read_part(out, part), Attempt)  # by one engine; now two are asked the same
    again = asked[8 * index : 8 * index + 8]
    prompts = [JOB.prompt.render(question) for question in again]
    seeds = [[row.seed for row in kept[start : start + 8]] for start in range(0, 64, 8)]
    said = engine_pool.answer([question.id for question in again], prompts, seeds, JOB.sampling())
    assert said.texts == [row.text for row in kept]
    seen = []
    metrics, _ = run_exam(engine_pool, JOB, questions, out, lambda part: seen.append(part.index))
    assert sorted(seen) == list(range(15))
    assert [(row.question_id, row.sample) for row in attempts(out)] == [(q.id, k) for q in asked for k in range(8)]
    assert metrics["attempts"] == 120 * 8
    for part in committed_parts(out, "attempts"):
        if part.index in stamps:
            assert Path(out.path(part.entry.path)).stat().st_mtime_ns == stamps[part.index]
