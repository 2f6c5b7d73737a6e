"""Token ids are the engine's; what does not fit is cut or skipped, and named."""

import pytest

from tailor_ray.errors import ModelError
from tailor_ray.models import ModelRef
from tailor_ray.models.chat import ChatTemplate
from tailor_ray.models.folder import model_files
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import AnswerKind, Question, TrainExample
from tailor_ray.storage.store import FileEntry, file_sha256
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


def tokenizer_folder(folder) -> ModelRef:
    """A reference to it, though it has no weights."""
    entries = [FileEntry(path.name, file_sha256(path), path.stat().st_size) for path in model_files(folder)]
    return ModelRef(str(folder), tuple(entries))


def test_a_chat_prompt_is_what_its_template_writes_and_begins_once(tmp_path):
    """The tokenizer puts `</s>` before any text by itself, and so does its template."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(tmp_path)
    begin = ("</s>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("</s> $A", special_tokens=[begin])
    tokenizer.chat_template = "</s>{% for m in messages %}Question:{{ m['content'] }}\n{% endfor %}Reasoning:"
    tokenizer.save_pretrained(tmp_path)
    prompt = StudentPrompt("chat", AnswerKind.NUMBER, chat=ChatTemplate(tokenizer_folder(tmp_path)))
    asked = Question("q", "two apples and three more", "5")
    shown = example(prompt.render(asked), prompt.completion("two + three = 5", "5"), None, None)
    (one,) = tokenize_examples([shown], tokenizer, 256, 64, special_tokens=False).examples
    messages = [{"role": "user", "content": prompt.render(asked).partition("Question:")[2].rpartition("\n")[0]}]
    assert list(one.prompt) == tokenizer.apply_chat_template(messages, return_dict=False)
    assert one.prompt.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(one.rationale) == "two + three = 5\nAnswer: 5</s>"
    (doubled,) = tokenize_examples([shown], tokenizer, 256, 64).examples
    assert doubled.prompt.count(tokenizer.eos_token_id) == 2
