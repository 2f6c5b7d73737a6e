"""Reading replies: tags, JSON, prose, and whatever else a model writes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailor_ray.prompts.parse import Reply, parse_reply, split_conclusion


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<rationale>a b</rationale>\n<answer>7</answer>", Reply("a b", "7", None)),
        ("<feedback>f</feedback><rationale>a\nb</rationale><answer> 7 </answer>", Reply("a\nb", "7", "f")),
        ("Sure!\n<RATIONALE>a</RATIONALE> <Answer>7</Answer> Bye", Reply("a", "7", None)),
        ("<rationale>a\nAnswer: 7</rationale>", Reply("a", "7", None)),
        ("<rationale>a\nSo the final answer is **7**.</rationale><answer>7</answer>", Reply("a", "7", None)),
        ("<rationale>draft</rationale><rationale>final</rationale><answer>7</answer>", Reply("final", "7", None)),
        ("<think>no <rationale>x</rationale></think><rationale>a</rationale><answer>7</answer>", Reply("a", "7", None)),
        ('{"rationale": "a", "answer": "7"}', Reply("a", "7", None)),
        ('```json\n{"feedback": "f", "rationale": "a", "answer": 7}\n```', Reply("a", "7", "f")),
        ('{"rationale": "a", "answer": true}', Reply("a", "yes", None)),
        ('{"rationale": "a", "answer": [7]}', Reply("a", None, None)),
        ("Reasoning: first a.\nThen b.\nAnswer: 7", Reply("first a.\nThen b.", "7", None)),
        ("First a.\nTherefore, the answer is 7.", Reply("First a.", "7", None)),
        ("First a, so it is 7.", Reply("First a, so it is 7.", None, None)),
        ("<feedback>f</feedback>\nFirst a.\n<answer>7</answer>", Reply("First a.", "7", "f")),
        ("First a.\n<answer>7", Reply("First a.", None, None)),
        ("", Reply("", None, None)),
        ('{"answer": "7"}', Reply('{"answer": "7"}', None, None)),
        ('{"rationale": ', Reply('{"rationale":', None, None)),
    ],
)
def test_forms(text, reply):
    assert parse_reply(text) == reply


def test_a_tag_without_its_end_ends_where_the_next_begins():
    assert parse_reply("<rationale>a b\n<answer>7") == Reply("a b", "7", None)
    assert parse_reply("<feedback>f\n<rationale>a") == Reply("a", None, "f")


def test_only_a_last_line_that_states_the_answer_goes():
    assert split_conclusion("Answer: what?\n3 + 4 = 7") == ("Answer: what?\n3 + 4 = 7", None)
    assert split_conclusion("a\n\n**Answer:** 7") == ("a", "7")
    assert split_conclusion("The answer is 7") == ("", "7")


@given(st.text())
def test_no_text_breaks_the_parser(text):
    parse_reply(text)
    parse_reply(f"<rationale>{text}")
    parse_reply(f"{{{text}")


def test_deep_json_is_read_as_text():
    assert parse_reply('{"rationale": ' + "[" * 100_000).answer is None


def test_real_feedback_of_three_teachers(data_folder):
    rows = (data_folder / "recorded" / "fair_svamp_feedback.jsonl").read_text().splitlines()
    replies = [parse_reply(json.loads(row)["output"]) for row in rows]
    assert sum(bool(reply.rationale) for reply in replies) >= 0.99 * len(rows)
