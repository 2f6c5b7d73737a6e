"""Kinds of texts that both verifiers of numbers once read alike and wrongly, each with forms that models write."""

import pytest

from tailor_ray.answers import normalize_gold
from tailor_ray.records import AnswerKind
from tests.answers.verdicts import check


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Answer: The 4 teams each have 9 players.", "9", "disputed"),
        ("Answer: The 4 teams each have 9 players.", "4", "disputed"),
        ("Answer: The 4 teams each have 9 players.", "36", "wrong"),
        ("#### Her 2 brothers got 14 marbles", "14", "disputed"),
        ("#### Her 2 brothers got 14 marbles", "2", "disputed"),
        ("The answer is that all 6 boxes hold **84** pens.", "84", "correct"),
        ("The answer is that all 6 boxes hold **84** pens.", "6", "disputed"),
        ("\\boxed{\\text{The 6 boxes hold 84 pens}}", "84", "disputed"),
        ("\\boxed{\\text{The 6 boxes hold 84 pens}}", "6", "disputed"),
        ("**Answer:** After 3 weeks, Mia has saved $75.", "75", "not wrong"),
        ("**Answer:** After 3 weeks, Mia has saved $75.", "3", "not correct"),
        ("Final answer: 7 days make 49 loaves.", "49", "disputed"),
        ("Final answer: 7 days make 49 loaves.", "7", "disputed"),
        ("Answer: 49 loaves in 7 days.", "49", "correct"),
        ("Answer: 49 loaves in 7 days.", "7", "disputed"),
        ("Answer: 12 more than Tom, who has 30.", "12", "correct"),
        ("The answer is 3 rows of 5 = 15 chairs.", "15", "correct"),
        ("The answer is 3 * 5 = 15 chairs in 3 rows.", "15", "correct"),
        ("The answer is 3 * 5 = 15 chairs in 3 rows.", "14", "wrong"),
        ("The answer is: each of the two gets 11 coins", "11", "not wrong"),
        ("The answer is: each of the two gets 11 coins", "2", "not correct"),
        ("Answer: 5 hours and 30 minutes", "5.5", "disputed"),
        ("Answer: 5 feet 6 inches", "66", "disputed"),
        ("Answer: x = 4 and y = 9", "9", "disputed"),
        ("Answer: x = 4 and y = 9", "4", "disputed"),
    ],
)
def test_an_announced_sentence_with_other_numbers(text, gold, expected):
    check(text, gold, expected)


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Answer:\n\nStep 3: So they own 56 cards together.", "56", "correct"),
        ("Answer:\n\nStep 3: So they own 56 cards together.", "3", "not correct"),
        ("Let us see.\nAnswer:\n1. Each day he runs 4 miles.\n2. In a week he runs 4 * 7 = 28 miles.", "28", "correct"),
        ("Let us see.\nAnswer:\n1. Each day he runs 4 miles.\n2. In a week he runs 4 * 7 = 28 miles.", "1", "wrong"),
        ("Answer:\n2) They need 31 buses.", "31", "not wrong"),
        ("Answer:\n2) They need 31 buses.", "2", "not correct"),
        ("#### Solution\nHe has 3 + 8 = 11 apples.", "11", "correct"),
        ("#### Step 1: add\n3 + 8 = 11\n#### Step 2: double\n11 * 2 = 22", "22", "correct"),
        ("#### Step 1: add\n3 + 8 = 11\n#### Step 2: double\n11 * 2 = 22", "2", "wrong"),
        ("#### 1. Find the sum\nThe sum is 3 + 8 = 11.", "11", "correct"),
        ("#### 1. Find the sum\nThe sum is 3 + 8 = 11.", "1", "wrong"),
        ("#### Explanation\nIt is 5 + 5 = 10.\n#### 10", "10", "correct"),
        ("Step 1: 5 + 5 = 10\nStep 2: 10 - 3 = 7", "7", "correct"),
        ("1. 5 + 5 = 10\n2. 10 - 3 = 7", "7", "correct"),
        ("Answer: 18. That is 3 more than before.", "18", "correct"),
        ("Answer:\n18. That is 3 more than before.", "18", "not wrong"),
        ("**Step 4:** The total is 63.", "63", "correct"),
        ("**Step 4:** The total is 63.", "4", "wrong"),
    ],
)
def test_step_labels_are_no_numbers_and_headings_no_answers(text, gold, expected):
    check(text, gold, expected)


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Given: 12 boys and 9 girls.\nQuestion: How many campers are there?\nAnswer: 21 campers", "21", "correct"),
        (
            "Known: a = 5 and b = 8.\nProblem: What is a + b?\n\nSolution: 5 + 8 = 13. The answer is 13.",
            "13",
            "correct",
        ),
        ("Let me restate.\n\nQuestion: How many?\n3 * 7 = 21\n#### 21", "21", "correct"),
        ("He has 3 * 7 = 21 pens.\n#### 21\n\nQuestion: Eva has 2 cats and 3 dogs.\n#### 5", "21", "correct"),
        ("He has 3 * 7 = 21 pens.\n#### 21\n\nEva has 2 cats and 3 dogs.\n2 + 3 = 5\n#### 5", "21", "correct"),
        ("He has 3 * 7 = 21 pens.\n#### 21\n\nEva has 2 cats and 3 dogs.\n2 + 3 = 5\n#### 5", "5", "not correct"),
        ("The answer is 21.\n\nProblem 2: 3 and 5?\nThe answer is 8.", "21", "correct"),
        ("So he has 21 pens.\n\nQ: And 3 and 5?\nA: 8", "21", "correct"),
    ],
)
def test_a_question_cuts_only_what_has_concluded(text, gold, expected):
    check(text, gold, expected)


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("The answer is not 36.", "36", "disputed"),
        ("The answer isn't 36.", "36", "not correct"),
        ("The answer cannot be 36.", "36", "not correct"),
        ("The answer is not equal to 36", "36", "disputed"),
        ("Answer: it is never 36", "36", "disputed"),
        ("Answer: not 36 but 40", "36", "disputed"),
        ("Answer: not 36 but 40", "40", "correct"),
        ("Answer: 36 or 40", "36", "disputed"),
        ("Answer: 36 or 40", "40", "disputed"),
        ("#### either 36 or 40", "36", "disputed"),
        ("The answer is 36/40 or 0.9", "0.9", "not wrong"),
        ("Answer: 36 and 40", "40", "disputed"),
        ("Answer: 36, 40", "36", "disputed"),
        ("Answer: between 36 and 40", "36", "disputed"),
        ("Answer: 36-40", "36", "disputed"),
        ("Answer: 36–40 people", "40", "disputed"),
        ("Answer: 36 to 40", "36", "disputed"),
        ("Answer: > 36", "36", "disputed"),
        ("Answer: x ≥ 36", "36", "disputed"),
        ("\\boxed{x > 36}", "36", "disputed"),
        ("$\\boxed{\\geq 36}$", "36", "disputed"),
        ("The answer is at least 36.", "36", "disputed"),
        ("The answer is more than 36 dollars.", "36", "disputed"),
        ("The answer is less than 36", "36", "disputed"),
        ("#### fewer than 36", "36", "disputed"),
        ("The answer is up to 36 guests", "36", "disputed"),
        ("Answer: 36 ± 2", "36", "disputed"),
        ("\\boxed{36} or \\boxed{40}", "40", "disputed"),
        ("\\boxed{36} or \\boxed{40}", "36", "disputed"),
        ("The answer is 36. Wait, that is wrong, it should be 40.", "36", "disputed"),
        ("The answer is about 36.", "36", "correct"),
        ("The answer is ≈ 36", "36", "correct"),
        ("The answer is exactly 36.", "36", "correct"),
    ],
)
def test_negations_alternatives_and_ranges_are_disputed(text, gold, expected):
    check(text, gold, expected)


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Answer: $2.4M", "2400000", "correct"),
        ("Answer: $2.4M", "24", "wrong"),
        ("Answer: 35k", "35000", "correct"),
        ("Answer: 7 bn", "7000000000", "not wrong"),
        ("Answer: 2.5 × 10³", "2500", "correct"),
        ("Answer: 2.5 × 10³", "2.5", "not correct"),
        ("Answer: 2.5 \\times 10^{3}", "2500", "correct"),
        ("$\\boxed{2.5 \\times 10^3}$", "2500", "correct"),
        ("Answer: 2.5*10^3", "2500", "correct"),
        ("Answer: 10^4", "10000", "correct"),
        ("Answer: 10^4", "10", "not correct"),
        ("Answer: 2⁵", "32", "not wrong"),
        ("Answer: 2⁵", "2", "not correct"),
        ("Answer: 2**5", "2", "not correct"),
        ("Answer: 5⁄8", "0.625", "correct"),
        ("Answer: 5⁄8", "5", "not correct"),
        ("Answer: 2¾", "2.75", "correct"),
        ("Answer: 12'500", "12500", "correct"),
        ("Answer: 12’500 francs", "12500", "correct"),
        ("Answer: 12\u2009500", "12500", "correct"),
        ("Answer: 12\u202f500 km", "12500", "correct"),
        ("Answer: 12'500", "12", "not correct"),
        ("Answer: 2.345,67", "2345.67", "correct"),
        ("Answer: €2.345,67", "2.345", "not correct"),
        ("Answer: 1.234.567", "1234567", "correct"),
        ("Answer: 12,34,567", "1234567", "not wrong"),
        ("Answer: 12,34,567", "12", "not correct"),
        ("Answer: - 7", "-7", "correct"),
        ("Answer: - 7", "7", "not correct"),
        ("The answer is - 7.", "-7", "correct"),
        ("Answer: −7", "-7", "correct"),
        ("Answer: –7", "-7", "correct"),
        ("Answer: 4π", "4", "not correct"),
        ("Answer: 4 π", "4", "not correct"),
        ("Answer: 4\\pi", "4", "not correct"),
        ("Answer: 3√2", "3", "not correct"),
        ("Answer: √49", "49", "not correct"),
        ("Answer: \\sqrt{49}", "49", "not correct"),
        ("Answer: \\sqrt{49}", "7", "not wrong"),
        ("Answer: log 1000", "1000", "not correct"),
        ("Answer: \\log_2 8", "8", "not correct"),
        ("Answer: sqrt(49)", "49", "not correct"),
        ("Answer: sin 30", "30", "not correct"),
        ("Answer: 5x", "5", "not correct"),
        ("Answer: 5x + 3", "5", "not correct"),
        ("Answer: 5!", "120", "not wrong"),
        ("The answer is 5!", "5", "correct"),
        ("Answer: 6 * 7", "6", "not correct"),
        ("Answer: 6 * 7", "42", "not wrong"),
        ("Answer: 3:1", "3", "not correct"),
        ("Answer: 1,2345", "1", "not correct"),
        ("Answer: half of 36", "36", "not correct"),
        ("Answer: 45°", "45", "correct"),
        ("Answer: 45 m²", "45", "correct"),
        ("Answer: 45kg", "45", "correct"),
        ("Answer: ５２", "52", "not wrong"),
        ("Answer: 5.", "5", "correct"),
        ("Answer: .5", "0.5", "correct"),
        ("Answer: Rs. 500", "500", "correct"),
        ("Answer: ₹500", "500", "correct"),
        ("Answer: £12.50", "12.5", "correct"),
        ("Answer: USD 1,250", "1250", "correct"),
        ("Answer: 50¢", "50", "correct"),
        ("Answer: 3e2", "300", "correct"),
        ("Answer: 1.0E+03", "1000", "correct"),
    ],
)
def test_what_follows_a_number_belongs_to_it(text, gold, expected):
    check(text, gold, expected)


@pytest.mark.parametrize(
    ("words", "gold"),
    [
        ("two hundred and five", "205"),
        ("three hundred forty-two", "342"),
        ("one thousand two hundred", "1200"),
        ("twelve hundred", "1200"),
        ("a hundred", "100"),
        ("one hundred and one", "101"),
        ("five thousand and six", "5006"),
        ("two million three hundred thousand", "2300000"),
        ("one half", "1/2"),
        ("half", "0.5"),
        ("a half", "0.5"),
        ("three quarters", "0.75"),
        ("three-quarters", "0.75"),
        ("one fourth", "0.25"),
        ("two thirds", "2/3"),
        ("two-thirds", "2/3"),
        ("five eighths", "5/8"),
        ("a third", "1/3"),
        ("two and a half", "2.5"),
        ("one and three quarters", "1.75"),
        ("seven point five", "7.5"),
        ("minus twelve", "-12"),
        ("negative twelve", "-12"),
        ("a dozen", "12"),
        ("half a dozen", "6"),
        ("two dozen", "24"),
        ("Forty-Two", "42"),
        ("forty two", "42"),
        ("zero", "0"),
        ("none", "0"),
    ],
)
@pytest.mark.parametrize(
    "form", ["The answer is {}.", "Answer: {} apples", "#### {}", "**Answer: {}**", "\\boxed{{\\text{{{}}}}}"]
)
def test_words_count_as_their_value(words, gold, form):
    check(form.format(words), gold, "correct")
    check(form.format(words), "77", "wrong")


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Answer: two hundred and five", "200", "not correct"),
        ("Answer: one half", "1", "not correct"),
        ("Answer: three quarters", "3", "not correct"),
        ("Answer: two thirds", "2", "not correct"),
        ("Answer: one two three", "1", "not correct"),
        ("Answer: nineteen eighty-four", "19", "not correct"),
        ("Answer: twenty-first", "20", "not correct"),
        ("Answer: the third one", "3", "not correct"),
        ("Answer: two million", "2", "not wrong"),
        ("Answer: 2 and a half hours", "2.5", "correct"),
        ("Answer: 2 and a quarter", "2.25", "not wrong"),
        ("Answer: 2 and a quarter", "2", "not correct"),
        ("Answer: seven out of ten", "7", "not wrong"),
    ],
)
def test_words_that_say_more_than_their_beginning(text, gold, expected):
    check(text, gold, expected)


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("\\boxed{250 ml}", "250", "correct"),
        ("\\boxed{250\\,ml}", "250", "correct"),
        ("\\boxed{250~\\text{ml}}", "250", "correct"),
        ("\\boxed{250 \\mathrm{~ml}}", "250", "correct"),
        ("$\\boxed{65 \\text{ miles per hour}}$", "65", "correct"),
        ("\\boxed{65 miles per hour}", "65", "correct"),
        ("\\boxed{65 miles per hour}", "64", "wrong"),
        ("\\boxed{\\$65}", "65", "correct"),
        ("\\boxed{\\textbf{65}}", "65", "correct"),
        ("\\boxed{65\\%}", "65", "correct"),
        ("\\boxed{x = 65}", "65", "correct"),
        ("\\[\n\\boxed{65}\n\\]", "65", "correct"),
        ("\\fbox{65}", "65", "not wrong"),
        ("#### <answer>62</answer>", "62", "correct"),
        ("<answer>62</answer>", "62", "correct"),
        ("<answer> 62 apples </answer>", "62", "correct"),
        ("He has 3.\n<answer>\n62\n</answer>", "62", "correct"),
        ("<answer>62</answer>", "61", "wrong"),
        ("\\boxed{\\frac{3}{8}}", "0.375", "correct"),
        ("\\boxed{\\dfrac38}", "0.375", "correct"),
        ("\\boxed{2\\frac{3}{8}}", "2.375", "correct"),
        ("\\boxed{1{,}250}", "1250", "correct"),
        ("\\boxed{1,250 \\text{ g}}", "1250", "correct"),
        ("\\boxed{25^\\circ}", "25", "correct"),
        ("\\boxed{25 \\text{ cm}^2}", "25", "correct"),
    ],
)
def test_boxes_and_tags_are_unwrapped(text, gold, expected):
    check(text, gold, expected)


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Total = 46\n\nI am 99% sure.", "46", "correct"),
        ("Total = 46\n\nI am 99% sure.", "99", "not correct"),
        ("So there are 46 pens.\n\nI hope this helps! Ask me 24/7.", "46", "correct"),
        ("40 + 6 = 46 pens.\n\nThis took me 3 steps.", "46", "not wrong"),
        ("40 + 6 = 46 pens.\n\nThis took me 3 steps.", "3", "not correct"),
        ("Therefore, she has 46 pens.\n\nNote: I checked it 2 times.", "46", "not wrong"),
        ("Therefore, she has 46 pens.\n\nNote: I checked it 2 times.", "2", "not correct"),
        ("The total is 46.\n\nConfidence: 95%", "46", "not wrong"),
        ("The total is 46.\n\nConfidence: 95%", "95", "not correct"),
        ("The answer is 46.\n\nConfidence: 95%", "46", "correct"),
    ],
)
def test_closing_remarks_conclude_nothing(text, gold, expected):
    check(text, gold, expected)


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("3 million", "Answer: 3,000,000", "correct"),
        ("3 million", "Answer: 3 million", "correct"),
        ("3 million", "Answer: 3", "wrong"),
        ("$1.5M", "Answer: 1,500,000", "correct"),
        ("−8", "Answer: -8", "correct"),
        ("−8", "Answer: 8", "wrong"),
        ("3:30", "Answer: 3:30", "correct"),
        ("3:30", "Answer: 3:30 pm", "correct"),
        ("3:30", "Answer: 4:30", "wrong"),
        ("1,250", "Answer: 1250", "correct"),
        ("1’250", "Answer: 1250", "correct"),
        ("½", "Answer: 0.5", "correct"),
        ("\\frac{1}{2}", "Answer: 0.5", "correct"),
        ("two", "Answer: 2", "correct"),
        ("twenty-five", "Answer: 25", "correct"),
        ("3/8", "Answer: 0.375", "correct"),
        ("40%", "Answer: 40%", "correct"),
        ("40%", "Answer: 0.4", "correct"),
        ("40%", "Answer: 40", "not wrong"),
        ("40%", "Answer: 0.4%", "wrong"),
        ("18 apples", "Answer: 18", "correct"),
        ("$18.50", "Answer: 18.5", "correct"),
        ("1e3", "Answer: 1000", "correct"),
        ("2 × 10^3", "Answer: 2000", "correct"),
    ],
)
def test_gold_answers_are_read_by_the_same_readers(gold, text, expected):
    check(text, gold, expected)


@pytest.mark.parametrize(
    "gold", ["3 or 4", "> 5", "not 5", "4π", "x", "3:1", "5 to 6", "5 feet 6 inches", "between 1 and 2"]
)
def test_a_gold_number_that_cannot_be_read_is_named(gold):
    with pytest.raises(ValueError, match="is not a number"):
        normalize_gold(AnswerKind.NUMBER, gold)
