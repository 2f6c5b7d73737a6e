"""What of an engine needs no vLLM: its environment, the model's shape, and the end of its children."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tailor_ray.config.student import StudentConfig, engine_environment
from tailor_ray.errors import ConfigError
from tailor_ray.models import ModelRef
from tailor_ray.models.folder import architecture, context_length
from tailor_ray.storage import FileEntry
from tailor_ray.student.engine import watch
from tailor_ray.student.pool import engine_count
from tailor_ray.student.supervisor import Supervisor

MODEL = ModelRef("owner/name", ())
PARENT = """
import multiprocessing, os, time
from tailor_ray.student.engine import die_with_parent

def child():
    die_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child).start()
    time.sleep(600)
"""


def test_an_engines_child_ends_when_its_actor_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TAILOR_RAY_ENGINE": "1"}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert psutil.wait_procs([child], timeout=10)[1] == []


def test_the_end_of_an_engines_process_is_told():
    context, said, told = multiprocessing.get_context("spawn"), [], threading.Event()
    children = [context.Process(target=time.sleep, args=(600,), name=name) for name in ("core-0", "core-1")]
    for child in children:
        child.start()

    def on_end(why):
        said.append(why)
        told.set()

    watch(children, on_end)
    children[1].kill()
    assert told.wait(30)
    assert said == ["the engine failed: its process core-1 ended"]
    children[0].kill()
    for child in children:
        child.join()


def test_a_users_own_vllm_is_left_alone(monkeypatch):
    monkeypatch.delenv("TAILOR_RAY_ENGINE", raising=False)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(death_signal) == 0


def death_signal():
    """The signal that this process gets when its parent dies, after the plugin was called."""
    import ctypes

    from tailor_ray.student.engine import die_with_parent

    die_with_parent()
    found = ctypes.c_int(-1)
    ctypes.CDLL(None).prctl(2, ctypes.byref(found))  # PR_GET_PDEATHSIG
    return found.value


def write_config(folder, **values):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "transformers_version": "5", **values}))
    return folder


def test_only_what_changes_the_models_shape_needs_a_new_engine(tmp_path):
    first = write_config(tmp_path / "a", dtype="float32")
    same = write_config(tmp_path / "b", dtype="bfloat16", transformers_version="6")
    wider = write_config(tmp_path / "c", hidden_size=128)
    assert architecture(first) == architecture(same) != architecture(wider)


@pytest.mark.parametrize(("positions", "length"), [(256, 256), (4096, 1024), (None, 1024)])
def test_the_context_is_no_longer_than_the_models(tmp_path, positions, length):
    folder = write_config(tmp_path / "m", **({"max_position_embeddings": positions} if positions else {}))
    assert context_length(folder, 1024) == length


def test_engines_on_cpu_stay_in_their_actors_process():
    cpu, gpu = engine_environment(on_gpu=False, threads=3), engine_environment(on_gpu=True, threads=3)
    assert cpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert cpu["OMP_NUM_THREADS"] == "3"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in gpu


@pytest.mark.parametrize(
    ("resources", "settings", "engines"),
    [
        ({"CPU": 2, "memory": 12 * 2**30}, {}, 2),
        ({"CPU": 16, "memory": 9 * 2**30}, {}, 4),  # 2 GiB each with their caches
        ({"CPU": 16, "memory": 9 * 2**30}, {"kv_cache_gib": 3.0}, 2),
        ({"CPU": 16, "memory": 2**30}, {}, 1),
        ({"CPU": 16, "memory": 9 * 2**30}, {"engines": 6}, 6),
        ({"CPU": 16, "memory": 9 * 2**30, "GPU": 8}, {}, 8),
        ({"CPU": 16, "memory": 9 * 2**30, "GPU": 8}, {"tensor_parallel": 4}, 2),
    ],
)
def test_there_are_as_many_engines_as_devices_or_cores_and_memory_allow(resources, settings, engines):
    assert engine_count(StudentConfig(**settings), resources, MODEL) == engines


def test_more_engines_than_gpus_are_refused():
    with pytest.raises(ConfigError, match=r"student\.engines=3 .* more than the 4 GPUs"):
        engine_count(StudentConfig(engines=3, tensor_parallel=2), {"CPU": 4, "GPU": 4}, MODEL)


def test_the_weights_of_a_student_count_as_memory():
    model = ModelRef("owner/name", (FileEntry("model.safetensors", "", 2 * 2**30),))  # 1 G parameters in half precision
    assert engine_count(StudentConfig(), {"CPU": 16, "memory": 13 * 2**30}, model) == 2  # 6 GiB each


def test_a_part_begins_when_the_driver_has_taken_over_enough_of_those_before():
    supervisor = Supervisor(StudentConfig(), MODEL, seed=0, engines=0, on_gpu=False, threads=1)
    supervisor.begin_stage(0, room=2)
    supervisor.enter_part(0)
    supervisor.enter_part(1)
    supervisor.enter_part(1)  # by a task that is done again: its place is there
    begun = []
    third = threading.Thread(target=lambda: begun.append(supervisor.enter_part(2)), daemon=True)
    third.start()
    third.join(0.2)
    assert begun == []
    supervisor.leave_part(0)
    third.join(10)
    assert begun == [None]


class Engine:
    """What Ray would start as an actor; it is ready at once."""

    def __init__(self):
        self.ready = SimpleNamespace(remote=lambda: "its sha256")

    def options(self, **_):
        return self

    def remote(self, *_):
        return self


@pytest.fixture
def no_ray(monkeypatch):
    """Engines of a supervisor are objects of this process."""
    monkeypatch.setattr("ray.remote", lambda _: Engine())
    monkeypatch.setattr("ray.nodes", list)
    monkeypatch.setattr("ray.get", lambda reference, **_: reference)


def test_a_prompt_asked_alone_never_waits_behind_another_such_prompt(no_ray):
    """Else the engine's death by the other one would count as its own, and two such deaths quarantine it."""
    supervisor = Supervisor(StudentConfig(), MODEL, seed=0, engines=1, on_gpu=False, threads=1)
    supervisor.begin_stage(0)
    first = supervisor.lease(alone=True)
    assert supervisor.lease().handle is first.handle
    got = []
    second = threading.Thread(target=lambda: got.append(supervisor.lease(alone=True)), daemon=True)
    second.start()
    second.join(0.2)
    assert got == []
    supervisor.give_back(first)
    second.join(10)
    assert [lease.alone for lease in got] == [True]


def test_an_engine_lent_alone_to_a_lost_caller_is_lent_again(no_ray):
    supervisor = Supervisor(StudentConfig(engine_timeout_s=1.0), MODEL, seed=0, engines=1, on_gpu=False, threads=1)
    supervisor.begin_stage(0)
    supervisor.lease(alone=True)  # and never given back
    started = time.monotonic()
    assert supervisor.lease(alone=True).alone
    assert 0.9 < time.monotonic() - started < 10.0
