"""One worker's steps: adapters, what NaN and a full disk do, and settings that only change how it is computed."""

import gc
import resource
import signal
import threading
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

from tailor_ray.errors import StageError
from tailor_ray.models import identify
from tailor_ray.training.checkpoint import Checkpoints
from tailor_ray.training.export import export_student, masters_of
from tailor_ray.training.steps import Diverged, prefetched
from tests.training.alone import Worker
from tests.training.students import make_student

pytestmark = pytest.mark.usefixtures("one_worker")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_student(tmp_path_factory.mktemp("student"))


def steps(worker, count=4):
    return [worker.stepper.step(step)["loss"] for step in range(count)]


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(2, 40)[None]).logits


def test_adapters_learn_alone_and_the_export_is_what_was_trained(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    worker = Worker(folder, tmp_path, lora={"rank": 4})
    before = {name: p.clone() for name, p in worker.student.model.named_parameters()}
    losses = steps(worker, 8)
    assert losses[-1] < losses[0]
    for name, p in worker.student.model.named_parameters():
        assert torch.equal(p, before[name]) != ("lora_" in name), name
    # the exported folder answers as base weights and adapters together did, and holds no trace of them
    worker.student.model.config._attn_implementation = "eager"  # of a plain row, not of the tree
    trained = logits(worker.student.model)
    export_student(worker.student, worker.engine.state_dict(), worker.out, tmp_path / "scratch", "4GB")
    exported = AutoModelForCausalLM.from_pretrained(worker.out.path("student"))
    assert torch.allclose(logits(exported), trained, atol=1e-5)
    assert not [path for path in worker.out.files("student") if "adapter" in path]


def bytes_held():
    """Of all weights, gradients, moments and activations that anybody in this process holds."""
    gc.collect()
    tensors = [held for held in gc.get_objects() if type(held) in (torch.Tensor, torch.nn.Parameter)]
    storages = [held.untyped_storage() for held in tensors if held.is_floating_point()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_process_that_trains_many_students_keeps_none_of_them(folder, tmp_path, stage):
    def trained():
        worker = Worker(folder, tmp_path, zero_stage=stage)
        size = sum(getattr(p, "ds_numel", p.numel()) for p in worker.student.model.parameters()) * 4
        steps(worker, 2)
        weights = worker.engine.state_dict()
        worker.engine.close()
        assert sum(weight.nbytes for weight in weights.values()) >= size
        assert all(weight.isfinite().all() for weight in weights.values())
        return size

    trained()  # first uses stay
    before = bytes_held()
    size = trained()
    assert bytes_held() - before < size / 10


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": True},
        {"attention": "separate"},
        {"micro_batch_tokens": 64},
        {"accumulation": 4},
        {"zero_stage": 3},
        {"attention_kernel": "eager", "attention": "separate"},
        {"compile": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_how_it_is_computed_changes_no_loss(folder, tmp_path, settings):
    expected = steps(Worker(folder, tmp_path))
    assert steps(Worker(folder, tmp_path, **settings)) == pytest.approx(expected, abs=1e-4)


def test_a_student_whose_output_layer_is_its_embedding_lies_in_shards_as_well(tmp_path):
    tied = make_student(tmp_path / "tied", tie_word_embeddings=True)
    expected = steps(Worker(tied, tmp_path))
    assert steps(Worker(tied, tmp_path, zero_stage=3)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"zero_stage": 3}, {"lora": {"rank": 2}}], ids=str)
def test_logits_made_in_slices_change_no_loss(folder, tmp_path, monkeypatch, settings):
    expected = steps(Worker(folder, tmp_path, **settings))
    monkeypatch.setattr("tailor_ray.training.forward.LOGITS_AT_ONCE", 44 * 7)
    assert steps(Worker(folder, tmp_path, **settings)) == pytest.approx(expected, abs=1e-4)


def test_the_output_layer_is_gathered_no_oftener_for_more_slices(folder, tmp_path, monkeypatch):
    """Under ZeRO-3, where it was gathered for each slice three times."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    name = "_PartitionedParameterCoordinator__all_gather_params"
    fetch = getattr(Coordinator, name)

    def gathered(at_once):
        monkeypatch.setattr("tailor_ray.training.forward.LOGITS_AT_ONCE", at_once)
        worker = Worker(folder, tmp_path, zero_stage=3)
        head = worker.student.model.get_output_embeddings().weight
        count = [0]
        alone = head.all_gather

        def counted(self, params, *more, **named):
            count[0] += any(p is head for p in params)
            return fetch(self, params, *more, **named)

        def counted_alone(*more, **named):
            count[0] += 1
            return alone(*more, **named)

        monkeypatch.setattr(Coordinator, name, counted)
        head.all_gather = counted_alone
        steps(worker, 1)
        return count[0]

    assert 0 < gathered(44 * 7) <= gathered(1 << 25) + 1


def test_the_next_item_and_no_more_is_made_while_one_is_used():
    made, second = [], threading.Event()

    def items():
        for number in range(5):
            made.append((number, threading.get_ident()))
            if number == 1:
                second.set()
            yield number

    found = []
    for item in prefetched(items()):
        assert second.wait(30)  # made while the first is used
        assert len(made) <= item + 2
        found.append(item)
    assert found == [number for number, _ in made] == list(range(5))
    assert threading.get_ident() not in {thread for _, thread in made}


def test_what_making_an_item_raises_is_raised_where_it_is_wanted():
    def items():
        yield 1
        raise OSError("the part is gone")

    wanted = prefetched(items())
    assert next(wanted) == 1
    with pytest.raises(OSError, match="the part is gone"):
        next(wanted)


def test_steps_may_be_entered_anywhere(folder, tmp_path):
    """What was laid out for the step that did not come is not trained on."""
    worker, other = (Worker(folder, tmp_path, learning_rate=1e-30) for _ in range(2))
    expected = steps(worker, 6)
    assert [other.stepper.step(step)["loss"] for step in (4, 1, 2, 5)] == [expected[step] for step in (4, 1, 2, 5)]


def test_a_nan_weight_ends_the_stage_and_names_the_step_and_its_examples(folder, tmp_path):
    worker = Worker(folder, tmp_path)
    steps(worker, 2)
    with torch.no_grad():
        worker.student.model.model.norm.weight[3] = float("nan")
    with pytest.raises(
        Diverged, match=r"training step 2 gave a loss of nan .* on the examples of q\d+, .* and \d+ more"
    ):
        worker.stepper.step(2)
    with pytest.raises(StageError, match=r"NaN or Inf in \d+ tensors.*not exported"):
        export_student(worker.student, worker.engine.state_dict(), worker.out, tmp_path / "scratch", "4GB")
    assert not worker.out.exists("student")


def test_only_some_skipped_steps_in_a_row_are_borne(folder, tmp_path, monkeypatch):
    """Loss scaling skips a step whose gradient overflowed; a step that counts begins the count again."""
    worker = Worker(folder, tmp_path, max_skipped_steps=3)

    def step(norm, skipped):
        monkeypatch.setattr(worker.engine, "step", lambda: (norm, skipped))
        worker.stepper.step(4)

    for skipped in (*[True] * 19, False, True, True):  # 2^16 comes down to 2^-3 before the first step that counts
        step(float("inf") if skipped else 1.0, skipped)
    with pytest.raises(Diverged, match=r"step 4 gave 3 skipped steps on the examples of q"):
        step(float("inf"), True)
    with pytest.raises(Diverged, match="gradient norm of inf"):
        step(float("inf"), False)


def test_a_full_disk_fails_loudly_and_leaves_the_checkpoint_before(folder, tmp_path):
    worker = Worker(folder, tmp_path)
    checkpoints = Checkpoints(worker.out, "job", keep=2)

    def save(step):
        checkpoints.save(step, worker.history, *worker.engine.snapshot(0), tmp_path)
        checkpoints.wait()

    save(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, as on a full disk, and kills nobody
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises((OSError, RuntimeError, SafetensorError)):
            save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoints.latest().step == 1
    save(2)  # there is space again
    assert checkpoints.latest().step == 2


@pytest.mark.parametrize(("dtype", "stage"), [("float32", 0), ("float32", 2), ("float32", 3), ("bfloat16", 1)])
def test_what_is_gone_on_from_is_what_was_left(folder, tmp_path, dtype, stage):
    settings = {"dtype": getattr(torch, dtype), "zero_stage": stage}
    whole = Worker(folder, tmp_path, **settings)
    steps(whole, 3)
    tensors, figures = whole.engine.snapshot(0)
    expected = [whole.stepper.step(step)["loss"] for step in range(3, 6)]
    for other, tolerance in ((stage, 0.0), (1 if stage != 1 else 2, 1e-5)):
        resumed = Worker(folder, tmp_path, **{**settings, "zero_stage": other})
        resumed.engine.restore(tensors.items(), figures)
        found = [resumed.stepper.step(step)["loss"] for step in range(3, 6)]
        assert found == pytest.approx(expected, abs=tolerance, rel=0)


def test_bfloat16_without_zero_does_not_fall_behind(folder, tmp_path):
    def losses(stage):
        return steps(Worker(folder, tmp_path, dtype=torch.bfloat16, zero_stage=stage), 6)

    assert losses(0) == losses(1)


def test_a_bfloat16_student_keeps_what_bfloat16_cannot_hold(folder, tmp_path):
    """Steps so small that they vanish when weights are rounded: the next round begins where this one ended."""
    settings = {"dtype": torch.bfloat16, "learning_rate": 1e-6}
    worker = Worker(folder, tmp_path, **settings)
    steps(worker, 3)
    trained = worker.engine.state_dict()
    export_student(worker.student, trained, worker.out, tmp_path / "scratch", "4GB")
    student = identify(worker.out.path("student"))
    following = Worker(worker.out.path("student"), tmp_path, **settings)
    following.engine.set_masters(masters_of(student))
    begun = following.engine.state_dict()
    for name, value in trained.items():
        assert torch.equal(begun[name], value), name
    assert any(not torch.equal(value.bfloat16().float(), value) for value in trained.values())


def test_adapters_of_many_small_rounds_add_up(folder, tmp_path):
    """In bfloat16, an update of a thousandth is lost in each merge."""
    worker = Worker(folder, tmp_path, dtype=torch.bfloat16, lora={"rank": 2})
    name = "student.model.layers.0.self_attn.q_proj"
    weights = worker.engine.state_dict()
    low, high = (weights[f"{name}.lora_{side}.default.weight"] for side in "AB")
    high.fill_(1e-3)
    update = high @ low * 16
    base = weights[f"{name}.base_layer.weight"].float()
    student = worker.student
    for number in range(3):
        export_student(student, weights, worker.out, tmp_path / "scratch", "4GB", f"{number}")
        student = replace(student, origin=identify(worker.out.path(f"{number}")))
    found = dict(masters_of(student.origin))["model.layers.0.self_attn.q_proj.weight"]
    assert torch.allclose(found, base + 3 * update, atol=1e-6)
