"""What teachers typeset becomes plain text; plain text stays what it is, to the letter."""

import json
import time

import pytest

from tailor_ray.prompts.parse import plain_text, typeset


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (r"So it is \boxed{42}.", "So it is 42."),
        (r"So it is \boxed{\frac{1}{2}}.", "So it is 1/2."),
        (r"\(3 \times 4 = 12\)", "3 * 4 = 12"),
        (r"\[12 \div 4 = 3\]", "12 / 4 = 3"),
        (r"He pays \$5 and 20\% more.", "He pays $5 and 20% more."),
        ("With $x = 3$ it is $$x + 4 = 7$$.", "With x = 3 it is x + 4 = 7."),
        (r"\text{apples} \leq 7", "apples <= 7"),
        ("**Step 1:** Add 3 and 4.", "Step 1: Add 3 and 4."),
        ("### Step 1\nAdd 3 and 4.\n---\nDone.", "Step 1\nAdd 3 and 4.\nDone."),
        ("* Add 3.\n* Add `4`.", "- Add 3.\n- Add 4."),
        ("So it is __7__.", "So it is 7."),
    ],
)
def test_markdown_and_latex_become_plain(text, plain):
    assert plain_text(text) == plain
    assert typeset(plain) is None


@pytest.mark.parametrize(
    "text",
    [
        "3 * 4 * 5 = 60 and 2 ** 3 = 8, 2**3**1 = 8.",
        "It costs $3 + $4 = $7, not $5,$6 or $3.50-$4.",
        "1. First 3.\n2. Then 4.\n- And 5.",
        "snake_case and a__b__c, a < b > c, #3 and No. #4.",
        "* 3 is what it is multiplied by.\n|x| = |y|",
    ],
)
def test_plain_text_stays(text):
    assert plain_text(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (r"\sqrt{16} = 4", r"\sqrt"),
        (r"\begin{align} x = 4 \end{align}", r"\begin"),
        ("|a|b|\n|-|-|\n|3|4|", "|-|-|"),
        ("**Step 1", "**"),
        ("As [here](http://x.y) said, 7.", "[here](http://x.y)"),
        ("```\n3 + 4\n```x", None),
    ],
)
def test_what_cannot_be_taken_away_is_named(text, left):
    found = typeset(plain_text(text))
    assert found == left if left else found in (None, "```")


def test_where_answers_are_latex_it_stays():
    text = r"**So** it is \boxed{\frac{1}{2}} with $x = 3$."
    assert plain_text(text, latex=True) == r"So it is \boxed{\frac{1}{2}} with $x = 3$."
    assert typeset(text.replace("**", ""), latex=True) is None


def test_peoples_rationales_stay_plain(data_folder):
    changed = 0
    lines = (data_folder / "gsm8k" / "train.jsonl").read_text().splitlines()
    for line in lines:
        rationale = json.loads(line)["rationale"].strip()
        changed += plain_text(rationale) != rationale or typeset(rationale) is not None
    assert changed <= 0.005 * len(lines)


@pytest.mark.parametrize(
    "piece", ["**", "$", "__", "`", "[", "|", "\\boxed{", "* ", "#", "$a", "{", "\\", "[a](", "---\n"]
)
def test_any_text_takes_linear_time(piece):
    def seconds(count):
        text, start = piece * count, time.perf_counter()
        typeset(plain_text(text))
        return time.perf_counter() - start

    seconds(100)
    assert seconds(64_000) < 32 * 12 * max(seconds(2_000), 1e-3)  # squared it would be 32 · 32
