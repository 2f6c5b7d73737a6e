"""A whole run on the session's cluster: what it exports, and that another of its seed leaves the same manifests.

An engine is killed in its exam. So there is a restart to count, and no digest of a manifest may show it.
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
from tailor_ray.layout import FIRST_STAGES, STAGES, StageId, stage_folder
from tailor_ray.observe import metrics
from tailor_ray.rounds.loop import run
from tailor_ray.rounds.services import WorkerPools
from tailor_ray.storage import Store, committed_parts, read_manifest
from tailor_ray.student import exam
from tests.integration.test_exam import engine_processes

DASHBOARD = Path(__file__).parents[2] / "cluster/grafana-dashboard.json"
# What only happens in other runs than this one.
ELSEWHERE = {"ledger_hits", "teacher_left_usd"}
OUR_TAGS = ("verdict", "direction", "outcome", "term", "split", "stage")
ROUNDS = (1, 2)
EVERY_STAGE = [
    *(StageId(0, name) for name in FIRST_STAGES),
    *(StageId(number, name) for number in ROUNDS for name in STAGES),
]


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


def kill_an_engine(attempts, others, killed):
    """One of the run's own: the session's are another test's."""
    while not committed_parts(attempts, "attempts", verify=False):
        time.sleep(0.02)
    killed.append(next(pid for pid in engine_processes() if pid not in others))
    os.kill(killed[0], signal.SIGKILL)


def config(folder, name):
    return RunConfig(
        name=name,
        storage=str(folder),
        seed=11,
        task={"name": "arithmetic", "limit_train": 40, "limit_test": 8, "max_validation": 6},
        student={
            "tiny": {"hidden_size": 64, "layers": 2, "heads": 2, "school_steps": 60, "school_questions": 400},
            "engines": 1,
            "max_model_len": 256,
            "max_num_seqs": 8,
            "kv_cache_gib": 0.125,
        },
        exam={"samples": 4, "max_new_tokens": 48, "shard_questions": 4},
        evaluation={"max_new_tokens": 16},
        teacher={"base_url": "mock", "mock": {"wrong_share": 0.1, "malformed_share": 0.1}},
        training={"steps": 8, "learning_rate": 1e-3, "batch_size": 8, "warmup_steps": 0, "max_length": 256},
        rounds={"max_rounds": len(ROUNDS)},
        observe={"log_every_s": 5.0},
    )


class Run:
    """One run of the seed: the order in which its parts ended, and its manifests."""

    def __init__(self, folder, name, pools):
        self.folder = Store.open(str(folder)).child(name)
        self.order, add = [], exam.Totals.add

        def noted(totals, part):
            self.order.append(part.index)
            add(totals, part)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exam.Totals, "add", noted)
            run(config(folder, name), pools)

    def manifest(self, round_, stage):
        return read_manifest(stage_folder(self.folder, StageId(round_, stage)))

    def digests(self):
        return {str(stage): self.manifest(stage.round, stage.name).digest() for stage in EVERY_STAGE}


@pytest.fixture(scope="module")
def pools(ray_cluster):
    pools = WorkerPools(config("", "any"))
    yield pools
    pools.close()


@pytest.fixture(scope="module")
def first(pools, tmp_path_factory):
    """The run whose engine is killed, what it exported, and the engines that were killed."""
    import ray

    metrics.set_run("another")  # on the same cluster, by the same process: not ours to count
    metrics.count("engine_restarts", 3)
    folder = tmp_path_factory.mktemp("runs")
    node = ray.nodes()[0]
    scraper = Scraper(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", "first")
    killed = []
    attempts = stage_folder(Store.open(str(folder)).child("first"), StageId(1, "exam"))
    threading.Thread(target=kill_an_engine, args=(attempts, engine_processes(), killed), daemon=True).start()
    scraper.start()
    try:
        made = Run(folder, "first", pools)
        time.sleep(9)  # the last report of each process, every four seconds
    finally:
        scraper.ended.set()
        scraper.join()
    scraper.look()
    return made, scraper.totals(), killed


@pytest.mark.timeout(400)
def test_a_runs_counts_are_exported_once(first):
    made, found, killed = first
    asked, trained, taught = (
        [made.manifest(round_, stage).metrics for round_ in ROUNDS] for stage in ("exam", "train", "teach")
    )
    scored = [made.manifest(round_, "evaluate").metrics for round_ in (0, *ROUNDS)]
    answered = (*asked, *(one[split] for one in scored for split in ("validation", "test")))
    assert len(killed) == 1
    assert [one["engine_restarts"] for one in asked] == [1, 0]

    def total(rows, name):
        return sum(row[name] for row in rows)

    expected = {
        ("training_steps_total", ""): total(trained, "steps"),
        ("training_tokens_total", ""): total(trained, "tokens"),
        ("engine_restarts_total", ""): 1,
        ("exam_samples_total", "wrong"): total(answered, "wrong"),
        ("engine_tokens_total", "output"): total(answered, "output_tokens"),
        ("teacher_tokens_total", "input"): total(taught, "input_tokens"),
        ("teacher_tokens_total", "output"): total(taught, "output_tokens"),
        ("round", ""): len(ROUNDS),
        ("accuracy", "test"): scored[-1]["test"]["accuracy"],
    }
    assert {key: found[f"ray_tailor_{key[0]}", key[1]] for key in expected} == expected
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    asked_for = {name for query in queries for name in re.findall(r"ray_tailor_\w+", query)}
    absent = {f"ray_tailor_{name}{'_total' if metrics.TABLE[name].kind == 'counter' else ''}" for name in ELSEWHERE}
    assert asked_for - absent <= {name for name, _ in found}


@pytest.mark.timeout(400)
def test_the_order_in_which_an_exams_parts_end_is_seen_nowhere(first, pools, tmp_path, monkeypatch):
    made, _, _ = first
    listed = exam.stage_parts
    monkeypatch.setattr(exam, "stage_parts", lambda store, split: listed(store, split)[::-1])
    second = Run(tmp_path, "second", pools)
    assert second.order != made.order
    assert sorted(second.order) == sorted(made.order)
    assert second.digests() == made.digests()
