"""The best of several students is kept, by what held-out questions say; all on one worker without Ray."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from jobs.benchmarks.naive import naive_loss
from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import ConfigError
from tailor_ray.models import identify
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import AnswerKind, Question
from tailor_ray.training.held_out import HeldOut, Selection, read_answers
from tailor_ray.training.model import load_student
from tailor_ray.training.steps import History
from tests.training.alone import Worker
from tests.training.students import make_student

STEPS = 8
HELD_OUT = HeldOut(
    questions=tuple(
        Question(f"v{n}", f"{n} apples and 2 more", f"{n + 2}", rationale=f"{n} + 2 = {n + 2}") for n in range(5)
    ),
    prompt=StudentPrompt("plain", AnswerKind.NUMBER),
    max_new_tokens=8,
    dtype="auto",
)

pytestmark = pytest.mark.usefixtures("one_worker")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_student(tmp_path_factory.mktemp("student"))


def choosing(folder, tmp_path, held_out=HELD_OUT, **settings):
    """A worker with its selection, and how it trains to the end."""
    worker = Worker(folder, tmp_path, **{"steps": STEPS} | settings)
    worker.scratch = tmp_path / "scratch"
    worker.selection = Selection(worker.stepper, held_out, worker.out, worker.scratch)
    worker.weights = {}
    return worker


def train(worker):
    for step in range(STEPS):
        row = worker.stepper.step(step)
        if worker.selection.due(step + 1):
            row["validation"] = worker.selection.consider(step + 1)
            worker.weights[step + 1] = {name: value.clone() for name, value in worker.engine.state_dict().items()}
        worker.history.append(row)
    return worker.selection.keep(worker.engine.state_dict(), worker.history)


def rows_of(worker):
    return worker.history.table().to_pylist()


def kept_weights(worker):
    return load_file(worker.out.path("student/model.safetensors"))


def assert_kept(worker, step):
    for name, value in kept_weights(worker).items():
        assert torch.equal(value, worker.weights[step][f"student.{name}"]), name


def test_the_last_student_is_kept_where_none_is_chosen(folder, tmp_path):
    worker = choosing(folder, tmp_path)
    step, model = train(worker)
    assert (step, worker.weights) == (STEPS, {})
    assert model == replace(identify(worker.out.path("student")), revision=None)
    assert torch.equal(kept_weights(worker)["lm_head.weight"], worker.engine.state_dict()["student.lm_head.weight"])
    answers, tokens = read_answers(worker.out.child("log"))
    assert tokens == 8
    assert [answer.question_id for answer in answers] == [f"v{n}" for n in range(5)]


def test_the_student_with_the_least_validation_loss_is_kept(folder, tmp_path):
    worker = choosing(folder, tmp_path, select="validation_loss", candidates=4)
    step, _ = train(worker)
    scores = {row["step"] + 1: row["validation"] for row in rows_of(worker) if row["validation"] is not None}
    assert list(scores) == [2, 4, 6, 8]
    assert scores[step] == max(scores.values())
    assert_kept(worker, step)
    assert not worker.out.exists("candidates")


def test_an_earlier_student_is_kept_when_later_ones_are_worse(folder, tmp_path):
    """What a resumed training finds: the candidates' folders, and the scores in the history of its checkpoint."""
    worker = choosing(folder, tmp_path, select="validation_loss", candidates=4)
    kept = []
    worker.selection.keep = lambda weights, _: kept.append(weights)
    train(worker)
    history = History()
    for row in rows_of(worker):
        history.append({**row, "validation": {2: 0.2, 4: 0.6, 6: 0.6, 8: 0.4}.get(row["step"] + 1)})
    again = Selection(worker.stepper, HELD_OUT, worker.out, tmp_path / "elsewhere")
    step, _ = again.keep(kept[0], history)
    assert step == 6  # the later of the two best
    assert_kept(worker, 6)


def test_the_held_out_loss_is_the_naive_one(folder, tmp_path):
    worker = choosing(folder, tmp_path, select="validation_loss", micro_batch_tokens=40)
    examples = worker.selection.examples
    assert len(examples) == 5
    loss = worker.stepper.held_out_loss(examples)
    reference = load_student(folder, TrainingConfig(attention="separate"), torch.float32, seed=0).model
    targets = sum(len(e.prompt) + len(e.rationale) - 1 for e in examples)
    expected = naive_loss(reference, examples, prompt_weight=0.0).item() * targets
    assert loss == pytest.approx(expected / sum(len(e.rationale) for e in examples), rel=1e-5)


def test_a_loss_without_rationales_is_refused(folder, tmp_path):
    nothing = replace(HELD_OUT, questions=tuple(replace(q, rationale=None) for q in HELD_OUT.questions))
    with pytest.raises(ConfigError, match="the task has none; set it to last"):
        choosing(folder, tmp_path, nothing, select="validation_loss")
