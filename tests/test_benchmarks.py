"""Each benchmark of the Makefile can be started by its target: make runs the script, which says what it does."""

import copy
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


def script(name):
    """A module beside the scripts, by its file."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


stand_ins = script("stand_ins")


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


def test_what_training_is_compared_with_computes_the_same():
    """Packed rows and separate ones: loss and gradients; the reference's procedure: the loss."""
    from jobs.benchmarks.families import scaled_up
    from jobs.benchmarks.naive import naive_loss
    from tailor_ray.training.forward import StudentLoss
    from tailor_ray.training.tree import TreeAttention
    from tests.training.students import make_model
    from tests.training.test_exactness import random_examples

    rivals = script("training_rivals")
    examples = random_examples(seed=3, count=3, demos=20, pairs="all")
    plain = scaled_up(make_model("llama")).eval()
    expected = naive_loss(plain, examples)
    expected.backward()
    gradients = [p.grad.clone() for p in plain.parameters()]
    for name in ("packed", "separate", "naive"):
        model = copy.deepcopy(plain)
        model.zero_grad()
        if name == "naive":
            loss = rivals.naive(model, examples)
        else:
            attention = TreeAttention() if name == "packed" else None
            if attention is not None:
                attention.install(model)
            loss = getattr(rivals, name)(StudentLoss(model, attention, rivals.TRIPLET_MARGIN), examples)
        assert loss == pytest.approx(expected.item(), abs=1e-4), name
        if name != "naive":  # whose triplet term sends none through the prompt
            for p, theirs in zip(model.parameters(), gradients, strict=True):
                assert (p.grad - theirs).norm() <= 1e-3 * theirs.norm() + 1e-6, name
