"""A run as Ray jobs on two clusters that share nothing but an S3 bucket: submitted with `ray job submit` to one head
node and stopped half-way, then with `tailor-ray submit` to a cluster of three nodes, one of which is switched off.

One run through all of it, for each start of Ray, engines and training costs; the tests look at what it left.
"""

import json
import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tailor_ray.storage import Store, committed_parts, read_manifest
from tests.integration.clusters import RAY, RayNodes
from tests.storage.s3 import s3_server

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "cluster/grafana-dashboard.json"
CANARY = "sk-canary-7d31c0b5"
SETTINGS = (
    *("task.limit_train=96", "task.limit_test=16", "task.max_validation=8", "student.tiny.hidden_size=64"),
    *("student.tiny.layers=2", "student.tiny.heads=2", "student.tiny.school_steps=20", "student.engines=1"),
    *("student.tiny.school_questions=200", "student.max_num_seqs=64", "student.kv_cache_gib=0.125"),
    *("exam.samples=8", "exam.shard_questions=8", "exam.max_new_tokens=48", "evaluation.max_new_tokens=48"),
    *("training.steps=4", "rounds.max_rounds=1", "teacher.budget_usd=9", "teacher.price.input=1"),
    "teacher.price.output=1",
)


@dataclass
class Seen:
    """What was looked at while the run went on."""

    refused: subprocess.CompletedProcess = None
    stopped: dict = field(default_factory=dict)
    stopped_log: str = ""
    committed: dict = field(default_factory=dict)
    live: str = ""
    health: str = ""
    lost: str = ""
    finished: subprocess.CompletedProcess = None
    metrics: set = field(default_factory=set)
    store: Store = None


def wait_for(happened, what, seconds=400):
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.2)
    return found


def ask(nodes, path):
    """JSON of the dashboard's API, None while it does not answer."""
    request = urllib.request.Request(
        f"{nodes.address}{path}", headers={"Authorization": f"Bearer {nodes.environment['RAY_AUTH_TOKEN']}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def command(nodes, *arguments, **environment):
    return subprocess.run(
        list(map(str, arguments)),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=ROOT,
        env={**nodes.environment, "PYTHONPATH": str(ROOT), **environment},
    )


def tailor(nodes, *arguments, **environment):
    return command(nodes, sys.executable, "-m", "tailor_ray", *arguments, **environment)


def scraping(nodes, seen, stop):
    """Collect the names of our metrics that any node exports, twice a second."""
    while not stop.wait(0.5):
        for port in list(nodes.metrics):
            try:
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
            except (urllib.error.URLError, ConnectionError, TimeoutError):  # starting, or switched off
                continue
            seen.metrics |= set(re.findall(r"^(ray_tailor_\w+)\{", text, re.MULTILINE))


def stop_half_way(nodes, config, seen):
    """`ray job submit`, and `ray job stop` once a shard of the exam is committed."""
    submit = [*RAY, "job", "submit", "--address", nodes.address, "--working-dir", ".", "--no-wait"]
    run = ["python", "-m", "tailor_ray", "run", *config]
    done = command(nodes, *submit, "--submission-id", "first", "--runtime-env", "jobs/runtime-env.yaml", "--", *run)
    assert done.returncode == 0, done.stderr
    exam = seen.store.child("rounds", "01", "exam")

    def answered():
        assert (ask(nodes, "/api/jobs/first") or {}).get("status") != "FAILED", ask(nodes, "/api/jobs/first/logs")
        return committed_parts(exam, "attempts", verify=False)

    wait_for(answered, "a shard of the exam")
    seen.live = tailor(nodes, "status", seen.store.uri).stdout
    assert command(nodes, *RAY, "job", "stop", "--address", nodes.address, "first").returncode == 0
    seen.stopped = ask(nodes, "/api/jobs/first")
    seen.stopped_log = ask(nodes, "/api/jobs/first/logs")["logs"]
    seen.committed = {part.index: part.entry.sha256 for part in committed_parts(exam, "attempts")}


def finish_without_a_node(nodes, config, seen):
    """`tailor-ray submit`, and a node with an engine is switched off once the exam goes on there."""
    for count, name in ((2, "worker-1"), (3, "worker-2")):  # one by one: starting takes a core, and Ray's patience ends
        nodes.add(name)
        wait_for(lambda count=count: len(alive(nodes)) == count, f"{count} nodes")
    seen.health = command(nodes, sys.executable, "-c", HEALTH, OPENAI_API_KEY="").stdout  # no address: it is found
    submit = [sys.executable, "-m", "tailor_ray", "submit", *config, "--set", "student.engines=2"]
    process = subprocess.Popen(
        [*submit, "--address", nodes.address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**nodes.environment, "PYTHONPATH": str(ROOT)},
    )
    exam = seen.store.child("rounds", "01", "exam")
    known = len(seen.committed)
    wait_for(
        lambda: len(committed_parts(exam, "attempts", verify=False)) > known or process.poll() is not None,
        "a further shard",
    )
    seen.lost = alive(nodes)[wait_for(lambda: node_of_an_engine(nodes), "an engine on a worker node")]
    nodes.kill(seen.lost)
    out, err = process.communicate(timeout=300)
    seen.finished = subprocess.CompletedProcess(submit, process.returncode, out, err)


HEALTH = """
from tailor_ray.config import RunConfig
from tailor_ray.ops.doctor import cluster
for line in cluster(RunConfig()):
    print(line)
"""


def alive(nodes):
    """Names by id of the nodes that Ray counts as alive."""
    rows = ((ask(nodes, "/api/v0/nodes") or {}).get("data") or {"result": {"result": []}})["result"]["result"]
    return {row["node_id"]: row["node_name"] for row in rows if row["state"] == "ALIVE"}


def node_of_an_engine(nodes):
    """One that is not the head; None as long as there is none."""
    rows = ((ask(nodes, "/api/v0/actors?detail=1") or {}).get("data") or {"result": {"result": []}})["result"]["result"]
    heads = {identity for identity, name in alive(nodes).items() if name == "head"}
    engines = [row for row in rows if row["class_name"] == "StudentEngine" and row["state"] == "ALIVE"]
    return next((row["node_id"] for row in engines if row["node_id"] not in heads), None)


def refuse_without_a_token(nodes, config, seen):
    unknown = {"RAY_AUTH_TOKEN": "", "HOME": nodes.environment["TAILOR_RAY_CACHE"]}
    seen.refused = tailor(nodes, "submit", *config, "--address", nodes.address, **unknown)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    base = tmp_path_factory.mktemp("clusters")
    shared = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OPENAI_API_KEY": CANARY}
    # of 10 s, in which a run as short as this one is over; of 3 s, too short for last words on a busy machine
    shared |= {"RAY_metrics_report_interval_ms": "1000", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    with s3_server() as bucket:
        overrides = [text for setting in SETTINGS for text in ("--set", setting)]
        config = ["jobs/demo.yaml", "--storage", f"{bucket}/runs", *overrides]
        what = Seen(store=Store.open(f"{bucket}/runs").child("demo"))
        for scenes in ((refuse_without_a_token, stop_half_way), (finish_without_a_node,)):
            nodes, stop = RayNodes({**shared, "TAILOR_RAY_CACHE": str(base / scenes[0].__name__)}), threading.Event()
            scraper = threading.Thread(target=scraping, args=(nodes, what, stop))
            scraper.start()
            try:
                wait_for(lambda nodes=nodes: ask(nodes, "/api/jobs/") is not None, "the Jobs API")
                for scene in scenes:
                    scene(nodes, config, what)
            finally:
                stop.set()
                scraper.join()
                nodes.close()
        yield what


def test_a_cluster_that_wants_a_token_says_so(seen):
    assert seen.refused.returncode == 2, seen.refused.stderr
    assert "RAY_AUTH_TOKEN" in seen.refused.stderr
    assert "Traceback" not in seen.refused.stderr


def test_a_stopped_job_leaves_a_run_that_can_go_on(seen):
    assert seen.stopped["status"] == "STOPPED"
    assert 1 <= len(seen.committed) < 12
    assert "held by process" in seen.live
    assert "round 1 exam" in seen.live
    assert "the same command goes on" in seen.stopped_log


def test_no_key_travels_with_a_job(seen):
    assert seen.stopped["runtime_env"]["env_vars"]["PYTHONUNBUFFERED"] == "1"
    assert CANARY not in json.dumps(seen.stopped)
    assert CANARY not in seen.stopped_log + seen.finished.stdout + seen.finished.stderr


def test_another_cluster_finishes_the_run_from_the_bucket_alone_and_without_a_node(seen):
    assert seen.finished.returncode == 0, seen.finished.stderr[-5000:]
    assert seen.lost in ("worker-1", "worker-2")
    kept = {p.index: p.entry.sha256 for p in committed_parts(seen.store.child("rounds", "01", "exam"), "attempts")}
    assert seen.committed.items() <= kept.items()
    assert len(kept) == 12
    report = seen.store.read_json("report/report.json")
    assert [entry["round"] for entry in report["rounds"]] == [0, 1]
    assert report["rounds"][1]["exam"]["attempts"] == 96 * 8
    assert report["rounds"][1]["exam"]["error"] == 0
    assert report["rounds"][1]["training"]["steps"] == 4
    assert report["rounds"][1]["evaluation"]["total"] == 16
    assert read_manifest(seen.store.child("rounds", "01", "exam")).metrics["engine_restarts"] >= 1
    assert b"Round 1" in seen.store.read_bytes("report/index.html")
    assert "report: s3://bucket/runs/demo/report/index.html" in seen.finished.stderr  # the job's log, followed


def test_the_doctor_finds_the_running_cluster_and_sees_three_nodes_and_their_clocks(seen):
    assert "ok   ray: 3 node(s), 4 CPUs" in seen.health
    assert "ok   clocks: at most 0.0" in seen.health  # seen with one node


def test_every_query_of_the_dashboard_names_a_metric_that_the_job_exported(seen):
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    asked = {name for query in queries for name in re.findall(r"ray_tailor_\w+", query)}
    by_chance = {"ray_tailor_ledger_hits_total"}  # only what was answered and not yet committed at the stop
    assert asked - by_chance <= seen.metrics
