"""Each benchmark of the Makefile can be started by its target: make runs the script, which says what it does."""

import importlib.util
import inspect
import re

import pytest

from tailor_ray.rounds.services import Services
from tailor_ray.student.pool import EnginePool
from tailor_ray.teacher.pool import TeacherPool
from tests.makefile import ROOT, make

SCRIPTS = ROOT / "jobs/benchmarks"
NAMES = re.search(r"^BENCHMARKS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()

spec = importlib.util.spec_from_file_location("stand_ins", SCRIPTS / "stand_ins.py")
stand_ins = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stand_ins)


def test_the_targets_are_those_that_are_documented():
    assert NAMES == ["exam", "teacher", "training", "ablation", "scale"]
    listed = make("-n", "bench")
    assert re.findall(r"jobs/benchmarks/(\w+)\.py", listed.stdout) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_target_runs_its_script(name):
    script = SCRIPTS / f"{name}.py"
    done = make(f"bench-{name}", "BENCH_ARGS=--help")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"usage: {script.name} " in done.stdout
    assert re.search(r'^"""(.{20})', script.read_text())[1] in done.stdout  # its own first words


@pytest.mark.parametrize(
    ("name", "real"), [("InstantEngines", EnginePool), ("InstantTeacher", TeacherPool), ("StandIns", Services)]
)
def test_a_stand_in_is_called_as_the_real_one_is(name, real):
    shared = [
        (method, getattr(real, what))
        for what, method in inspect.getmembers(getattr(stand_ins, name), inspect.isfunction)
        if not what.startswith("_") and callable(getattr(real, what, None))
    ]
    assert len(shared) > 1
    for method, original in shared:
        taken = [[p.kind for p in inspect.signature(one).parameters.values()] for one in (method, original)]
        assert taken[0] == taken[1], method
