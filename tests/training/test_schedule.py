"""Data order: complete, without a question twice in a batch, by seed and epoch alone; splits lose nothing; the rate."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailor_ray.config.training import TrainingConfig
from tailor_ray.training.plan import Epoch, Schedule, common_prefix, learning_rate, split_batch

QUESTIONS = st.lists(st.integers(0, 12), min_size=1, max_size=60)


def epoch_batches(questions, size: int, seed: int, epoch: int) -> list[list[int]]:
    made = Epoch(np.array(questions, np.int32), size, seed, epoch)
    return [made.batch(number) for number in range(len(made))]


@given(QUESTIONS, st.integers(1, 17), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_has_every_example_once_and_no_question_twice_in_a_batch(questions, size, seed, epoch):
    batches = epoch_batches(questions, size, seed, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(questions)))
    for batch in batches:
        assert 1 <= len(batch) <= size or len(batch) <= max(Counter(questions).values())
        assert len({questions[index] for index in batch}) == len(batch)
    lengths = [len(batch) for batch in batches]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= size


def test_order_depends_on_seed_and_epoch():
    questions = [n % 20 for n in range(50)]
    first = epoch_batches(questions, 8, seed=1, epoch=0)
    assert first == epoch_batches(questions, 8, seed=1, epoch=0)
    assert first != epoch_batches(questions, 8, seed=1, epoch=1)
    assert first != epoch_batches(questions, 8, seed=2, epoch=0)


def test_a_schedule_can_be_entered_anywhere():
    questions = np.arange(50, dtype=np.int32) % 20
    whole = Schedule(questions, 8, 2.5, seed=3)
    all_batches = [whole.batch(step) for step in range(whole.steps)]
    assert whole.steps == round(2.5 * 7)
    late = Schedule(questions, 8, 2.5, seed=3)
    assert [late.batch(step) for step in range(9, late.steps)] == all_batches[9:]


def test_less_than_a_step_is_a_step():
    assert Schedule(np.array([0, 1], np.int32), 8, 0.1, seed=0).steps == 1


def test_the_order_is_the_same_on_every_machine():
    """Or training that is resumed elsewhere would do some examples twice."""
    assert epoch_batches([0, 0, 1, 2, 3, 3, 4, 5, 6], 3, seed=7, epoch=2) == [[1, 2, 3], [6, 7, 5], [8, 0, 4]]


def test_two_million_examples_are_dealt_in_seconds():
    questions = np.repeat(np.arange(1_000_000, dtype=np.int32), 2)
    begun = time.perf_counter()
    made = Epoch(questions, 16, seed=1, epoch=0)
    assert time.perf_counter() - begun < 10  # 0.5 s where nothing else runs
    assert len(made) == 125_000
    assert sorted(made.batch(0) + made.batch(124_999)) == sorted(set(made.batch(0)) | set(made.batch(124_999)))


@given(
    st.lists(st.integers(2, 300), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(16, 2000),
    st.integers(0, 1),
)
def test_a_split_loses_nothing_and_keeps_the_budget(sizes, workers, accumulation, budget, shared):
    batch = list(range(len(sizes)))
    split = split_batch(batch, sizes, workers, accumulation, budget, shared)
    assert len(split) == workers
    assert len({len(passes) for passes in split}) == 1
    assert len(split[0]) >= accumulation
    assert sorted(index for passes in split for one in passes for index in one) == batch
    for passes in split:
        for one in passes:
            assert len(one) < 2 or shared + sum(sizes[i] - shared for i in one) <= budget
    if len(sizes) >= workers * len(split[0]):
        assert all(one for passes in split for one in passes)


def test_a_split_balances_tokens():
    sizes = [100, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    split = split_batch(list(range(11)), sizes, workers=2, accumulation=1, budget=10_000)
    assert sorted(sum(sizes[i] for i in passes[0]) for passes in split) == [100, 100]


@pytest.mark.parametrize(
    ("rows", "length"),
    [([], 0), ([(1, 2)], 2), ([(1, 2, 3), (1, 2), (1, 2, 4)], 2), ([(1,), (2,)], 0), ([(5, 9, 1), (5, 1), (5, 9)], 1)],
)
def test_common_prefix(rows, length):
    assert common_prefix(rows) == length


@pytest.mark.parametrize(
    ("examples", "epochs", "steps", "expected"),
    [
        (100, 3, None, 21),  # 100 / 16 rounds up to 7 batches a pass
        (100, 0.5, None, 4),
        (8, 0.01, None, 1),  # at least one
        (100, 3, 200, 200),
        (1000, 3, 200, 200),
    ],
)
def test_a_number_of_steps_goes_before_passes(examples: int, epochs: float, steps: int | None, expected: int):
    schedule = Schedule(np.arange(examples, dtype=np.int32), 16, epochs, seed=1, steps=steps)
    assert schedule.steps == expected
    assert schedule.batch(expected - 1), "the last step has a batch, in a later pass if need be"


def rates(steps=100, round=1, **settings):
    config = TrainingConfig(learning_rate=1e-3, **settings)
    return [learning_rate(step, steps, config, round) for step in range(steps)]


def test_warm_up_then_constant():
    found = rates(warmup_steps=4)
    assert found[:5] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    assert set(found[4:]) == {1e-3}


def test_a_long_warm_up_is_cut_to_a_tenth():
    assert rates(steps=20, warmup_steps=100)[:3] == pytest.approx([0.5e-3, 1e-3, 1e-3])


def test_linear_and_cosine():
    linear = rates(warmup_steps=0, schedule="linear")
    assert (linear[0], linear[50]) == pytest.approx((1e-3, 0.5e-3))
    cosine = rates(warmup_steps=0, schedule="cosine", final_learning_rate=0.2)
    assert (cosine[0], cosine[50]) == pytest.approx((1e-3, 0.6e-3))
    assert cosine[99] == pytest.approx(0.2e-3, rel=1e-2)


def test_later_rounds_decay():
    assert rates(warmup_steps=0, round=3, round_decay=0.5)[0] == pytest.approx(0.25e-3)
