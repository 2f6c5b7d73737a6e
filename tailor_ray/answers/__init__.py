"""From a model's text to a verdict: extract, normalize, compare by two independent verifiers.

`grader.py` gives the verdict; `conclusion.py`, `numbers.py`, `letters.py` and `texts.py` read a text; `second.py` is
the second verifier of numbers.
"""

from tailor_ray.answers.grader import Grade, Grader, normalize_gold

__all__ = ["Grade", "Grader", "normalize_gold"]
