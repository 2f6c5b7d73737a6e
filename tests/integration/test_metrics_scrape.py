"""A Ray process exports every metric of the table under the name that the Grafana dashboard asks for."""

import json
import re
import time
import urllib.request
from pathlib import Path

from tailor_ray.observe import live, metrics
from tailor_ray.statistics import accuracy
from tailor_ray.storage import FileEntry, Manifest, Part

DASHBOARD = Path(__file__).parents[2] / "cluster/grafana-dashboard.json"
COUNTS = {"correct": 30, "wrong": 8, "truncated": 2, "prompt_tokens": 4000, "output_tokens": 900}


class Exporter:
    """In a Ray worker: the driver's callbacks, and what the teacher's pool says."""

    def touch(self):
        live.answered(Part(0, FileEntry("attempts-00000.parquet", "", 1, 40), {"counts": COUNTS, "quarantined": []}))
        training = live.Training()
        training(10, 20, {"loss": 2.0, "mle": 1.5, "triplet": 1.0, "tokens": 100})
        training(12, 20, {"loss": 1.0, "mle": 0.75, "triplet": 0.5, "tokens": 200})
        scores = {"validation": accuracy(20, 50), "test": accuracy(130, 200)}
        live.committed(Manifest("exam", 2, "", {}, (), 40.0, {"engine_restarts": 1}))
        live.committed(Manifest("evaluate", 2, "", {}, (), 9.5, scores))
        for metric in metrics.TABLE.values():
            if metric.name.startswith(("teacher_", "ledger_", "weight_")):
                call = {"counter": metrics.count, "gauge": metrics.gauge, "histogram": metrics.observe}[metric.kind]
                call(metric.name, 2.5, **dict.fromkeys(metric.tags, "tried"))


def scrape(address):
    """{(name, value of our tag): value}"""
    text = urllib.request.urlopen(address, timeout=10).read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("ray_tailor_"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            assert labels["SessionName"]  # the dashboard's variable
            tag = next(
                (
                    labels[name]
                    for name in ("verdict", "direction", "outcome", "term", "split", "stage")
                    if name in labels
                ),
                "",
            )
            found[line.split("{")[0], tag] = float(line.rpartition(" ")[2])
    return found


def test_every_query_of_the_dashboard_names_an_exported_metric(ray_cluster):
    import ray

    exporter = ray.remote(num_cpus=0)(Exporter).remote()
    ray.get(exporter.touch.remote())
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    asked = {name for query in queries for name in re.findall(r"ray_tailor_\w+", query)}
    deadline = time.monotonic() + 60
    found = {}
    while not asked <= {name for name, _ in found} and time.monotonic() < deadline:
        time.sleep(1)
        found = scrape(address)
    ray.kill(exporter)
    assert asked <= {name for name, _ in found}
    expected = {
        ("ray_tailor_exam_samples_total", "correct"): 30,
        ("ray_tailor_exam_samples_total", "truncated"): 2,
        ("ray_tailor_engine_tokens_total", "output"): 900,
        ("ray_tailor_engine_restarts_total", ""): 1,
        ("ray_tailor_training_steps_total", ""): 12,
        ("ray_tailor_training_tokens_total", ""): 10 * 100 + 2 * 200,
        ("ray_tailor_training_loss", "triplet"): 0.5,
        ("ray_tailor_round", ""): 2,
        ("ray_tailor_accuracy", "test"): 0.65,
        ("ray_tailor_stage_seconds", "exam"): 40,
        ("ray_tailor_teacher_spent_usd", ""): 2.5,
    }
    assert {key: found[key] for key in expected} == expected
    assert ("ray_tailor_exam_samples_total", "disputed") not in found  # nothing counted, nothing exported
