"""From a model's text to a verdict: extract, normalize, compare by two independent verifiers.

`grader.py` gives the verdict. `spelling.py` and `words.py` bring a text into one spelling. `conclusion.py` finds what
it announces. `numbers.py` and `second.py` are the two verifiers of numbers. `letters.py`, `strings.py` and
`symbolic.py` hold those of the other kinds.
"""

from tailor_ray.answers.grader import Grade, Grader, normalize_gold

__all__ = ["Grade", "Grader", "normalize_gold"]
