"""Whether any text makes the grader slow or raise: `python jobs/benchmarks/grading_fuzz.py [--seconds 600]`.

Out: for each kind the rows graded, the median and the slowest row with its text's beginning; last, one JSON object.
Exits with 1 where a row took more than a second by the clock, or raised.

What is made: nested brackets and braces, fractions in fractions, powers of powers, factorials, roots, runs of one
character or of one short piece up to 20,000 long, and mixes of them inside announced, boxed and plain sentences.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from typing import Any

from tailor_ray.answers import Grader
from tailor_ray.records import AnswerKind, Question

BOUND_S = 1.0
CHOICES = json.dumps({"a": "a bank", "b": "library", "c": "mall"})
GOLDS = {
    AnswerKind.NUMBER: ("18", "1/3", "75%", "1234567.5"),
    AnswerKind.CHOICE: ("a", "b"),
    AnswerKind.YES_NO: ("yes", "no"),
    AnswerKind.TEXT: ("Paris", "x + 1"),
    AnswerKind.REGEX: ("^Par[ix]s$", r"\d+"),
    AnswerKind.MATH: ("x^2+1", "\\frac{1}{2}", "(1,2]", "18"),
}
WEIGHTS = dict.fromkeys(GOLDS, 1) | {AnswerKind.NUMBER: 6, AnswerKind.MATH: 2}
FRAMES = (
    "{}",
    "Answer: {}",
    "The answer is {}.",
    "#### {}",
    "\\boxed{{{}}}",
    "$\\boxed{{{}}}$",
    "So {} = 18\n\n{}",
    "<answer>{}",
)
PIECES = (
    *"0123456789()[]{}<>$%^*/+-=.,:;!?'\"`_~#\\|&@ \n\tAaxXÀ√π½²é漢\u00a0\u200b\u2009\u2212",
    *(
        "1,",
        "1.",
        "1/",
        "a ",
        "A: ",
        "no ",
        "not ",
        "yes",
        "one ",
        "hundred ",
        "and ",
        "half ",
        "Step 1: ",
        "1. ",
        "- ",
    ),
    *(
        "answer is ",
        "Answer:",
        "####",
        "\\boxed{",
        "\\frac{1}{",
        "\\text{",
        "\\sqrt{",
        "^{",
        "x^",
        "9^",
        "9!",
        "**",
        "__",
    ),
    *("<think>", "</think>", "<<1+", "\nQuestion:", "18 ", "$1 ", "(1+", "1*", "e9", "\\left(", "or ", "\\(", "\\["),
)


def nested(draw: random.Random) -> str:
    """Something in itself, up to 200 deep."""
    opening, inner, closing = draw.choice(
        [
            ("(", "x+1", ")^{9}"),
            ("(", "1", ")"),
            ("[", "2", "]"),
            ("{", "3", "}"),
            ("\\frac{1}{", "x", "}"),
            ("\\frac{", "7", "}{y+2}"),
            ("\\sqrt{", "16", "}"),
            ("2^{", "2", "}"),
            ("(", "9", ")!"),
            ("\\boxed{", "5", "}"),
            ("\\text{", "six", "}"),
            ("(1+", "2", ")*3"),
            ("\\left(", "x", "\\right)^{\\frac{1}{3}}"),
            ("\\sin(", "x", ")"),
            ("\\int_0^{", "x", "} t dt"),
        ]
    )
    depth = draw.choice([2, 6, 12, 30, 80, 200])
    return opening * depth + inner + closing * depth


def run(draw: random.Random) -> str:
    """One piece again and again, up to 20,000 characters."""
    piece = draw.choice(PIECES)
    return (piece * (draw.choice([30, 300, 3000, 20_000]) // len(piece) + 1))[:20_000]


def towers(draw: random.Random) -> str:
    """Powers, products and binomials that would take for ever to compute."""
    n = draw.choice([9, 99, 12345, 10**9, 10**30])
    return draw.choice(
        [
            *(f"{n}^{n}^{n}", f"{n}**{n}", f"{n}^{{{n}^{{{n}}}}}", f"{n}!", f"1e{n}", f"\\binom{{{n}}}{{{n // 2}}}"),
            *(f"\\sum_{{i=1}}^{{{n}}} i^i", f"(x+y+z)^{{{n}}}", f"x^{{{n}}}-1", f"{n} × 10^{n}", f"\\sqrt[{n}]{{{n}}}"),
        ]
    )


def mixed(draw: random.Random) -> str:
    return "".join(draw.choice(PIECES) for _ in range(draw.choice([20, 200, 2000])))


def text(draw: random.Random) -> str:
    made = draw.choice([nested, run, towers, mixed])(draw)
    if draw.random() < 0.3:
        made += draw.choice([" ", "\n", "+", ""]) + draw.choice([nested, run, towers, mixed])(draw)
    return draw.choice(FRAMES).replace("{{", "{").replace("}}", "}").replace("{}", made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="how long to go on")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    graders = {kind: Grader(kind) for kind in GOLDS}
    graders[AnswerKind.MATH].grade(Question("", "", "1"), "\\boxed{\\frac{2}{2}}")  # its worker is started
    taken: dict[AnswerKind, list[float]] = {kind: [] for kind in GOLDS}
    slowest: dict[AnswerKind, tuple[float, str]] = dict.fromkeys(GOLDS, (0.0, ""))
    raised: list[str] = []
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        kind = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        question = Question("q", "How many are 3 of 18?", draw.choice(GOLDS[kind]), CHOICES)
        made = text(draw)
        begun = time.monotonic()
        try:
            graders[kind].grade(question, made, draw.choice(["stop", "stop", "length"]))
        except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
            raised.append(f"{kind.value}: {type(error).__name__}: {error}: {made[:200]!r}")
        seconds = time.monotonic() - begun
        taken[kind].append(seconds)
        if seconds > slowest[kind][0]:
            slowest[kind] = (seconds, made)
    report(taken, slowest, raised)


def report(
    taken: dict[AnswerKind, list[float]], slowest: dict[AnswerKind, tuple[float, str]], raised: list[str]
) -> None:
    out: dict[str, Any] = {"raised": len(raised), "over_a_second": 0}
    print("| kind | rows | median ms | slowest ms | the slowest begins |\n|---|---|---|---|---|")
    for kind, seconds in taken.items():
        worst, made = slowest[kind]
        median = statistics.median(seconds) if seconds else 0.0
        print(f"| {kind.value} | {len(seconds)} | {1000 * median:.2f} | {1000 * worst:.0f} | {made[:60]!r} |")
        out["over_a_second"] += sum(one > BOUND_S for one in seconds)
        out[kind.value] = {"rows": len(seconds), "median_ms": 1000 * median, "slowest_ms": 1000 * worst}
    for line in raised[:20]:
        print(line)
    print(json.dumps(out))
    if raised or out["over_a_second"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
