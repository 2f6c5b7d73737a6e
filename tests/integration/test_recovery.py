"""What a run does when its cluster is lost under it: kill -9 of Ray's own processes, a node switched off in training.

On the command line, with real clusters. A cluster of the run's own is replaced; under somebody else's the run waits for
a node, or ends in a sentence and exit 3.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tailor_ray.storage import Store, read_manifest
from tests.integration.clusters import RayNodes

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
STEPS = 120


class Run:
    """`tailor-ray run` of a short run whose training goes on for a while."""

    def __init__(self, folder, **settings):
        self.store = Store.open(str(folder)).child("try")
        self.train = self.store.child("rounds", "01", "train")
        config = {
            "name": "try",
            "storage": str(folder),
            "task": {"name": "arithmetic", "limit_train": 24, "limit_test": 8, "max_validation": 6},
            "student": {
                "tiny": {"hidden_size": 64, "layers": 2, "heads": 2, "school_steps": 20, "school_questions": 200},
                "engines": 1,
                "max_model_len": 256,
                "max_num_seqs": 8,
                "kv_cache_gib": 0.125,
            },
            "exam": {"samples": 4, "max_new_tokens": 48, "shard_questions": 8},
            "evaluation": {"max_new_tokens": 16},
            "teacher": {"teachers": [{"base_url": "mock"}]},
            "training": {"steps": STEPS, "batch_size": 8, "max_length": 256, "checkpoint_every_steps": 5, **settings},
            "rounds": {"max_rounds": 1},
        }
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def start(self, *overrides, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tailor_ray", "run", self.config, *(f"--set={one}" for one in overrides)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.config.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )

    def steps(self):
        """Of the newest checkpoint."""
        found = [re.fullmatch(r"step-(\d+)\.json", name) for name in self.train.child("checkpoints").files()]
        return max((int(match[1]) for match in found if match), default=0)

    def until_it_trains(self, after=0):
        deadline = time.monotonic() + 600
        while self.steps() <= after:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def until_it_says(self, text):
        deadline = time.monotonic() + 300
        while text not in Path(self.store.path("run.log")).read_text():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def ended(self, code):
        out, err = self.process.communicate(timeout=700)
        assert self.process.returncode == code, err[-3000:]
        assert "Traceback" not in err + out
        return out, [line for line in err.splitlines() if line.startswith("tailor-ray: ")]


def child(process, name):
    """Ray's process of this name below another."""
    family = psutil.Process(process.pid).children(recursive=True)
    return next(one for one in family if name in Path(" ".join(one.cmdline()).split(" ")[0]).name)


def test_a_local_cluster_that_is_lost_is_replaced_and_the_run_goes_on(tmp_path):
    """First its raylet is killed, then its GCS; of what was trained up to the last checkpoint nothing is lost."""
    run = Run(tmp_path)
    run.start(RAY_ADDRESS="local")
    for count, name in enumerate(("raylet", "gcs_server"), 1):
        run.until_it_trains(after=run.steps())
        child(run.process, name).send_signal(signal.SIGKILL)
        run.until_it_says(f"{count} of 3 times")  # till then a worker of the lost cluster may write a checkpoint more
    out, said = run.ended(0)
    assert "report: " in out
    assert len(said) == 2
    assert "(the raylet) ended" in said[0]
    assert "the head of the Ray cluster" in said[1]
    assert "2 of 3 times" in said[1]
    assert read_manifest(run.train).metrics["steps"] == STEPS
    log = Path(run.store.path("run.log")).read_text()
    assert log.count("training goes on after step-") >= 2


def test_with_no_restarts_left_and_under_a_cluster_of_others_it_ends_in_a_sentence(tmp_path):
    run = Run(tmp_path)
    run.start("cluster.max_restarts=0", RAY_ADDRESS="local")
    run.until_it_trains()
    child(run.process, "raylet").send_signal(signal.SIGKILL)
    _, (said,) = run.ended(3)
    assert "the same command goes on" in said
    nodes = RayNodes({"RAY_AUTH_MODE": "disabled"})
    try:
        run.start(RAY_ADDRESS=address(nodes))
        run.until_it_trains(after=run.steps())
        nodes.kill("head")
        _, (said,) = run.ended(3)
        assert "start the cluster again" in said
    finally:
        nodes.close()


def test_a_node_lost_in_training_is_waited_for_and_else_the_run_stops(tmp_path):
    """Two workers on two nodes; one is switched off. Nobody comes, so it stops; the next time another node joins."""
    run = Run(tmp_path, workers=2, zero_stage=1, cpus_per_worker=1.5)
    nodes = RayNodes({"RAY_AUTH_MODE": "disabled"})
    try:
        nodes.add("worker-1", cpus=2)
        run.start("cluster.wait_for_nodes_s=45", RAY_ADDRESS=address(nodes))
        run.until_it_trains()
        nodes.kill("worker-1")
        _, (said,) = run.ended(3)
        assert "there is no room for training.workers=2" in said
        assert "cluster.wait_for_nodes_s=45" in said
        trained = run.steps()
        nodes.add("worker-2", cpus=2)
        run.start(RAY_ADDRESS=address(nodes))
        run.until_it_trains(after=trained)
        nodes.kill("worker-2")
        nodes.add("worker-3", cpus=2)
        run.ended(0)
    finally:
        nodes.close()
    assert read_manifest(run.train).metrics["steps"] == STEPS
    assert json.loads(run.store.read_bytes("report/report.json"))["rounds"][1]["training"]["steps"] == STEPS


def address(nodes):
    return f"127.0.0.1:{nodes.gcs}"
