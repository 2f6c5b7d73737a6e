"""Token ids are the engine's; what does not fit is cut or skipped, and named."""

import pytest

from tailor_ray.errors import ModelError
from tailor_ray.models import ModelRef
from tailor_ray.models.folder import model_files
from tailor_ray.models.texts import ChatTemplate, end_tokens, text_ids, turn_end
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


def test_likelihoods_need_a_mistake_alone_and_take_it_whole(tokenizer):
    for given in (example(), example(positive=None)):
        (one,) = tokenize_examples([given], tokenizer, 64, rationale_cap=2, pairs="likelihood").examples
        assert one.has_pair
        assert one.positive == ()
        assert tokenizer.decode(one.negative) == " so nine more</s>"
    (one,) = tokenize_examples([example(negative=None)], tokenizer, 64, 64, pairs="likelihood").examples
    assert not one.has_pair


@pytest.mark.parametrize("pairs", ["triplet", "likelihood"])
def test_a_negative_counts_from_where_it_leaves_its_rationale(tokenizer, pairs):
    def shared(rationale, negative, branches=True):
        given = example(rationale=rationale, negative=negative)
        (one,) = tokenize_examples([given], tokenizer, 64, 64, pairs, branches=branches).examples
        assert one.rationale[: one.shared] == one.negative[: one.shared]
        return tokenizer.decode(one.negative[: one.shared])

    assert shared(" so two and", " so nine more") == " so "
    assert shared(" so two", " all nine") == " "
    assert shared(" so two and", " so nine more", branches=False) == ""
    assert shared(" so two", " so two") == " so two", "something is left to count"


@pytest.mark.parametrize("missing", ["positive", "negative"])
def test_half_a_pair_is_none(tokenizer, missing):
    (one,) = tokenize_examples([example(**{missing: None})], tokenizer, 64, 64).examples
    assert not one.has_pair
    assert one.positive == one.negative == ()


def test_pairs_can_be_left_out(tokenizer):
    assert not tokenize_examples([example()], tokenizer, 64, 64, pairs="none").examples[0].has_pair


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


def sentencepiece():
    """As SentencePiece's: a space before every text, words by themselves."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: n for n, word in enumerate(["<unk>", "</s>", "▁", "▁two", "▁so", "▁ni", "▁nine"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def test_a_completion_is_tokenized_in_its_row():
    tokenizer = sentencepiece()
    shown = example("two", " so two", " two", " so")
    data = tokenize_examples([shown], tokenizer, 64, 64)
    (one,) = data.examples
    assert [*one.prompt, *one.rationale[:-1]] == tokenizer("two so two")["input_ids"]
    assert data.moved == 0


def test_where_a_token_reaches_over_the_end_of_the_prompt_they_are_parted_before_it():
    """`ni` + `ne` is one token, so prompt and rationale share no token after `two`."""
    tokenizer = sentencepiece()
    data = tokenize_examples([example("two ni", "ne so", " so", " two")], tokenizer, 64, 64)
    (one,) = data.examples
    assert tokenizer.decode(one.prompt) == "two"
    assert [*one.prompt, *one.rationale[:-1]] == tokenizer("two nine so")["input_ids"]
    assert [*one.prompt, *one.positive[:-1]] == tokenizer("two ni so")["input_ids"]
    assert data.moved == 1


def test_a_tokenizer_that_ends_every_text_ends_no_prompt():
    from tokenizers.processors import TemplateProcessing

    tokenizer = sentencepiece()
    end = ("</s>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("</s> $A </s>", special_tokens=[end])
    (one,) = tokenize_examples([example("two", " so", " two", " nine")], tokenizer, 64, 64).examples
    assert one.prompt == tuple(tokenizer("two")["input_ids"][:-1])
    assert one.rationale.count(tokenizer.eos_token_id) == 1
    assert text_ids(tokenizer, ["two so"], special_tokens=True) == [[*one.prompt, *one.rationale[:-1]]]


CHATML = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>"


def test_a_chats_completion_ends_with_the_turn_and_a_plain_one_with_the_sequence(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_end(tokenizer) == turn
    (chat,) = tokenize_examples([example("<|im_start|>", "so two")], tokenizer, 64, 64, special_tokens=False).examples
    (plain,) = tokenize_examples([example()], tokenizer, 64, 64).examples
    assert (chat.rationale[-1], plain.rationale[-1]) == (turn, tokenizer.eos_token_id)
    assert end_tokens(tokenizer, None, [7, turn]) == [turn, tokenizer.eos_token_id, 7]


def test_a_template_that_writes_the_date_writes_the_same_on_every_day(tmp_path):
    import datetime as time
    import pickle

    tokenizer = make_tokenizer(tmp_path)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path)
    chat = ChatTemplate(tokenizer_folder(tmp_path), time.date(2031, 5, 4))
    assert chat([{"role": "user", "content": "two"}], True) == "04 May 2031 two"
    assert pickle.loads(pickle.dumps(chat))([{"role": "user", "content": "two"}], True) == "04 May 2031 two"
