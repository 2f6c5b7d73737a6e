"""Every family is trained exactly or refused: against single unpadded rows in float64, by each layout that is taken."""

import copy

import pytest
import torch

from jobs.benchmarks.families import FAMILIES, REFUSED, SEPARATE, TREE, family_model
from jobs.benchmarks.naive import naive_loss
from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import ModelError
from tailor_ray.training.model import load_student
from tailor_ray.training.packing import PackSettings, pack_separate, pack_tree, target_count
from tests.training.students import make_tokenizer
from tests.training.test_exactness import random_examples


def assert_exact(student, reference):
    """Loss and every gradient in training mode are those of the model as it was given, when it is not trained."""
    examples = random_examples(seed=3, count=3, demos=20)
    settings = PackSettings(0.1, "last", 192)
    tree = student.attention is not None
    pack = pack_tree(examples, settings) if tree else pack_separate(examples, settings, student.pad_id)
    student.model.train()
    sums = student.loss_module(1.0)(pack)
    pairs = sum(example.has_pair for example in examples)
    loss = sums.mle / sum(map(target_count, examples)) + 0.5 * sums.reflection / pairs
    expected = naive_loss(reference, examples)
    assert abs(loss.item() - expected.item()) < 1e-4
    loss.backward()
    expected.backward()
    largest = max(p.grad.norm() for p in reference.parameters() if p.grad is not None)
    for (name, p), theirs in zip(student.model.named_parameters(), reference.parameters(), strict=True):
        if p.grad is not None or theirs.grad is not None:
            error = (p.grad.double() - theirs.grad).norm()
            assert error <= 2e-3 * max(theirs.grad.norm(), 1e-3 * largest), name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_exact_or_refused(tmp_path, name):
    family, settings, found = FAMILIES[name]
    model = family_model(family, **settings)
    reference = copy.deepcopy(model).double().eval()
    reference.config._experts_implementation = "eager"
    size = len(make_tokenizer(tmp_path))
    assert size <= 96
    model.save_pretrained(tmp_path)
    del model
    if found == REFUSED:
        with pytest.raises(ModelError, match=r"set (student\.model|training\.max_length)"):
            load_student(tmp_path, TrainingConfig(max_length=256), torch.float32, seed=0)
        return
    student = load_student(tmp_path, TrainingConfig(max_length=256), torch.float32, seed=0)
    assert (TREE if student.attention is not None else SEPARATE) == found, student.layout_note
    assert_exact(student, reference)
