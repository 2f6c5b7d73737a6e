"""Kind `math`: symbolic answers in the forms that models write them, and a bound that nothing exceeds."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tailor_ray.answers import Grader, normalize_gold, strings
from tailor_ray.records import AnswerKind, Question

GRADER = Grader(AnswerKind.MATH)


def verdict(text, gold, finish="stop"):
    return GRADER.grade(Question("q", "?", normalize_gold(AnswerKind.MATH, gold)), text, finish).verdict.value


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("\\frac{3}{7}", "So it is $\\boxed{\\frac{3}{7}}$."),
        ("\\frac{3}{7}", "\\boxed{\\dfrac{3}{7}}"),
        ("\\frac{3}{7}", "\\boxed{\\frac37}"),
        ("\\frac{3}{7}", "Answer: 3/7"),
        ("\\frac{3}{7}", "The answer is $\\frac{6}{14}$."),
        ("x^2+2x+1", "\\[\n\\boxed{(x+1)^2}\n\\]"),
        ("2x+3", "Answer: $3 + 2x$"),
        ("2x+3", "Answer: 2x + 3"),
        ("5\\pi", "The area is $\\boxed{5\\pi}$."),
        ("5\\pi", "The final answer is: $5 \\pi$"),
        ("\\sqrt{12}", "$\\boxed{2\\sqrt{3}}$"),
        ("(1,2]", "\\boxed{(1, 2]}"),
        ("[0,\\infty)", "The answer is $\\left[0, \\infty\\right)$."),
        ("(3,-4)", "The answer is $(3,-4)$."),
        ("(3,-4)", "\\boxed{\\left(3, -4\\right)}"),
        ("\\{1,2\\}", "\\boxed{\\{2, 1\\}}"),
        ("5", "\\boxed{x = 5}"),
        ("-\\frac{1}{2}", "\\boxed{-0.5}"),
        ("10", "\\boxed{10}"),
        ("2^{10}", "\\boxed{1024}"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}"),
        ("x \\le 3", "\\boxed{x \\leq 3}"),
        ("3x", "**Answer:**\n\\[\n3x\n\\]"),
    ],
)
def test_equal_expressions_are_correct(gold, text):
    assert verdict(text, gold) == "correct"


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("\\frac{3}{7}", "\\boxed{\\frac{7}{3}}"),
        ("x^2+2x+1", "\\boxed{x^2+1}"),
        ("5\\pi", "The answer is $5$."),
        ("(1,2]", "\\boxed{[1,2)}"),
        ("(3,-4)", "The answer is $(-4,3)$."),
        ("\\sqrt{12}", "\\boxed{3\\sqrt{2}}"),
        ("2x+3", "Answer: $2x - 3$"),
        ("10", "\\boxed{100}"),
    ],
)
def test_other_expressions_are_wrong(gold, text):
    assert verdict(text, gold) == "wrong"


@pytest.mark.parametrize(
    ("gold", "text", "finish", "expected"),
    [
        ("3x", "", "stop", "unparsed"),
        ("3x", "I cannot tell.", "stop", "unparsed"),
        ("3x", "The answer is not $3x$.", "stop", "disputed"),
        ("3x", "<think>The answer is $3x$", "length", "truncated"),
        ("3x", "So \\boxed{3", "length", "truncated"),
    ],
)
def test_no_answer_and_none_that_counts(gold, text, finish, expected):
    assert verdict(text, gold, finish) == expected


def test_a_gold_expression_whose_braces_do_not_close_is_named():
    with pytest.raises(ValueError, match="braces do not close"):
        normalize_gold(AnswerKind.MATH, "\\frac{1}{2")


HUNG = [
    "\\boxed{" + "(" * 12 + "x+1" + ")^{9}" * 12 + "}",
    "\\boxed{\\frac{\\frac{\\frac{\\frac{\\frac{\\frac{x}{y}}{z}}{w}}{v}}{u}}{t}^{99}}",
    "\\boxed{9^{9^{9^{9}}}}",
    "\\boxed{99999999!}",
    "\\boxed{\\binom{10^9}{10^8}}",
    "\\boxed{\\sum_{i=1}^{10^{12}} \\frac{1}{i^i}}",
    "\\boxed{\\int_0^\\infty \\frac{\\sin(x^x)}{x^{x^x}} dx}",
    "Answer: $" + "(" * 300 + "$",
]


@pytest.mark.parametrize("text", HUNG)
def test_an_expression_that_would_take_for_ever_is_ended_and_the_next_is_graded(text):
    verdict("\\boxed{1}", "1")  # the worker is started
    begun = time.monotonic()
    assert verdict(text, "x^{2}+y") != "correct"
    assert time.monotonic() - begun < 20 * strings.EXPRESSION_S  # of CPU time, on a machine that others use
    assert verdict("\\boxed{\\frac{2}{4}}", "\\frac{1}{2}") == "correct"


def test_it_works_in_threads():
    verdicts = {}
    threads = [
        threading.Thread(target=lambda n=n: verdicts.update({n: verdict(f"\\boxed{{\\frac{{{2 * n}}}{{2}}}}", f"{n}")}))
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(verdicts.values()) == {"correct"}
    assert len(verdicts) == 8


def test_no_worker_outlives_its_process():
    code = (
        "import os, psutil; from tailor_ray.answers import strings; "
        "assert strings.second_expression(r'\\boxed{\\frac{2}{2}}', '1'); "
        "(worker,) = psutil.Process().children(); print(worker.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    worker = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        status = Path(f"/proc/{worker}/status")
        if not status.exists() or "Z (zombie)" in status.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"worker {worker} is still there")
