"""`tailor-ray exam`: one stage alone on any model, without a teacher, in a folder like a run's."""

import json
from collections import Counter

from tailor_ray.storage import Store
from tests.command import tailor
from tests.integration.engines import attempts, ref


def test_an_exam_alone_needs_no_teacher(ray_cluster, students, tmp_path):
    """On the session's cluster; nobody listens where the teacher would be."""
    import ray

    for split, count in (("train", 30), ("test", 6)):
        rows = [
            {"id": f"{split}-{i}", "question": f"{split}: {i} and {i % 7} pens?", "answer": i} for i in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        *(f"task.path={tmp_path}", "student.engines=1", "student.kv_cache_gib=0.125", "student.max_model_len=256"),
        *("exam.samples=2", "exam.max_new_tokens=8", "evaluation.max_new_tokens=8", "exam.shard_questions=10"),
        *("teacher.base_url=http://127.0.0.1:9/v1", "task.contamination=ignore"),
    ]

    arguments = ["exam", students[0], "jsonl", "--out", tmp_path / "out", *(f"--set={one}" for one in settings)]
    address = ray.get_runtime_context().gcs_address
    done = tailor(*arguments, timeout=200, RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr[-3000:]
    asked = json.loads(done.stdout)
    out = Store.open(str(tmp_path / "out"))
    rows = attempts(out.child("rounds", "01", "exam"))
    verdicts = Counter(str(row.verdict) for row in rows)
    assert (asked["questions"], asked["attempts"]) == (27, 54) == (len(rows) // 2, len(rows))  # 3 are held out
    assert {name: asked[name] for name in verdicts} == verdicts
    assert asked["student_sha256"] == ref(students[0]).sha256
