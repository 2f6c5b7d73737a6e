"""From a model's text to a verdict: extract, normalize, compare by two independent verifiers.

`grader.py` gives the verdict, and says what became of mistakes. `spelling.py` brings a text into one spelling.
`conclusion.py` finds what it announces. `numbers.py` and `second.py` are the two verifiers of numbers. `letters.py` and
`strings.py` hold those of the other kinds. `math_worker.py` is the process that compares mathematics.
"""

from tailor_ray.answers.grader import Grade, Grader, normalize_gold

__all__ = ["Grade", "Grader", "normalize_gold"]
