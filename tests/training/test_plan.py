"""The plan is made from the parts' records alone, and is the same on every worker."""

import random

import pytest

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import DataError
from tailor_ray.storage import Store, stage_parts
from tailor_ray.training.packing import target_count
from tailor_ray.training.plan import PartShape, Plan, common_prefix
from tests.training.parts import commit_stage, tokens
from tests.training.students import make_examples, make_tokenizer

UNEVEN = [make_examples(50, questions=9), [], make_examples(1, seed=1), make_examples(23, seed=2, questions=20)]


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """What the records say, and the examples themselves."""
    folder = tmp_path_factory.mktemp("plan")
    tokenizer = make_tokenizer(folder / "tokenizer")
    store = Store.open(str(folder / "examples"))
    commit_stage(store, UNEVEN, tokenizer)
    return [PartShape.from_info(part.info) for part in stage_parts(store, "examples")], tokens(UNEVEN, tokenizer)


def plan(committed, workers=1, **settings) -> Plan:
    return Plan.of(committed[0], TrainingConfig(**{"batch_size": 8, "epochs": 3} | settings), 5, workers)


def test_an_epoch_of_uneven_parts_has_every_example_once_and_no_question_twice_in_a_batch(committed):
    """Nine questions have five or six examples each; questions of other parts are others, whatever their ids."""
    made, examples = plan(committed), committed[1]
    epoch = made.schedule.steps_per_epoch
    batches = [made.schedule.batch(step) for step in range(epoch)]
    assert sorted(index for batch in batches for index in batch) == list(range(len(examples)))
    part_of = [number for number, part in enumerate(UNEVEN) for _ in part]
    for batch in batches:
        assert len({(part_of[index], examples[index].question_id) for index in batch}) == len(batch)
    assert {len(batch) for batch in batches} <= {7, 8}
    assert made.steps == 3 * epoch


def test_more_examples_of_a_question_than_a_batch_has_places_for(committed):
    """Then batches are smaller, and there are more of them."""
    made, examples = plan(committed, batch_size=64), committed[1]
    assert made.schedule.steps_per_epoch == 6
    for step in range(made.steps):
        asked = [examples[i].question_id for i in made.schedule.batch(step) if i < 50]
        assert len(asked) == len(set(asked))


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_out_the_same_batches(committed, workers):
    alone, shared = plan(committed), plan(committed, workers)
    for step in range(alone.steps):
        passes = shared.passes(step)
        assert len(passes) == workers
        assert sorted(i for one in passes for cut in one for i in cut) == sorted(alone.schedule.batch(step))
        assert shared.counts(step) == alone.counts(step)


def test_counts_and_sizes_are_those_of_the_examples(committed):
    made, examples = plan(committed), committed[1]
    assert made.sizes.tolist() == [example.tokens for example in examples]
    for step in (0, 5, made.steps - 1):
        batch = [examples[index] for index in made.schedule.batch(step)]
        assert made.counts(step) == (sum(map(target_count, batch)), sum(example.has_pair for example in batch))


def test_training_that_goes_on_in_the_middle_of_an_epoch_does_the_same_steps(committed):
    whole, late = plan(committed), plan(committed, workers=2)
    middle = whole.schedule.steps_per_epoch + 3
    expected = [whole.schedule.batch(step) for step in range(whole.steps)]
    assert [late.schedule.batch(step) for step in range(middle, whole.steps)] == expected[middle:]


def test_what_all_prompts_begin_with_is_found_in_the_records(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    rng = random.Random(0)
    demos = " ".join(rng.choice(["apples", "pens", "two"]) for _ in range(20))
    parts = [
        [example.__class__(**{**example.to_row(), "prompt": f"{demos} {example.prompt}"}) for example in part]
        for part in UNEVEN
    ]
    store = Store.open(str(tmp_path / "examples"))
    commit_stage(store, parts, tokenizer)
    shapes = [PartShape.from_info(part.info) for part in stage_parts(store, "examples")]
    prompts = [example.prompt for example in tokens(parts, tokenizer)]
    assert Plan.of(shapes, TrainingConfig(), 5, 1).shared == common_prefix(prompts) >= 39
    assert len({len(shape.start) for shape in shapes}) > 1


def test_prompts_that_are_all_the_same_keep_a_token_each(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    (one,) = make_examples(1)
    long = one.__class__(**{**one.to_row(), "prompt": " ".join(["two"] * 30)})
    store = Store.open(str(tmp_path / "examples"))
    commit_stage(store, [[long, long]], tokenizer)
    shape = PartShape.from_info(stage_parts(store, "examples")[0].info)
    assert Plan.of([shape], TrainingConfig(), 5, 1).shared == len(shape.start) - 1 == 58


def test_a_record_takes_few_bytes_per_row(committed):
    shape = committed[0][0]
    assert sum(map(len, shape.to_info().values())) < 12 * 50


def test_without_any_example_the_user_hears_what_to_raise():
    with pytest.raises(DataError, match=r"raise training\.max_length"):
        Plan.of([], TrainingConfig(), 5, 1)
