"""Data order: complete, without a question twice in a batch, by seed and epoch alone; splits lose nothing."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailor_ray.training.batches import Schedule, common_prefix, epoch_batches, split_batch

QUESTIONS = st.lists(st.integers(0, 12).map(lambda n: f"q{n}"), min_size=1, max_size=60)


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
    questions = [f"q{n % 20}" for n in range(50)]
    first = epoch_batches(questions, 8, seed=1, epoch=0)
    assert first == epoch_batches(questions, 8, seed=1, epoch=0)
    assert first != epoch_batches(questions, 8, seed=1, epoch=1)
    assert first != epoch_batches(questions, 8, seed=2, epoch=0)


def test_a_schedule_can_be_entered_anywhere():
    questions = [f"q{n % 20}" for n in range(50)]
    whole = Schedule(questions, 8, 2.5, seed=3)
    all_batches = [whole.batch(step) for step in range(whole.steps)]
    assert whole.steps == round(2.5 * 7)
    late = Schedule(questions, 8, 2.5, seed=3)
    assert [late.batch(step) for step in range(9, late.steps)] == all_batches[9:]


def test_less_than_a_step_is_a_step():
    assert Schedule(["a", "b"], 8, 0.1, seed=0).steps == 1


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
