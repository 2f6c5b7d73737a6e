"""The teaching stage's actor and driver killed, online and with a batch pending, and a full disk."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from tailor_ray.config.teacher import MockConfig
from tailor_ray.demo.mock_server import MockOptions, MockProcess
from tests.integration.teaching import BATCH, CANARY, answered, holds_no_key, ledger, run, settings, shards

pytestmark = pytest.mark.usefixtures("ray_cluster")


def newest_teacher_actor():
    """An earlier test's may still be there."""
    named = [(p.info["create_time"], p) for p in psutil.process_iter(["cmdline", "create_time"]) if p.info["cmdline"]]
    return max(((at, p.pid, p) for at, p in named if p.info["cmdline"][0].startswith("ray::TeacherActor")))[2]


def test_a_killed_actor_is_replaced_and_its_leases_are_given_to_another(tmp_path):
    log = tmp_path / "access.jsonl"

    def strike():
        while not log.exists() or sum(answered(log).values()) < 15:
            time.sleep(0.05)
        newest_teacher_actor().kill()

    with MockProcess(MockOptions(MockConfig(latency_s=0.4, access_log=str(log)))) as mock:
        killer = threading.Thread(target=strike)
        killer.start()
        metrics = run(tmp_path, settings(mock.base_url, actors=2, max_in_flight=16, timeout_s=60))
        killer.join()
    assert metrics["accepted"] == 60
    twice = [key for key, number in answered(log).items() if number > 1]
    assert max(answered(log).values()) <= 2
    assert len(twice) <= 8  # one actor's share of the calls in flight
    lost = ledger(tmp_path, "count(*) filter (attempts > 1), sum(lost_tokens)")[0]
    assert 1 <= lost[0] <= 8 + 6
    assert lost[1] > 0  # both calls are counted, the lost one at its worst


DRIVER = """
import os
import ray
from pathlib import Path
from tests.integration.teaching import cluster_knows, run, settings, shards
ray.init(address="local", num_cpus=1, object_store_memory=100_000_000, include_dashboard=False)
print(ray._private.worker.global_worker.node.get_session_dir_path(), flush=True)
assert os.environ["CANARY_KEY"] not in cluster_knows()
run(Path({folder!r}), settings({url!r}, max_in_flight=8, timeout_s=60, api_key_env="CANARY_KEY"), exam=shards(size=60))
"""


def test_a_killed_driver_pays_for_nothing_twice_but_what_was_in_flight(tmp_path):
    """Its key comes from the environment, and is nowhere when it is dead.

    One shard, not committed at the kill, so that all which is known of the first driver's requests is in its ledger.
    """
    log, key_file = tmp_path / "access.jsonl", tmp_path.parent / f"{tmp_path.name}-key"
    key_file.write_text(CANARY)
    options = MockOptions(MockConfig(latency_s=0.3, access_log=str(log)), key=CANARY)
    with MockProcess(options) as mock:
        script = DRIVER.format(folder=str(tmp_path), url=mock.base_url)
        env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "CANARY_KEY": CANARY}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        driver = subprocess.Popen([sys.executable, "-c", script], env=env, **pipe)
        session = Path(driver.stdout.readline().strip())
        while not log.exists() or sum(answered(log).values()) < 25:
            assert driver.poll() is None, "the driver ended by itself"
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        time.sleep(2.0)  # what was on its way is answered
        before = answered(log)
        config = settings(mock.base_url, max_in_flight=8, timeout_s=60, api_key_file=str(key_file))
        metrics = run(tmp_path, config, exam=shards(size=60))
    assert metrics["accepted"] == 60
    assert metrics["from_ledger"] >= len(before) - 8 >= 15  # all that was answered but for what was in flight
    after = answered(log)
    assert sum(number - 1 for number in after.values()) <= 8  # in flight
    assert len(before) < len(after) == 60
    assert ledger(tmp_path, "count(*)")[0][0] == 60
    assert (session / "logs").is_dir()
    holds_no_key(tmp_path, session / "logs")


def test_a_driver_killed_while_a_batch_is_pending_submits_nothing_twice(tmp_path):
    log = tmp_path / "access.jsonl"
    with MockProcess(MockOptions(MockConfig(latency_s=2.0, access_log=str(log)))) as mock:
        config = settings(mock.base_url, **BATCH)
        script = textwrap.dedent(
            f"""
            from pathlib import Path
            from tests.integration.teaching import BATCH, run, settings
            run(Path({str(tmp_path)!r}), settings({mock.base_url!r}, **BATCH))
            """
        )
        env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        driver = subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.DEVNULL)
        while not any(json.loads(file.read_text())["batch"] for file in (tmp_path / "teacher").glob("batches/*.json")):
            assert driver.poll() is None, "the driver ended by itself"
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        metrics = run(tmp_path, config)
    assert metrics["accepted"] == 60
    assert list(answered(log).values()) == [1] * 60
    assert ledger(tmp_path, "count(*), max(attempts), sum(lost_tokens)") == [(60, 1, 0)]


CHOKED = """
import json, os, resource, threading, time
from pathlib import Path
from tests.integration.teaching import BATCH, run, settings
folder = Path({folder!r})

def choke():
    while not any(json.loads(file.read_text())["batch"] for file in (folder / "teacher").glob("batches/*.json")):
        time.sleep(0.02)
    (log,) = Path(os.environ["TAILOR_RAY_CACHE"]).glob("ledgers/*-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 4096, resource.RLIM_INFINITY))

threading.Thread(target=choke, daemon=True).start()
run(folder, settings({url!r}, **BATCH))
"""


def test_a_full_disk_stops_the_round_loudly_and_with_space_nothing_is_paid_twice(tmp_path):
    """RLIMIT_FSIZE makes the ledger's writes fail as a full disk does, when the replies are already paid for."""
    log, cache = tmp_path / "access.jsonl", tmp_path / "cache"
    with MockProcess(MockOptions(MockConfig(latency_s=1.0, access_log=str(log)))) as mock:
        script = CHOKED.format(folder=str(tmp_path), url=mock.base_url)
        env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "TAILOR_RAY_CACHE": str(cache)}
        ended = subprocess.run([sys.executable, "-c", script], env=env, check=False, capture_output=True, text=True)
        assert ended.returncode == 1
        assert "make space there, or point TAILOR_RAY_CACHE at another local disk" in ended.stderr
        assert sum(answered(log).values()) == 60
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TAILOR_RAY_CACHE", str(cache))
            metrics = run(tmp_path, settings(mock.base_url, **BATCH))
    assert (metrics["accepted"], sum(answered(log).values())) == (60, 60)
