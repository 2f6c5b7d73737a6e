"""Token ids are the engine's; what does not fit is cut or skipped, and named."""

import pytest

from tailor_ray.errors import ModelError
from tailor_ray.records import TrainExample
from tailor_ray.training.tokens import tokenize_examples
from tests.training.students import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def example(prompt="two apples", rationale=" so two", positive=" all two", negative=" so nine more") -> TrainExample:
    return TrainExample("q", prompt, rationale, positive, negative)


def test_prompt_and_completion_are_tokenized_apart_and_end_with_the_end_token(tokenizer):
    (one,) = tokenize_examples([example()], tokenizer, 64, 64).examples
    assert tokenizer.decode(one.prompt) == "two apples"
    assert tokenizer.decode(one.rationale) == " so two</s>"
    assert tokenizer.decode(one.negative) == " so nine more</s>"
    assert one.tokens == len(one.prompt) + len(one.rationale) + len(one.positive) + len(one.negative)


def test_a_rationale_is_cut_where_there_is_no_room(tokenizer):
    data = tokenize_examples([example()], tokenizer, max_length=5, rationale_cap=64)
    assert len(data.examples[0].prompt) == 3
    assert len(data.examples[0].rationale) == 2
    assert tokenizer.eos_token_id not in data.examples[0].rationale
    assert data.truncated == ["q"]


def test_a_prompt_without_room_is_skipped(tokenizer):
    data = tokenize_examples([example(), example(prompt="two")], tokenizer, max_length=3, rationale_cap=64)
    assert data.skipped == ["q"]
    assert len(data.examples) == 1


def test_the_cap_cuts_positives_and_negatives_but_not_the_rationale(tokenizer):
    (one,) = tokenize_examples([example()], tokenizer, 64, rationale_cap=2).examples
    assert (len(one.positive), len(one.negative)) == (2, 2)
    assert len(one.rationale) == 5


@pytest.mark.parametrize("missing", ["positive", "negative"])
def test_half_a_pair_is_none(tokenizer, missing):
    (one,) = tokenize_examples([example(**{missing: None})], tokenizer, 64, 64).examples
    assert not one.has_pair
    assert one.positive == one.negative == ()


def test_pairs_can_be_left_out(tokenizer):
    assert not tokenize_examples([example()], tokenizer, 64, 64, pairs=False).examples[0].has_pair


def test_a_tokenizer_without_an_end_token_is_refused(tokenizer, tmp_path):
    other = make_tokenizer(tmp_path)
    other.eos_token = None
    with pytest.raises(ModelError, match="eos_token"):
        tokenize_examples([example()], other, 64, 64)
