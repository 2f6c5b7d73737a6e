"""The second verifier of kind `number`: math-verify's extraction and comparison, on the text's ending.

It shares no code with the first verifier (`numbers.py`): the ending is cut out by plain patterns, what it says is
extracted by math-verify and compared by sympy. It is lenient where the first is strict: a sentence without an
announcement, or one that follows the announcement, agrees with the gold answer if it holds its value. So a text is
called a mistake only when neither its announced answer nor its last sentence holds the gold value, and correct only
when the first verifier's reading is right as well.

The ending alone is handed over because math-verify takes the word "answer" anywhere ("she must answer 35 questions")
for an announcement, and because its time grows with the text. Its timeouts use SIGALRM, which works on the main
thread only; instead the length is capped and forms that sympy would compute at length are not asked. An ending that
is one plain decimal leaves math-verify nothing to interpret: it is compared here, at a hundredth of the time, and a
test holds that math-verify says the same of every such ending.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from decimal import Decimal
from functools import lru_cache
from typing import Any

from tailor_ray.once import FIRST_USE, once

MAX_ENDING = 300  # characters; sympy never sees more
MAX_ANNOUNCED = 16  # announcements looked at, from the end
_ANNOUNCED = re.compile(
    r"####|answers?(?:\s?\([^()\n]{1,40}\))?\W{0,3}(?:is|are|was|would be|will be)\b(?! not\b)|answer\W{0,3}[:=]"
    r"|^\W{0,8}a\W{0,3}:",
    re.I | re.M,
)
_TRAILER = re.compile(r"(?<=\d)[.]?\s+\(|(?<=[\d\w%])[.!?](?:\s|$)")  # " (25 x 3 = 75)" or the next sentence
_HUGE = re.compile(r"\^|\d\s?\*\*\s?\d|!|\d{25}|[eE][+-]?\d{3}")  # powers and factorials that sympy would compute
_ANNOUNCE = "The answer is "  # math-verify reads the first number after it
_DIGITS = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d{1,9})?(?![\d])")
_SENTENCE_START = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bMrs\.)\s+|\n")
_LATEX_COMMAND = re.compile(r"\\([A-Za-z]+)")
# Commands that only write a number; sums, integrals and binomials would have sympy compute without bound.
_KNOWN_LATEX = {
    *("boxed", "frac", "dfrac", "tfrac", "cfrac", "sqrt", "cdot", "times", "div", "approx", "left", "right"),
    *("text", "textbf", "textit", "mathrm", "mathbf", "quad", "qquad", "displaystyle", "bf", "rm"),
}
_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_WORD = re.compile(rf"^({'|'.join(_TENS)})?(?:(?<=y)[- ])?({'|'.join(reversed(_ONES))})?\b(?<=\w)", re.IGNORECASE)
_EDGE = " *\"'`“”~≈≃"
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_SCALED = re.compile(rf"[$€£]?(-?[\d,]*\.?\d+) ({'|'.join(_SCALES)})\b", re.IGNORECASE)
_PLAIN = re.compile(
    r"\$?(-?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(?:\.\d{1,9})?)(?: (?![Pp])[A-Za-z][A-Za-z ]*)?"
)  # 18, or 18 dollars, or …
_RETRACTS = re.compile(  # "We can't determine the answer.", "If she buys more, it is different."
    r"n['’]t (?:know|have|determine|make)|\b(?:cannot|but|however|if|unless|assuming|depends|different|without|"
    r"impossible|error|mistakes?|incorrect|incomplete|inconsistent|undefined|not (?:possible|true|enough|clear))\b",
    re.IGNORECASE,
)
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])(?:\^\{?\d\}?|[²³])")  # cm^2
_NAMED_CURRENCY = re.compile(r"\b(?:USD|US|AUD|CAD|Rs\.?)\s?(?=\$?\d)")
_HALVES = re.compile(r"(\d) and (?:a|one) half\b", re.IGNORECASE)
_MARKS = re.compile(r'[$"“”`]|\*\*')  # a pair of currency signs would read as LaTeX, a quoted number as none
_NEGATIVE = re.compile(r"^(?:negative|minus) (?=\$?\d)", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text(?:bf|it)?|mathrm|mathbf)\{([^{}]*)\}")
_SCIENTIFIC = re.compile(r"(\d+(?:\.\d+)?[eE][+-]?\d{1,2})\b")
_MIXED = re.compile(r"\b(\d+) (\d+/\d+)\b")


def says(text: str, gold: str) -> bool | None:
    """Whether a `visible` text's ending equals the gold number; None where it cannot be told."""
    announced, rest = ending(_UNIT_POWER.sub("", _HALVES.sub(r"\1.5", text)))
    sentence, concludes = _last_numbered(rest)
    if announced is None:
        right = True if _holds(sentence, gold) else math_verify_says(sentence, gold)
        # "We get 6 = 21. This cannot be." does not conclude; that it holds the gold value proves nothing.
        return right if concludes or not right else None
    announced = _NEGATIVE.sub("-", _NAMED_CURRENCY.sub("", announced))
    plain, plain_gold = _PLAIN.fullmatch(announced), _PLAIN.fullmatch(gold)
    scaled = _SCALED.match(announced)
    if scaled and plain_gold:  # "3 million", "2 dozen": the gold answer decides what was counted
        value = _decimal(scaled[1])
        right = _decimal(plain_gold[1]) in (value, value * _SCALES[scaled[2].lower()])
    elif plain and plain_gold:
        right = _decimal(plain[1]) == _decimal(plain_gold[1])
    else:
        right = math_verify_says(_ANNOUNCE + announced, gold)
    return True if concludes and _holds(sentence, gold) else right


def math_verify_says(tail: str, gold: str) -> bool | None:
    """What math-verify says of an ending; None where it finds no number."""
    tail = _TEXT.sub(lambda match: re.sub(r"[^\d.,/%-]", "", match[1]), tail.replace("\\$", ""))
    if _HUGE.search(tail):
        tail = tail.rpartition("=")[2]  # "20 * 1.2^18 = 532.5" says what it makes
    if not tail or _HUGE.search(tail) or set(_LATEX_COMMAND.findall(tail)) - _KNOWN_LATEX:
        return None
    with FIRST_USE:  # sympy imports a part of itself wherever a form first needs it
        found = _parse(tail)
        return bool(library().verify(list(_gold(gold)), found, timeout_seconds=None)) if found else None


def ending(text: str) -> tuple[str | None, str]:
    """What the last announcement says, to the end of its sentence, or None; and the text that follows it."""
    boxed = text.rfind("\\boxed")
    for announcement in reversed(deque(_ANNOUNCED.finditer(text), maxlen=MAX_ANNOUNCED)):
        if announcement.start() < boxed:
            break
        said = text[announcement.end() :].lstrip(" \n*:=")
        line = _WORD.sub(_digits_for, said[:MAX_ENDING].partition("\n")[0])
        opens_solution = not (text[: announcement.start()].strip() or line[:3].strip("$-. ")[:1].isdigit())
        if opens_solution and _SENTENCE_START.search(said.strip()):
            continue  # "A: First she sells 3. Then …" announces a solution, not its conclusion
        if any(character.isnumeric() for character in line):
            trailer = _TRAILER.search(line)
            end = trailer.start() if trailer else len(line)
            return line[:end].strip(_EDGE), said[end:]  # a spelled-out number shifts the rest by a few letters
    if boxed >= 0:
        return text[boxed : boxed + MAX_ENDING].partition("\n")[0], ""
    return None, text


def _digits_for(word: re.Match[str]) -> str:
    """Twenty-five as 25."""
    tens, ones = ((group or "").lower() for group in word.groups())
    return str(_TENS.get(tens, 0) + (_ONES.index(ones) if ones else 0))


def _last_numbered(text: str) -> tuple[str, bool]:
    """The last sentence that holds a digit, and whether nothing after it takes it back."""
    sentences = [part for part in _SENTENCE_START.split(text.strip()[-3 * MAX_ENDING :]) if part.strip()]
    for position, sentence in enumerate(reversed(sentences)):
        if any(character.isnumeric() for character in sentence):
            after = sentences[len(sentences) - position :]
            return sentence[-MAX_ENDING:], not any(_RETRACTS.search(one) for one in after)
    return "", False


def _holds(sentence: str, gold: str) -> bool:
    """Whether a plain gold number is among the plain numbers of a sentence."""
    if not _PLAIN.fullmatch(gold):
        return False
    value = _decimal(gold)
    return any(_decimal(digits) == value for digits in _DIGITS.findall(sentence))


def _parse(text: str) -> list[Any]:
    math_verify = library()
    if "\\" in text:
        configs = [math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig()]
        return math_verify.parse(text, configs, parsing_timeout=None)
    return math_verify.parse(_spelled_out(text), [math_verify.ExprExtractionConfig()], parsing_timeout=None)


def _spelled_out(text: str) -> str:
    """Forms that math-verify does not know, as forms that it does."""
    text = _MARKS.sub("", text)
    text = text.replace("=", " = ")  # "9*2=18" would be read as 9
    text = _SCIENTIFIC.sub(lambda match: f"{Decimal(match[1]):f}", text)
    return _MIXED.sub(r"(\1+\2)", text)


@lru_cache(maxsize=8192)
def _gold(gold: str) -> tuple[Any, ...]:
    return tuple(_parse(gold))


def _decimal(digits: str) -> Decimal:
    return Decimal(digits.replace(",", ""))


@once
def library() -> Any:
    """math-verify, loaded."""
    import math_verify  # takes 1 s with sympy

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they warn of the missing timeout, which is capped above
    return math_verify
