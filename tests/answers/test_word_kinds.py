"""The same of choices, yes and no, texts and patterns, and of thoughts that are not closed."""

import time

import pytest

from tailor_ray.answers import Grader
from tailor_ray.answers.strings import PATTERN_S
from tailor_ray.records import Question
from tests.answers.verdicts import CHOICE, REGEX, TEXT, YES_NO, check


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\[\n\\boxed{E}\n\\]", "correct"),
        ("$$\\boxed{E}$$", "correct"),
        ("\\[ \\boxed{\\text{E}} \\]", "correct"),
        ("\\boxed{\\text{(E)}}", "correct"),
        ("\\boxed{E. roadblock}", "correct"),
        ("$\\boxed{\\textbf{E}}$", "correct"),
        ("\\[\n\\boxed{A}\n\\]", "wrong"),
        ("\\boxed{\\text{roadblock}}", "correct"),
        ("The answer is $E$.", "correct"),
        ("The answer is \\(E\\)", "correct"),
        ("The answer is `E`.", "correct"),
        ("The answer is **(E)**.", "correct"),
        ("The answer is [E].", "correct"),
        ("<answer>E</answer>", "correct"),
        ("#### E", "correct"),
        ("The answer is E because it blocks the road.", "correct"),
        ("The answer is A because racing is fast.", "wrong"),
        ("The answer is e) roadblock", "correct"),
        ("The correct option is E.", "correct"),
        ("The correct choice is (E).", "correct"),
        ("Option E is correct.", "correct"),
        ("**E) roadblock**", "correct"),
        ("The answer is D or E.", "disputed"),
        ("The answer is E or D.", "disputed"),
        ("Answer: (D), (E)", "disputed"),
        ("Answer: A and E", "disputed"),
        ("\\boxed{D, E}", "disputed"),
        ("Answer: either d or e", "disputed"),
        ("The answer is not E.", "disputed"),
        ("The answer is not B but E.", "correct"),
        ("The answer is not E but B.", "not correct"),
        ("The answer is E, not B.", "correct"),
        ("The answer is E rather than B.", "not wrong"),
        ("Answer: (G)", "unparsed"),
        ("I first thought (E).\nAnswer: (G)", "unparsed"),
        ("It could be (e) roadblock.\n#### F", "unparsed"),
        ("(e) is a roadblock.\nThe answer is none of the above.", "not wrong"),
        ("Answer: A person would stop at (E).", "not wrong"),
        ("Answer: (E) roadblock. The others (A, B) do not fit.", "correct"),
        ("Answer: the roadblock", "correct"),
        ("Answer: apartment", "wrong"),
        ("The answer is roadblock, option E.", "correct"),
        ("The answer is C: the desert.", "wrong"),
        ("I think the answer is E", "correct"),
        ("E", "correct"),
        ("The best answer would be E", "correct"),
    ],
)
def test_choices(text, expected):
    check(text, "e", expected, CHOICE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is no record of a duel. It is unknown whether they met.", "unparsed"),
        ("There is no information about this.", "unparsed"),
        ("No one knows whether it would float.", "unparsed"),
        ("No evidence was found.", "unparsed"),
        ("Yes, it is possible.\nAnswer: It cannot be determined.", "unparsed"),
        ("The claim is true in part.\nAnswer: unknown", "unparsed"),
        ("No. It is true that whales swim, but they are no fish.", "no"),
        ("No, while it is true that it rains, the river stays dry.", "no"),
        ("Yes. It is false that he never wrote; he did.", "yes"),
        ("The answer is no.", "no"),
        ("The answer is No, because there is no yes here.", "no"),
        ("Answer: \\boxed{\\text{Yes}}", "yes"),
        ("$\\boxed{No}$", "no"),
        ("<answer>yes</answer>", "yes"),
        ("#### Yes", "yes"),
        ("**Answer:** **No**", "no"),
        ("**No.** The sea is salty.", "no"),
        ("Therefore, the statement is true.", "yes"),
        ("So the statement is false.", "no"),
        ("Therefore it is not true.", "not yes"),
        ("The answer is not yes.", "not yes"),
        ("Answer: yes or no", "open"),
        ("Answer: yes and no", "open"),
        ("The answer is yes. Actually, no.", "open"),
        ("So the answer is 'no'.", "no"),
        ("Answer: Nope", "not yes"),
        ("I would say yes.", "yes"),
    ],
)
def test_yes_and_no(text, expected):
    for gold in ("yes", "no"):
        if expected in ("yes", "no"):
            check(text, gold, "correct" if expected == gold else "wrong", YES_NO)
        elif expected == "not yes":
            check(text, gold, "not correct" if gold == "yes" else "not wrong", YES_NO)
        else:
            check(text, gold, expected, YES_NO)


@pytest.mark.parametrize(
    ("kind", "gold", "text", "expected"),
    [
        (REGEX, "^Rome$", "Answer: Rome", "correct"),
        (REGEX, "^Rome$", "The answer is **Rome**.", "correct"),
        (REGEX, "^Rome$", "Answer: Oslo", "wrong"),
        (REGEX, r"\d{4}", "It was long ago.\nAnswer: 1969", "correct"),
        (REGEX, r"^\d{4}$", "#### 1969", "correct"),
        (REGEX, r"^(red|blue)$", "\\boxed{blue}", "correct"),
        (REGEX, "^it's$", "Answer: it’s", "correct"),
        (TEXT, "__init__", "Answer: __init__", "correct"),
        (TEXT, "__init__", "The answer is `__init__`.", "correct"),
        (TEXT, "__init__", "Answer: init", "not correct"),
        (TEXT, "init", "Answer: __init__", "not correct"),
        (TEXT, "my_var_name", "Answer: my_var_name", "correct"),
        (TEXT, "snake__case", "Answer: snake__case", "correct"),
        (TEXT, "Rome", "Answer: __Rome__", "correct"),
        (TEXT, "Rome", "Answer: **Rome**", "correct"),
        (TEXT, "Rome", "\\boxed{\\text{Rome}}", "correct"),
        (TEXT, "it's", "Answer: it’s", "correct"),
        (TEXT, "it’s", "Answer: it's", "correct"),
        (TEXT, "rock “n” roll", 'Answer: rock "n" roll', "correct"),
        (TEXT, "café", "Answer: cafe\u0301", "correct"),
        (TEXT, "cafe\u0301", "Answer: café", "correct"),
        (TEXT, "São Paulo", "The answer is Sa\u0303o Paulo.", "correct"),
        (TEXT, "New York", "Answer: New\u00a0York", "correct"),
        (TEXT, "U.S.", "Answer: U.S.", "correct"),
        (TEXT, "C++", "Answer: C++", "correct"),
        (TEXT, "Rome", "Answer: not Rome", "not correct"),
        (TEXT, "Straße", "Answer: STRASSE", "correct"),
    ],
)
def test_text_and_patterns_see_the_bare_answer(kind, gold, text, expected):
    check(text, gold, expected, kind)


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("<think>\nSo 3 + 4 = 7. The answer is 7. But wait,", "length", "truncated"),
        ("<think>\nThe answer is 9.\n", "length", "truncated"),
        ("<think>\nThe answer is 9.\n", "stop", "truncated"),
        ("<thinking>\\boxed{9}\nHmm", "length", "truncated"),
        ("<think>a</think>\nAnswer: 7", "stop", "correct"),
        ("I thought.</think>\nAnswer: 7", "stop", "correct"),
        ("<think>x</think>\nAnswer: 8\n<think>Or is it", "length", "truncated"),
        ("Answer: 3</think>", "length", "truncated"),
        ("<think>" + "so 9 and on. " * 4000, "length", "truncated"),
    ],
)
def test_an_open_thought_is_truncated(text, finish, expected):
    check(text, "7", expected, finish=finish)


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Answer: Paris.", "Paris", "correct"),
        ("Answer: paris", "Paris", "correct"),
        ("The answer is Paris, France.", "Paris", "disputed"),
        ('Answer: "Paris"', "Paris", "correct"),
        ("**Paris**", "Paris", "correct"),
        ("Answer: **Paris**", "Paris", "correct"),
        ("The capital is Paris.", "Paris", "disputed"),
        ("Answer: The Beatles", "the beatles", "correct"),
        ("Answer: “Hello”", "Hello", "correct"),
        ("Answer: don’t", "don't", "correct"),
        ("Answer: naïve", "naïve", "correct"),
        ("Answer: `foo_bar`", "foo_bar", "correct"),
        ("Answer: `__main__`", "__main__", "correct"),
        ("Answer: **`__main__`**", "__main__", "correct"),
        ("Answer: _Paris_", "Paris", "correct"),
        ("Answer: *Paris*", "Paris", "correct"),
        ("\\boxed{\\text{Paris}}", "Paris", "correct"),
        ("$\\boxed{\\text{Paris}}$", "Paris", "correct"),
        ("<answer>Paris</answer>", "Paris", "correct"),
        ("#### Paris", "Paris", "correct"),
        ("Answer: e = mc^2", "e = mc^2", "correct"),
        ("Answer: 3.14", "3.14", "correct"),
        ("Answer: (a, b)", "(a, b)", "correct"),
        ("Answer: New  York", "New York", "correct"),
        ("Answer: co-op", "co‐op", "correct"),
        ("Answer: $5", "$5", "correct"),
        ("Answer: C#", "C#", "correct"),
        ("Answer: -5", "-5", "correct"),
        ("Answer: [1, 2]", "[1, 2]", "correct"),
        ("Answer: Rome", "Paris", "wrong"),
        ("Answer: not Paris", "Paris", "disputed"),
        ("Answer: Paris or Rome", "Paris", "disputed"),
        ("Answer: Paris\n\nI hope this helps!", "Paris", "correct"),
        ("Answer:\nParis", "Paris", "correct"),
        ("Answer: ~/bin", "~/bin", "correct"),
        ("Answer: #1", "#1", "correct"),
        ("Answer: it's 5 o'clock", "it’s 5 o’clock", "correct"),
    ],
)
def test_texts(text, gold, expected):
    check(text, gold, expected, TEXT)


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Answer: Paris", "^Paris$", "correct"),
        ("Answer: **Paris**.", "^Paris$", "correct"),
        ("Paris", "^Paris$", "correct"),
        ("Answer: in Paris", "Paris", "disputed"),
        ("Answer: 12:30", "^\\d{2}:\\d{2}$", "correct"),
        ("Answer: Rome", "^Paris$", "wrong"),
        ('Answer: "foo"', "^foo$", "correct"),
        ("Answer: don’t", "^don't$", "correct"),
        ("Answer: don't", "^don’t$", "correct"),
        ("Answer: __x__", "^__x__$", "correct"),
        ("Answer: café", "^café$", "correct"),
        ("Answer: $5", "^\\$5$", "correct"),
        ("Answer: `a`", "^a$", "correct"),
        ("Answer: Paris\nThat's it", "^Paris$", "correct"),
        ("Answer: Yes!", "^yes!?$", "correct"),
        ("\\boxed{7}", "^[0-9]$", "correct"),
        ("The answer is A.", "^[A-D]$", "correct"),
    ],
)
def test_patterns(text, gold, expected):
    check(text, gold, expected, REGEX)


@pytest.mark.parametrize("gold", ["(a+)+$", "(a|aa)+$", "^(a*)*b$", "(a|a)*$", "(.*a){20}$"])
def test_a_pattern_that_takes_years_is_disputed_within_its_bound(gold):
    started = time.process_time()
    graded = Grader(REGEX).grade(Question("q", "What?", gold), "Answer: " + "a" * 60 + "c")
    assert graded.verdict in ("disputed", "wrong")  # some are matched in another way than by trying all
    assert time.process_time() - started < 10 * PATTERN_S
