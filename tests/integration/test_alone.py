"""`tailor-ray exam` and `evaluate`: one stage alone on any model, without a teacher, resumable like a run."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tailor_ray.storage import Store
from tailor_ray.student.model import folder_sha256
from tests.integration.engines import attempts, students

__all__ = ["students"]  # a fixture


@pytest.fixture
def alone(ray_cluster, students, tmp_path):
    """Run a command on the session's cluster; its printed figures. Nobody listens where the teacher would be."""
    import ray

    for split, count in (("train", 30), ("test", 6)):
        lines = [
            {"id": f"{split}-{i}", "question": f"{split}: {i} and {i % 7} pens?", "answer": i} for i in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [
        *(f"task.path={tmp_path}", "student.engines=1", "student.kv_cache_gib=0.125", "student.max_model_len=256"),
        *("exam.samples=2", "exam.max_new_tokens=8", "evaluation.max_new_tokens=8", "exam.shard_questions=10"),
        *("teacher.base_url=http://127.0.0.1:9/v1", "task.contamination=ignore"),
    ]

    def run(command):
        arguments = [command, students[0], "jsonl", "--out", tmp_path / "out", *(f"--set={one}" for one in settings)]
        done = subprocess.run(
            [sys.executable, "-m", "tailor_ray", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            env={
                **os.environ,
                "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


def test_exam_and_evaluation_alone_need_no_teacher(alone, students, tmp_path):
    asked = alone("exam")
    out = Store.open(str(tmp_path / "out"))
    rows = attempts(out.child("rounds", "01", "exam"))
    verdicts = Counter(str(row.verdict) for row in rows)
    assert (asked["questions"], asked["attempts"]) == (27, 54) == (len(rows) // 2, len(rows))  # 3 are held out
    assert {name: asked[name] for name in verdicts} == verdicts
    assert asked["student_sha256"] == folder_sha256(students[0])
    scored = alone("evaluate")  # in the same folder: its questions and its student are there already
    assert (scored["validation"]["total"], scored["test"]["total"]) == (3, 6)
    assert scored["student_sha256"] == folder_sha256(students[0])
