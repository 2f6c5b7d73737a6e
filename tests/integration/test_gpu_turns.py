"""Engines and training workers take turns on one GPU resource; the GPU is a number of Ray's, so any machine can."""

import json
import os
import subprocess
import sys
from pathlib import Path

RUN = """
import sys, ray
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=200_000_000,
         configure_logging=False, namespace="tailor_ray")
from tailor_ray.cli import main
sys.argv = ["tailor-ray", "run", *sys.argv[1:]]
main()
"""
# What an engine is told on a CPU, for this one believes that it is on a GPU.
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}
SETTINGS = {
    "task.limit_train": 24,
    "task.limit_test": 8,
    "student.tiny.school_questions": 50,
    "student.tiny.school_steps": 20,
    "student.dtype": "float32",
    "student.enforce_eager": "true",
    "student.gpu_memory_utilization": 0.05,
    "exam.samples": 1,
    "exam.max_new_tokens": 24,
    "evaluation.max_new_tokens": 24,
    "training.steps": 4,
    "training.workers": 1,
    "training.greedy_check": 0,
    "rounds.max_rounds": 1,
}


def test_a_whole_run_in_which_they_take_turns(tmp_path):
    root = Path(__file__).parents[2]
    settings = [f"--set={name}={value}" for name, value in {**SETTINGS, "storage": tmp_path / "runs"}.items()]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= ON_CPU
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(root / "jobs/demo.yaml"), *settings],
        cwd=root,
        env={**environment, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "runs/demo/report/report.json").read_text())
    assert [one["round"] for one in report["rounds"]] == [0, 1]
    assert report["rounds"][1]["training"]["steps"] == 4
