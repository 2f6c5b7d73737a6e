"""A driver killed in the middle of an exam: nothing that it started lives on, and the next try does only the rest."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tailor_ray.records import Question
from tailor_ray.storage import Store, committed_parts
from tailor_ray.student.exam import run_exam
from tailor_ray.student.examiner import PartialAnswers
from tests.integration.engines import attempts, exam_job, ref, write_questions

ROOT = Path(__file__).parents[2]
JOB = exam_job(samples=4, max_new_tokens=96)
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
    model, questions, out = sys.argv[1:]
    with connected(ClusterConfig(num_cpus=2, object_store_gib=0.2, dashboard=False)):
        config = StudentConfig(engines=1, kv_cache_gib=0.125, max_model_len=512, max_num_seqs=8)
        pool = EnginePool(config, seed=7)
        pool.serve(identify(model))
        parts = Store.open(questions), Store.open(out)
        run_exam(pool, test_exam_killed.JOB, *parts, lambda part: print("committed", part.index, flush=True))
"""


def start(folder, student, questions, out):
    script = folder / "driver.py"
    script.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"}
    command = [sys.executable, str(script), str(student), questions.uri, out.uri]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def kill(driver):
    """SIGKILL, after which nothing that it started may live on."""
    started = psutil.Process(driver.pid).children(recursive=True)
    assert any("ray::StudentEngine" in " ".join(process.cmdline()) for process in started)
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert [process.cmdline() for process in alive] == []


def written(out):
    """{part: when its file was written}"""
    return {part.index: Path(out.path(part.entry.path)).stat().st_mtime_ns for part in committed_parts(out, "attempts")}


def test_a_killed_driver_leaves_no_process_and_what_it_has_answered_is_not_asked_again(engine_pool, students, tmp_path):
    """Neither of its whole parts nor of the one that was under way."""
    asked = [Question(f"q{i}", f"Ann has {i} pens and buys {i % 7} more. How many now?", str(i)) for i in range(120)]
    questions, out = Store.open(str(tmp_path / "questions")), Store.open(str(tmp_path / "out"))
    write_questions(questions, asked, size=24)
    driver = start(tmp_path, students[0], questions, out)
    assert "committed" in driver.stdout.readline()
    deadline = time.monotonic() + 100
    while not 0 < PartialAnswers.rows(out, "attempts") <= 48:  # of parts of 96 rows, so none is about to be whole
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill(driver)

    whole_parts, of_others = written(out), PartialAnswers.rows(out, "attempts")
    kept = 96 * len(whole_parts) + of_others
    assert 0 < len(whole_parts) < 5
    assert of_others > 0
    engine_pool.serve(ref(students[0]))
    seen = []
    metrics, _ = run_exam(engine_pool, JOB, questions, out, lambda part: seen.append(part.index))
    assert engine_pool.answered() == 480 - kept
    assert sorted(seen) == list(range(5))
    assert metrics["attempts"] == 480
    assert out.folders() == []
    assert whole_parts.items() <= written(out).items()  # they were not done again
    rows = attempts(out)
    assert [(row.question_id, row.sample) for row in rows] == [(q.id, k) for q in asked for k in range(4)]

    whole = Store.open(str(tmp_path / "whole"))  # by two engines, in one go
    run_exam(engine_pool, JOB, questions, whole, print)
    assert attempts(whole) == rows
