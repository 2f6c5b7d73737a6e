"""Training on one GPU: the tree in bfloat16 by rows of varying length and in float32 by masks, ZeRO-3 with offload."""

import copy
import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from jobs.benchmarks.families import scaled_up
from jobs.benchmarks.naive import naive_loss
from tailor_ray.config.training import TrainingConfig
from tailor_ray.training.deepspeed_engine import TrainingEngine
from tailor_ray.training.forward import StudentLoss
from tailor_ray.training.model import load_student
from tailor_ray.training.packing import PackSettings, pack_separate, pack_tree, target_count
from tailor_ray.training.plan import Plan
from tailor_ray.training.steps import Stepper
from tailor_ray.training.tokens import tokenize_examples
from tailor_ray.training.tree import TreeAttention
from tests.training.parts import of_examples
from tests.training.students import KINDS, make_examples, make_model, make_student
from tests.training.test_exactness import random_examples

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def losses_and_gradients(kind: str, dtype: torch.dtype, device: str):
    """Of the tree on `device` in `dtype`, and of separate passes on the CPU in float32."""
    examples = random_examples(seed=1)
    settings = PackSettings(0.1, "last", 192)
    targets, pairs = sum(target_count(e) for e in examples), sum(e.has_pair for e in examples)
    reference = make_model(kind).eval()
    model = copy.deepcopy(reference).to(device, dtype)
    attention = TreeAttention()
    attention.install(model)
    found = []
    for net, layout, pack in (
        (model, attention, pack_tree(examples, settings).to(device)),
        (reference, None, pack_separate(examples, settings, pad=0)),
    ):
        sums = StudentLoss(net, layout, 1.0)(pack)
        loss = sums.mle / targets + 0.5 * sums.reflection / pairs
        loss.backward()
        found.append((loss.item(), [p.grad.float().cpu() for p in net.parameters()]))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "of_loss", "of_gradient"), [("float32", 1e-4, 1e-2), ("bfloat16", 3e-2, 0.3)])
def test_the_tree_gives_the_loss_and_gradients_of_separate_passes(kind, dtype, of_loss, of_gradient):
    """float32 with TF32 off differs by the order of sums; bfloat16 keeps 8 bits of each activation."""
    torch.backends.cuda.matmul.allow_tf32 = False
    (loss, gradients), (expected, theirs) = losses_and_gradients(kind, getattr(torch, dtype), "cuda")
    assert abs(loss - expected) < of_loss * expected
    for mine, reference in zip(gradients, theirs, strict=True):
        assert (mine - reference).norm() <= of_gradient * reference.norm() + 1e-6


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gptj"])
@pytest.mark.parametrize("detached", [False, True])
def test_rows_of_varying_length_are_no_further_from_the_truth_than_separate_passes(kind, detached):
    """In bfloat16, with weights so large that attention matters; the truth is computed in float64."""
    examples = random_examples(seed=3, count=6, demos=40)
    settings = PackSettings(0.1, "last", 192, detached)
    base = scaled_up(make_model(kind)).eval()
    reference = copy.deepcopy(base).double()
    expected = naive_loss(reference, examples, detached=detached)
    expected.backward()
    apart = []
    for tree in (True, False):
        model = copy.deepcopy(base).to("cuda", torch.bfloat16)
        attention = TreeAttention() if tree else None
        if attention is not None:
            attention.install(model)
        pack = pack_tree(examples, settings) if tree else pack_separate(examples, replace(settings, detached=False), 0)
        pack = pack.to("cuda")
        assert not tree or pack.tree.lengths is not None
        sums = StudentLoss(model, attention, 1.0)(pack)
        loss = sums.mle / sum(map(target_count, examples)) + 0.5 * sums.reflection / sum(e.has_pair for e in examples)
        loss.backward()
        errors = [
            ((mine.grad.double().cpu() - theirs.grad).norm() / theirs.grad.norm().clamp_min(1e-9)).item()
            for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True)
            if theirs.grad.norm() > 1e-6
        ]
        apart.append(max(errors))
    assert apart[0] < (0.15 if detached else 1.5 * apart[1] + 1e-3)


def test_the_trial_finds_the_tree_on_the_device(tmp_path):
    folder = make_student(tmp_path / "student")
    student = load_student(folder, TrainingConfig(), torch.bfloat16, 0, torch.device("cuda"))
    assert student.attention is not None, student.layout_note
    assert next(student.model.parameters()).is_cuda


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    os.environ["LOCAL_RANK"] = "0"
    folder = tmp_path_factory.mktemp("meet")
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder / "build")
    dist.init_process_group("nccl", init_method=f"file://{folder}/here", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "settings", [{}, {"offload_optimizer": True, "offload_parameters": True}, {"lora": {}}], ids=str
)
def test_zero_3_on_one_gpu_learns(one_worker, tmp_path, settings):
    config = TrainingConfig(epochs=9, learning_rate=1e-2, warmup_steps=2, zero_stage=3, **settings)
    device = torch.device("cuda", 0)
    student = load_student(make_student(tmp_path / "student"), config, torch.bfloat16, 0, device)
    data = tokenize_examples(make_examples(40), student.tokenizer, 256, 192)
    shapes, rows = of_examples(data)
    plan = Plan.of(shapes, config, 5, 1)
    engine = TrainingEngine(student.loss_module(1.0), config, 1, torch.bfloat16)
    stepper = Stepper(plan, rows, engine, student, 1, 0, device)
    losses = [stepper.step(step)["loss"] for step in range(20)]
    assert losses[-1] < 0.9 * losses[0]
