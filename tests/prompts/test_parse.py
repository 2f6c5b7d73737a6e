"""Reading replies: tags, JSON, prose, and whatever else a model writes."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailor_ray.prompts.parse import Reply, parse_reply, parse_score, split_conclusion, strip_thinking


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


WAY = "3 + 4 = 7 apples"
PLAIN = Reply(WAY, "7", None)


@pytest.mark.parametrize(
    "text",
    [
        f"</think>\n<rationale>{WAY}</rationale><answer>7</answer>",
        f"We add <rationale>no</rationale>.</think><rationale>{WAY}</rationale><answer>7</answer>",
        f"<thought>Hm.</thought><rationale>{WAY}</rationale><answer>7</answer>",
        f"<thinking>a</thinking> b </thinking><rationale>{WAY}</rationale><answer>7</answer>",
        f"[THINK]Hm.[/THINK]<rationale>{WAY}</rationale><answer>7</answer>",
        f"<seed:think>Hm.</seed:think>{WAY}\nAnswer: 7",
        f"<think>\nHm.\n</think >\n{WAY}\nAnswer: 7",
        f"<reasoning>Hm.</reasoning>\n{WAY}\nAnswer: 7",
        f"<|START_THINKING|>Hm.<|END_THINKING|>{WAY}\nAnswer: 7",
        f"analysisHm.assistantfinal{WAY}\nAnswer: 7",
        f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
        f"<rationale>{WAY}</rationale><answer>7</answer><|return|>",
        f"<rationale>{WAY}</rationale><answer>7</answer><think>Was that right?",
        f'Here it is:\n\n```json\n{{"rationale": "{WAY}", "answer": "7"}}\n```\nAsk on!',
        f'Sure. {{"answer": 7, "rationale": "{WAY}"}} That is all.',
        f'[{{"rationale": "{WAY}", "answer": 7}}]',
        f'{{"lesson": {{"steps": 1, "rationale": "{WAY}", "answer": 7}}}}',
        f'{{"Rationale": "{WAY}", "Answer": 7}}',
        f'{{"rationale": "{WAY}", "answer": "7",}}',
        f'{{"rationale": ["{WAY}"], "answer": 7,\n}}',
        f'{{"n": {{}}, "x": [1, 2], "rationale": "{WAY}", "answer": 7}}',
        f"<think>{{}}</think>```\n<rationale>{WAY}</rationale>\n<answer>7</answer>\n```",
        f"<rationale>\n{WAY}\n<answer>7",
        f"<rationale >{WAY}</ rationale><answer>7</answer>",
        f"### Rationale\n{WAY}\n\n### Answer\n7",
        f"**Rationale:** {WAY}\n**Answer:** 7",
        f"Rationale: {WAY}\nAnswer: 7",
        f"# Rationale\n\n{WAY}\n\n# Final answer\n\n7\n",
    ],
)
def test_what_models_make_of_the_form_is_read(text):
    reply = parse_reply(text)
    assert (reply, reply.markup) == (PLAIN, None)


@pytest.mark.parametrize(
    ("body", "rationale"),
    [
        (r"Half is \frac{1}{2}, so \(x\) = 7.", r"Half is \frac{1}{2}, so \(x\) = 7."),
        (r"3 \times 4 \neq 7 and \text{so} on\nThen more.", "3 \\times 4 \\neq 7 and \\text{so} on\nThen more."),
        (r"Half is \\frac{1}{2}.\nNow\tthen.", "Half is \\frac{1}{2}.\nNow\tthen."),
        ("First 3,\nthen 4: 7.", "First 3,\nthen 4: 7."),
        (r"He says \"hi\" for \$7.", r'He says "hi" for \$7.'),
    ],
)
def test_objects_with_broken_latex_or_raw_newlines_are_read(body, rationale):
    reply = parse_reply('{"rationale": "' + body + '", "answer": "7"}')
    assert (reply.rationale, reply.answer, reply.markup) == (rationale, "7", None)


@pytest.mark.parametrize(
    "text",
    [
        '{"reasoning": "3 + 4 = 7", "answer": 7}',
        '{"rationale": {"step": "3 + 4 = 7"}, "answer": 7} or {"steps": []}',
        '{"rationale": "3 + 4 = 7, "answer": 7}',
        "3 + 4 = 7\n```python\nprint(3 + 4)\n```\nAnswer: 7",
        "<rationale>see ```3 + 4``` = 7</rationale><answer>7</answer>",
        '<rationale>{"rationale": "3 + 4 = 7"</rationale><answer>7</answer>',
        '"rationale": "3 + 4 = 7", "answer": 7',
        "3 + 4 = 7 <|im_end|> and on",
        "<output>3 + 4 = 7 apples</output>\nAnswer: 7",
        "<antml_thinking>3 + 4</antml_thinking>3 + 4 = 7 apples\nAnswer: 7",
        "{'rationale': '3 + 4 = 7 apples', 'answer': 7}",
        "&lt;rationale&gt;3 + 4 = 7 apples&lt;/rationale&gt;\nAnswer: 7",
    ],
)
def test_what_still_holds_our_form_is_marked(text):
    reply = parse_reply(text)
    assert reply.markup or not reply.rationale


def test_thinking_alone_leaves_nothing():
    for text in ("<think>3 + 4 = 7", "3 + 4 = 7</think>", "<think>a</think>", "[THINK]a", "◁think▷a"):
        assert strip_thinking(text) == parse_reply(text).rationale == ""


SLOW = (
    *(
        "```\n",
        "<think>",
        "</think>",
        "<rationale>",
        "</rationale>",
        '{"',
        '{"a":',
        "{ ",
        ",",
        "\\",
        "< ",
        "#",
        "*",
        "\n",
    ),
    *("the answer is ", "answer", " ", "1 ", "**Rationale", "<|channel|>final", '\\"', "Answer: \t", "[", "x"),
)


@pytest.mark.parametrize("piece", SLOW)
@pytest.mark.parametrize("around", ["{}", "```{}", '{{"rationale": "{}', "Answer: x{}y", "{}<rationale>"])
def test_time_grows_with_the_length_and_not_faster(piece, around):
    """Four times the text takes far less than the 64 or 16 times of a cubic or quadratic reader."""

    def seconds(length):
        text = around.format(piece * (length // len(piece)))
        best = 1e9
        for _ in range(3):
            start = time.process_time()
            parse_reply(text)
            parse_score(text)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(16_000) < 8 * seconds(4_000) + 0.05


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
