"""The student's prompt: one prefix for all questions, completions that end with one conclusion, both styles."""

import json
import pickle
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tailor_ray.answers import Grader
from tailor_ray.errors import ConfigError, ModelError
from tailor_ray.models import ModelRef
from tailor_ray.models.texts import ChatTemplate
from tailor_ray.prompts.student import StudentPrompt, without_conclusion
from tailor_ray.records import AnswerKind, Question, Verdict
from tailor_ray.storage import Store

DEMOS = (
    Question("d1", "2 and 2?", "4", rationale="2 + 2 = 4."),
    Question("d2", "3 and 3?", "6", rationale="3 + 3 = 6."),
)
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer_folder(tmp_path):
    def save(template):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_word_tokenizer(), unk_token="[UNK]")
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return save


def _word_tokenizer():
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def test_plain_prompts_and_completions_make_blocks():
    prompt = StudentPrompt("plain", AnswerKind.NUMBER, DEMOS)
    row = prompt.render(Question("q", "5 and 5?", "10")) + prompt.completion("5 + 5 = 10.", "10")
    assert row == (
        "Question: 2 and 2?\nReasoning: 2 + 2 = 4.\nAnswer: 4\n\n"
        "Question: 3 and 3?\nReasoning: 3 + 3 = 6.\nAnswer: 6\n\n"
        "Question: 5 and 5?\nReasoning: 5 + 5 = 10.\nAnswer: 10"
    )
    assert prompt.stop == ("\nQuestion:",)


def test_without_demos_the_prefix_is_empty():
    prompt = StudentPrompt("plain", AnswerKind.NUMBER)
    assert prompt.prefix == ""
    assert prompt.render(Question("q", "5 and 5?", "10")) == "Question: 5 and 5?\nReasoning:"


def test_choices_are_listed_and_concluded_by_letter():
    question = Question("q", "Where?", "b", json.dumps({"a": "here", "b": "there"}))
    prompt = StudentPrompt("plain", AnswerKind.CHOICE)
    assert "Choices: (a) here (b) there" in prompt.render(question)
    assert prompt.completion("It is not here.", "b") == " It is not here.\nAnswer: (b)"


@given(st.text(), st.text())
def test_the_prefix_is_the_same_for_all_questions(text, other):
    prompt = StudentPrompt("plain", AnswerKind.NUMBER, DEMOS)
    for asked in (text, other):
        rendered = prompt.render(Question("q", asked, "1"))
        assert rendered.startswith(prompt.prefix)
        assert rendered.removeprefix(prompt.prefix) == f"Question: {asked}\nReasoning:"


@pytest.mark.parametrize(
    ("rationale", "kept"),
    [
        ("9 * 2 = 18.\nThe answer is 18.", "9 * 2 = 18."),
        ("9 * 2 = 18. The answer is 18.", "9 * 2 = 18."),
        ("9 * 2 = 18.\n#### 18", "9 * 2 = 18."),
        ("9 * 2 = 18.\n**Answer:** 18", "9 * 2 = 18."),
        ("9 * 2 = 18.\nAnswer: 18\nAnswer: 18", "9 * 2 = 18."),
        ("9 * 2 = 18. Therefore, the final answer is $18.00", "9 * 2 = 18."),
        ("The answer is 9 * 2 = 18.", "The answer is 9 * 2 = 18."),
        ("She must answer 35 questions.", "She must answer 35 questions."),
        ("Answer: 18", ""),
    ],
)
def test_a_conclusion_is_written_once(rationale, kept):
    assert without_conclusion(rationale) == kept
    completion = StudentPrompt("plain", AnswerKind.NUMBER).completion(rationale, "18")
    assert completion.endswith("Answer: 18")
    assert completion.count("Answer: ") == 1
    assert completion.startswith(" ")
    grade = Grader(AnswerKind.NUMBER).grade(Question("q", "?", "18"), completion)
    assert grade.verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    "run", ["*", " ", "_ ", ". ", "\n", "#", "Answer: 1\n", "The answer is 1. ", "the answer ", "so ", "A", ".* \t"]
)
def test_the_end_of_a_rationale_is_found_in_linear_time(run):
    """By lengths that double: each takes at most about twice as long as the one before, not four times."""
    seconds = []
    for size in (40_000, 80_000, 160_000):
        text = f"9 * 2 = 18.{run * (size // len(run))}x"
        texts = [text, text[:-1] + "\nAnswer: 18", text + "\nAnswer: 18\n" + run * 100]
        begun = time.process_time()
        for one in texts:
            without_conclusion(one)
        seconds.append(time.process_time() - begun)
    assert seconds[2] < 0.05 or seconds[2] < 3 * max(seconds[1], 0.01)


def model_in(folder):
    """A reference of what is there, a whole model or not."""
    store = Store.open(str(Path(folder).parent))
    return ModelRef.uploaded(store, Path(folder).name, store.upload_folder(Path(folder), Path(folder).name))


def test_chat_style_uses_the_template_and_shares_the_demos(tokenizer_folder):
    prompt = StudentPrompt("chat", AnswerKind.NUMBER, DEMOS, ChatTemplate(model_in(tokenizer_folder(CHATML))))
    prompt = pickle.loads(pickle.dumps(prompt))
    rendered = prompt.render(Question("q", "5 and 5?", "10"))
    assert rendered.startswith(prompt.prefix)
    assert prompt.prefix.count("<|assistant|>") == 2
    assert "<|assistant|>2 + 2 = 4.\nAnswer: 4<|end|>" in prompt.prefix
    assert "<|user|>5 and 5?\n\nSolve this in a few short steps." in rendered
    assert rendered.endswith("\nAnswer: <number><|end|><|assistant|>")
    assert [part.count("Answer: <number>") for part in rendered.split("<|user|>")] == [0, 1, 1, 1]  # each turn asks so
    assert prompt.completion("5 + 5 = 10.", "10") == "5 + 5 = 10.\nAnswer: 10"
    assert prompt.stop == ()


def asked_of(template, thinking=False):
    def chat(messages, open_turn):
        return "".join(f"<{one['role']}>{one['content']}" for one in messages) + (template if open_turn else "")

    return StudentPrompt("chat", AnswerKind.NUMBER, DEMOS, chat, thinking)


@pytest.mark.parametrize(
    ("template", "thinking", "begun", "completion"),
    [
        ("<assistant>", False, "", "5 + 5 = 10.\nAnswer: 10"),
        ("<assistant>", True, "", "<think>\n5 + 5 = 10.\n</think>\n\nAnswer: 10"),
        ("<assistant><think>\n", False, "<think>\n", "5 + 5 = 10.\n</think>\n\nAnswer: 10"),
        ("<assistant><think>\n", True, "<think>\n", "5 + 5 = 10.\n</think>\n\nAnswer: 10"),
        ("<assistant><think>\n\n</think>\n\n", False, "", "5 + 5 = 10.\nAnswer: 10"),  # told not to think
    ],
)
def test_a_thought_is_closed_before_the_answer(template, thinking, begun, completion):
    prompt = asked_of(template, thinking)
    assert prompt.begun == begun
    assert prompt.completion("5 + 5 = 10. The answer is 10.", "10") == completion
    assert "think" not in prompt.prefix  # demos show the form of an answer
    question, grader = Question("q", "5 and 5?", "10"), Grader(AnswerKind.NUMBER)
    assert grader.grade(question, prompt.begun + completion).verdict is Verdict.CORRECT
    cut = prompt.begun + "5 + 5 is 12. The answer is 12. Or is it"
    expected = Verdict.TRUNCATED if begun else Verdict.WRONG
    assert grader.grade(question, cut, "length").verdict is expected


def test_a_template_that_can_think_is_told_whether_to(tokenizer_folder):
    template = CHATML + "{% if enable_thinking %}<think>{% endif %}"
    for thinking in (False, True):
        chat = pickle.loads(pickle.dumps(ChatTemplate(model_in(tokenizer_folder(template)), thinking=thinking)))
        assert StudentPrompt("chat", AnswerKind.NUMBER, (), chat, thinking).begun == ("<think>" if thinking else "")


def test_a_template_that_rewrites_earlier_turns_shares_nothing(tokenizer_folder):
    counting = "{{ messages|length }}:" + CHATML
    prompt = StudentPrompt("chat", AnswerKind.NUMBER, DEMOS, ChatTemplate(model_in(tokenizer_folder(counting))))
    assert prompt.prefix == ""
    assert prompt.render(Question("q", "5 and 5?", "10")).startswith("5:")


def test_a_tokenizer_without_a_template_says_what_to_set(tokenizer_folder):
    prompt = StudentPrompt("chat", AnswerKind.NUMBER, (), ChatTemplate(model_in(tokenizer_folder(None))))
    with pytest.raises(ModelError, match=r"student\.prompt_style"):
        prompt.render(Question("q", "5 and 5?", "10"))
    with pytest.raises(ConfigError, match=r"student\.prompt_style"):
        StudentPrompt("chat", AnswerKind.NUMBER)


def test_a_critique_shows_the_mistake_and_what_was_said_of_it_behind_the_same_prefix():
    question = Question("q", "1+1?", "2")
    plain = StudentPrompt("plain", AnswerKind.NUMBER, DEMOS)
    shown = plain.critique(question, " It is 3.\nAnswer: 3\n", "It is not 3. ")
    assert shown == plain.render(question) + " It is 3.\nAnswer: 3\nFeedback: It is not 3.\nReasoning:"
    assert shown.startswith(plain.prefix)

    def chat(messages, open_turn):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + ("<assistant>" if open_turn else "")

    talk = StudentPrompt("chat", AnswerKind.NUMBER, (), chat)
    shown = talk.critique(question, " It is 3.", "It is not 3.")
    assert shown == talk.render(question) + "It is 3.<user>It is not 3.<assistant>"
