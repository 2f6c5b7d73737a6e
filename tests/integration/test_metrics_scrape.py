"""What a real run exports: every metric that the dashboard asks for, and counts that are those of the manifests.

An engine is killed in the exam, so that there is a restart to count.
"""

import json
import os
import re
import signal
import threading
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest

from tailor_ray.config import RunConfig
from tailor_ray.layout import StageId, stage_folder
from tailor_ray.observe import metrics
from tailor_ray.rounds.loop import run
from tailor_ray.storage import Store, committed_parts, read_manifest
from tests.integration.test_exam import engine_processes

DASHBOARD = Path(__file__).parents[2] / "cluster/grafana-dashboard.json"
# What only happens in other runs than this one.
ELSEWHERE = {"ledger_hits", "teacher_left_usd"}
OUR_TAGS = ("verdict", "direction", "outcome", "term", "split", "stage")


class Scraper(threading.Thread):
    """The last value of each of our run's series, over all processes: those that ended are exported no more.

    The session's cluster exports other tests' runs as well.
    """

    def __init__(self, address, run):
        super().__init__(daemon=True)
        self.address, self.of_run = address, run
        self.series, self.ended = {}, threading.Event()

    def run(self):
        while not self.ended.wait(0.3):
            self.look()

    def look(self):
        text = urllib.request.urlopen(self.address, timeout=10).read().decode()
        for line in text.splitlines():
            if line.startswith("ray_tailor_"):
                name, labels = line.split("{")[0], line[line.index("{") : line.rindex("}")]
                self.series[name, labels] = float(line.rpartition(" ")[2])

    def totals(self):
        """{(name, our tag): the sum over all processes}"""
        found = defaultdict(float)
        for (name, text), value in self.series.items():
            labels = dict(re.findall(r'(\w+)="([^"]*)"', text))
            assert labels["SessionName"]  # the dashboard's variables
            assert "run" in labels
            if labels["run"] != self.of_run:
                continue
            found[name, next((labels[tag] for tag in OUR_TAGS if tag in labels), "")] += value
        return found


def kill_an_engine(exam, others, killed):
    """One of the run's own: the session's are another test's."""
    while not committed_parts(exam, "attempts", verify=False):
        time.sleep(0.02)
    killed.append(next(pid for pid in engine_processes() if pid not in others))
    os.kill(killed[0], signal.SIGKILL)


@pytest.mark.timeout(400)
def test_a_runs_counts_are_exported_once(ray_cluster, tmp_path):
    import ray

    config = RunConfig(
        name="scraped",
        storage=str(tmp_path),
        task={"name": "arithmetic", "limit_train": 60, "limit_test": 10, "max_validation": 6},
        student={
            "tiny": {"hidden_size": 64, "layers": 2, "heads": 2, "school_steps": 30, "school_questions": 300},
            "engines": 1,
            "max_model_len": 256,
            "max_num_seqs": 8,
            "kv_cache_gib": 0.125,
        },
        exam={"samples": 4, "max_new_tokens": 48, "shard_questions": 4},
        evaluation={"max_new_tokens": 16},
        teacher={"base_url": "mock"},
        training={"steps": 12, "learning_rate": 1e-3, "batch_size": 8, "warmup_steps": 0, "max_length": 256},
        rounds={"max_rounds": 1},
        observe={"log_every_s": 5.0},
    )
    metrics.set_run("another")  # on the same cluster, by the same process: not ours to count
    metrics.count("engine_restarts", 3)
    folder = Store.open(str(tmp_path)).child("scraped")
    node = ray.nodes()[0]
    scraper = Scraper(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", "scraped")
    killed = []
    exam = stage_folder(folder, StageId(1, "exam"))
    threading.Thread(target=kill_an_engine, args=(exam, engine_processes(), killed), daemon=True).start()
    scraper.start()
    try:
        run(config)
        time.sleep(9)  # the last report of each process, every four seconds
    finally:
        scraper.ended.set()
        scraper.join()
    scraper.look()
    found = scraper.totals()
    asked, trained, taught, scored = (
        read_manifest(stage_folder(folder, StageId(1, stage))).metrics
        for stage in ("exam", "train", "teach", "evaluate")
    )
    first = read_manifest(stage_folder(folder, StageId(0, "evaluate"))).metrics
    answered = (asked, *(one[split] for one in (first, scored) for split in ("validation", "test")))
    assert len(killed) == 1
    assert asked["engine_restarts"] == 1
    expected = {
        ("training_steps_total", ""): trained["steps"],
        ("training_tokens_total", ""): trained["tokens"],
        ("engine_restarts_total", ""): asked["engine_restarts"],
        ("exam_samples_total", "wrong"): sum(one["wrong"] for one in answered),
        ("engine_tokens_total", "output"): sum(one["output_tokens"] for one in answered),
        ("teacher_tokens_total", "input"): taught["input_tokens"],
        ("teacher_tokens_total", "output"): taught["output_tokens"],
        ("round", ""): 1,
        ("accuracy", "test"): scored["test"]["accuracy"],
    }
    assert {key: found[f"ray_tailor_{key[0]}", key[1]] for key in expected} == expected
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    asked_for = {name for query in queries for name in re.findall(r"ray_tailor_\w+", query)}
    absent = {f"ray_tailor_{name}{'_total' if metrics.TABLE[name].kind == 'counter' else ''}" for name in ELSEWHERE}
    assert asked_for - absent <= {name for name, _ in found}
