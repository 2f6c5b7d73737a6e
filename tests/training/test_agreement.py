"""Transformers' greedy answers are the model's own argmax, and what differs from them without a tie is refused."""

from dataclasses import replace

import pytest
import torch

from tailor_ray.errors import StageError
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import AnswerKind, Question
from tailor_ray.storage import Store
from tailor_ray.training.held_out import (
    GreedyAnswer,
    HeldOut,
    check_agreement,
    greedy_answers,
    read_answers,
    write_answers,
)
from tests.training.students import KINDS, make_student

TOKENS = 12


def held_out(count: int = 5) -> HeldOut:
    words = ["two apples", "three", "one pens and four apples more", "nine", "five in all so seven"]
    questions = tuple(Question(f"q{n}", words[n % 5] + " more" * (n // 5), "1") for n in range(count))
    prompt = StudentPrompt("plain", AnswerKind.NUMBER)
    return HeldOut(questions, prompt, TOKENS, "auto")


@pytest.mark.parametrize("kind", KINDS)
def test_answers_in_a_batch_are_those_of_each_prompt_alone(tmp_path, kind):
    """Token by token, without a cache and without padding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = make_student(tmp_path, kind)
    asked = held_out()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for question, answer in zip(asked.questions, greedy_answers(folder, asked, 5, TOKENS, "cpu"), strict=True):
        ids = tokenizer(asked.prompt.render(question))["input_ids"]
        before = len(ids)
        leads = []
        while len(ids) < before + TOKENS and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                two = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(2)
            ids.append(int(two.indices[0]))
            leads.append(float(two.values[0] - two.values[1]))
        assert answer.text == tokenizer.decode(ids[before:], skip_special_tokens=True).partition("\nQuestion:")[0]
        assert answer.leads == pytest.approx(leads, abs=1e-4)
        assert answer.ends[-1] == len(tokenizer.decode(ids[before:], skip_special_tokens=True))
        assert answer.finish_reason == ("stop" if ids[-1] == tokenizer.eos_token_id else "length")


def test_prompts_that_leave_no_room_are_not_asked(tmp_path):
    folder = make_student(tmp_path)  # it has 256 positions
    asked = held_out(2)
    long = replace(asked.questions[0], text="two " * 300)
    answers = greedy_answers(folder, replace(asked, questions=(long, asked.questions[1])), 2, TOKENS, "cpu")
    assert [answer.question_id for answer in answers] == ["q1"]


def test_what_a_student_prefers_is_not_followed(tmp_path):
    """The engines are not told of a repetition penalty, so neither is transformers."""
    from transformers import AutoModelForCausalLM

    folder = make_student(tmp_path)
    plain = greedy_answers(folder, held_out(), 5, TOKENS, "cpu")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.repetition_penalty = 3.0
    model.save_pretrained(folder)
    assert greedy_answers(folder, held_out(), 5, TOKENS, "cpu") == plain


def answer(text: str, leads: list[float]) -> GreedyAnswer:
    """One token a character."""
    return GreedyAnswer("q", "Question: how many?", text, "stop", "float32", [*range(1, len(text) + 1)], leads)


def test_equal_texts_agree_and_are_read_back(tmp_path):
    answers = [answer("12 apples", [1.0] * 9), answer("", [])]
    store = Store.open(str(tmp_path))
    write_answers(store, answers, TOKENS)
    assert read_answers(store) == (answers, TOKENS)
    assert read_answers(store.child("elsewhere")) == ([], 0)
    assert check_agreement(answers, ["12 apples", ""]) == {"prompts": 2, "ties": 0}


def test_texts_may_part_at_a_tie_only():
    undecided = [1.0, 1.0, 1e-5, 1.0, 1.0]
    assert check_agreement([answer("12 34", undecided)], ["12x"])["ties"] == 1
    assert check_agreement([answer("12 34", undecided)], ["12"])["ties"] == 1  # the engine ended there
    with pytest.raises(StageError, match=r"after '12 3' one says 'x', the other '4', by 1 .*greedy_check"):
        check_agreement([answer("12 34", [1.0] * 5)], ["12 3x"])
    with pytest.raises(StageError, match="after '1' one says ''"):
        check_agreement([answer("12 34", [1.0] * 5)], ["1"])


def test_other_weights_are_found_out(tmp_path):
    asked = held_out()
    mine = greedy_answers(make_student(tmp_path / "a"), asked, 5, TOKENS, "cpu")
    theirs = greedy_answers(make_student(tmp_path / "b", seed=1), asked, 5, TOKENS, "cpu")
    with pytest.raises(StageError, match="not committed"):
        check_agreement(mine, [one.text for one in theirs])
