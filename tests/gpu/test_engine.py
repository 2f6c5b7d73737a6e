"""Engines on CUDA devices: the same answers as transformers, memory given back for training, one engine over two."""

import subprocess
import time

import psutil
import pytest

from jobs.benchmarks.stand_ins import make_student
from tailor_ray.config.student import StudentConfig
from tailor_ray.records import Question
from tailor_ray.storage import Store
from tailor_ray.student.exam import run_exam
from tailor_ray.student.pool import EnginePool
from tailor_ray.student.sampling import Sampling
from tests.integration.conftest import ray_cluster
from tests.integration.engines import attempts, exam_job, ref, students, write_questions

__all__ = ["ray_cluster", "students"]  # fixtures
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=24)
PROMPTS = [f"Question: Ann has {i} pens and buys 3 more. How many now?\nReasoning:" for i in range(6)]


def devices():
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return 0
    return listed.stdout.count("GPU ")


def used_mib():
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return sum(int(line) for line in subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split())


def config(**changes):
    return StudentConfig(dtype="float32", max_model_len=512, gpu_memory_utilization=0.3, **changes)


def greedy(pool):
    return pool.answer([str(i) for i in range(6)], PROMPTS, [[0]] * 6, GREEDY).texts


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(devices() == 0, reason="needs a CUDA device")]


@pytest.mark.parametrize("how", ["sleep", "stop"])
def test_memory_is_given_back_for_training_and_the_next_student_answers(ray_cluster, students, how):
    pool = EnginePool(config(engines=1, release_for_training=how), seed=7)
    pool.serve(ref(students[0]))
    try:
        first, busy = greedy(pool), used_mib()
        pool.release()
        deadline = time.monotonic() + 30  # a killed process gives its memory back when it is gone
        while used_mib() > busy / 2:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert pool.serve(ref(students[1])) == ref(students[1]).sha256
        second = greedy(pool)
        assert second != first
        assert pool.serve(ref(students[0])) == ref(students[0]).sha256
        assert greedy(pool) == first
    finally:
        pool.stop()


def test_a_killed_engine_core_is_replaced_and_its_work_asked_again(ray_cluster, students, tmp_path):
    """On GPUs vLLM's core is a child of the engine's actor; the actor outlives it and must notice."""
    asked = [Question(f"q{i}", f"Ann has {i} pens and buys 3 more. How many now?", str(i + 3)) for i in range(64)]
    questions, out = Store.open(str(tmp_path / "questions")), Store.open(str(tmp_path / "out"))
    write_questions(questions, asked, size=8)
    killed = []

    def kill_core(_):
        below = psutil.Process().children(recursive=True)
        cores = [process for process in below if "EngineCore" in process.name() + " ".join(process.cmdline())]
        if not killed:
            killed.append(cores[0].pid)
            cores[0].kill()

    pool = EnginePool(config(engines=1, max_num_seqs=64), seed=7)
    pool.serve(ref(students[0]))
    try:
        metrics, _ = run_exam(pool, exam_job(samples=8, max_new_tokens=256), questions, out, kill_core)
    finally:
        pool.stop()
    assert [(row.question_id, row.sample) for row in attempts(out)] == [(q.id, k) for q in asked for k in range(8)]
    assert (metrics["error"], metrics["engine_restarts"]) == (0, 1)


@pytest.mark.skipif(devices() < 2, reason="needs two CUDA devices")
def test_an_engine_over_two_devices_answers_as_one_does(ray_cluster, tmp_path):
    folder = make_student(tmp_path / "student", hidden_size=128, heads=4)
    said = []
    for width in (1, 2):
        pool = EnginePool(config(engines=1, tensor_parallel=width), seed=7)
        pool.serve(ref(folder))
        try:
            said.append(greedy(pool))
        finally:
            pool.stop()
    assert said[0] == said[1]
