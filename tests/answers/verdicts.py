"""What tests of the grader share: a text's verdict, beside what a careful person would say.

That is `correct`, `wrong`, `disputed` where the text is open to two readings, or `open` where nobody would insist on
more than that the text is neither right nor a mistake; `not wrong` and its like exclude one verdict.
"""

import json

from tailor_ray.answers import Grader, normalize_gold
from tailor_ray.records import AnswerKind, Question

NUMBER, CHOICE, YES_NO, TEXT, REGEX = AnswerKind.NUMBER, "choice", "yes_no", "text", "regex"
CHOICES = {"a": "race track", "b": "populated areas", "c": "the desert", "d": "apartment", "e": "roadblock"}


def verdict(text, gold, kind=NUMBER, question="How many?", finish="stop", choices=None):
    choices = (choices or CHOICES) if kind == CHOICE else None
    asked = Question("q", question, normalize_gold(AnswerKind(kind), gold, choices), json.dumps(choices))
    return Grader(kind).grade(asked, text, finish).verdict.value


def check(text, gold, expected, kind=NUMBER, **more):
    found = verdict(text, gold, kind, **more)
    if expected == "open":
        assert found in ("disputed", "unparsed"), (found, text)
    elif expected.startswith("not "):
        assert found != expected[4:], (found, text)
    else:
        assert found == expected, (found, text)
