"""Nodes that share nothing but an S3 server: each raylet in a mount namespace of its own, with folders of its own.

The driver runs on a head without CPUs; an engine is on one node, training on another, which is switched off in the
middle. What the driver's node has (the student's folder, caches, the working folder) no other node can see.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.benchmarks.stand_ins import make_student
from tailor_ray.layout import RUN_FILE, StageId, stage_folder
from tailor_ray.models import identify, publish, read_model
from tailor_ray.storage import Store, read_manifest
from tests.integration.clusters import IslandNodes, namespaces_permitted
from tests.storage.s3 import s3_server

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not namespaces_permitted(), reason="mount namespaces are not permitted here"),
]
SETTINGS = {
    "seed": 3,
    "task": {"name": "arithmetic", "limit_train": 48, "limit_test": 12, "max_validation": 8},
    "student": {"engines": 1, "max_model_len": 512, "max_num_seqs": 32, "kv_cache_gib": 0.125},
    "exam": {"samples": 2, "max_new_tokens": 16, "shard_questions": 16},
    "evaluation": {"max_new_tokens": 16},
    "teacher": {"base_url": "mock", "max_in_flight": 8},
    "training": {
        "steps": 60,
        "batch_size": 8,
        "learning_rate": 1e-4,
        "max_length": 768,
        "checkpoint_every_steps": 4,
        "cpus_per_worker": 2,  # more than the engine's node has
        "max_failures": 2,
    },
    "rounds": {"max_rounds": 2},
    "observe": {"log_every_s": 1.0},
}


class Run:
    """`tailor-ray run` in the head's namespace."""

    def __init__(self, nodes, name, bucket, student):
        self.store = Store.open(f"{bucket}/runs").child(name)
        settings = {**SETTINGS, "name": name, "storage": f"{bucket}/runs"}
        settings["student"] = {**SETTINGS["student"], "model": student}
        nodes.write("head", f"/tmp/place/{name}.yaml", json.dumps(settings))
        command = [sys.executable, "-m", "tailor_ray", "run", f"{name}.yaml"]
        self.process = nodes.open("head", command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait_for(self, happened, what, seconds=300):
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.process.stdout.read()[-6000:]
            assert time.monotonic() < deadline, what
            time.sleep(0.2)

    def finish(self):
        said, _ = self.process.communicate(timeout=500)
        assert self.process.returncode == 0, said[-6000:]
        return said


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as uri:
        yield uri


@pytest.fixture(scope="module")
def nodes(bucket, tmp_path_factory):
    """A head without CPUs and a node for the engine; the student's folder is on the head alone."""
    student = make_student(tmp_path_factory.mktemp("given") / "student", max_position_embeddings=1024)
    nodes = IslandNodes({"RAY_AUTH_MODE": "disabled", "OPENAI_API_KEY": "unused"}, carried={"student": student})
    try:
        nodes.add("engine", cpus=1)
        nodes.wait_for(2)
        yield nodes
    finally:
        nodes.close()


def students_in_cache(nodes, name):
    """Copies of models on a node, whole or not."""
    listed = nodes.run(name, ["bash", "-c", "ls -d /tmp/cache/models/*/ 2>/dev/null || true"]).split()
    return [Path(folder).name for folder in listed]


def test_a_student_on_the_drivers_disk_learns_on_nodes_that_cannot_see_it(nodes, bucket):
    for name in ("engine",):
        assert "missing" in nodes.run(name, ["bash", "-c", "test -e /tmp/place/student && echo there || echo missing"])
    run = Run(nodes, "local", bucket, "/tmp/place/student")
    run.wait_for(lambda: read_manifest(stage_folder(run.store, StageId(0, "evaluate"))), "round 0")
    nodes.add("trainer", cpus=2)  # only now, so the engine is on the other one
    train = stage_folder(run.store, StageId(1, "train"))
    run.wait_for(lambda: train.exists("checkpoints/step-00000008.json"), "a checkpoint")
    nodes.kill("trainer")
    nodes.add("second trainer", cpus=2)
    said = run.finish()
    assert "retries used" in said
    report = run.store.read_json("report/report.json")
    assert [entry["round"] for entry in report["rounds"]] == [0, 1, 2]
    assert report["rounds"][1]["training"]["steps"] == 60
    assert report["rounds"][2]["evaluation"]["total"] == 12
    assert report["student"]["path"].startswith(bucket)
    students = {read_model(stage_folder(run.store, stage)).sha256[:32] for stage in STUDENTS}
    assert set(students_in_cache(nodes, "engine")) == students  # each once, and nothing half-copied
    assert "/tmp/place" not in "".join(uris(run.store))


STUDENTS = (StageId(0, "student"), StageId(1, "train"), StageId(2, "train"))


def uris(run):
    """What the run's records say of where models are."""
    return [stage_folder(run, stage).read_bytes("student.json").decode() for stage in STUDENTS]


def test_a_student_in_the_bucket_is_all_that_nodes_need(nodes, bucket, tmp_path):
    model = publish(identify(str(make_student(tmp_path / "s3", seed=5))), Store.open(f"{bucket}/models"), "given")
    run = Run(nodes, "remote", bucket, model.uri)
    said = run.finish()
    assert "retries used" not in said
    report = run.store.read_json("report/report.json")
    assert [entry["round"] for entry in report["rounds"]] == [0, 1, 2]
    assert (report["student"]["path"], report["student"]["sha256"]) == (model.uri, model.sha256)
    assert run.store.exists(RUN_FILE)
