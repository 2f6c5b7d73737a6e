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
from functools import cache, lru_cache
from typing import Any

MAX_ENDING = 300  # characters; sympy never sees more
MAX_ANNOUNCED = 16  # announcements looked at, from the end
_ANNOUNCED = re.compile(
    r"####|answers?\W{0,3}(?:is|are|was|would be|will be)\b|answer\W{0,3}[:=]|^\W{0,8}a\W{0,3}:", re.I | re.M
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
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_WORD = re.compile(rf"^(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)
_PLAIN = re.compile(
    r"\$?(-?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(?:\.\d{1,9})?)(?: (?![Pp])[A-Za-z][A-Za-z ]*)?"
)  # 18, or 18 dollars, or …
_SCIENTIFIC = re.compile(r"(\d+(?:\.\d+)?[eE][+-]?\d{1,2})\b")
_MIXED = re.compile(r"\b(\d+) (\d+/\d+)\b")


def says(text: str, gold: str) -> bool | None:
    """Whether a `visible` text's ending equals the gold number; None where it cannot be told."""
    announced, rest = ending(text)
    sentence, is_last = _last_numbered(rest)
    if announced is None:
        right = True if _holds(sentence, gold) else math_verify_says(sentence, gold)
        # "We get 6 = 21. This cannot be." does not conclude; that it holds the gold value proves nothing.
        return right if is_last or not right else None
    plain, plain_gold = _PLAIN.fullmatch(announced), _PLAIN.fullmatch(gold)
    if plain and plain_gold:
        right = _decimal(plain[1]) == _decimal(plain_gold[1])
    else:
        right = math_verify_says(_ANNOUNCE + announced, gold)
    return True if is_last and _holds(sentence, gold) else right


def math_verify_says(tail: str, gold: str) -> bool | None:
    """What math-verify says of an ending; None where it finds no number."""
    if not tail or _HUGE.search(tail) or set(_LATEX_COMMAND.findall(tail)) - _KNOWN_LATEX:
        return None
    found = _parse(tail)
    return bool(_library().verify(list(_gold(gold)), found, timeout_seconds=None)) if found else None


def ending(text: str) -> tuple[str | None, str]:
    """What the last announcement says, to the end of its sentence, or None; and the text that follows it."""
    boxed = text.rfind("\\boxed")
    for announcement in reversed(deque(_ANNOUNCED.finditer(text), maxlen=MAX_ANNOUNCED)):
        if announcement.start() < boxed:
            break
        said = text[announcement.end() :].lstrip(" \n*:=")
        line = _WORD.sub(lambda match: str(_WORDS.index(match[0].lower())), said[:MAX_ENDING].partition("\n")[0])
        opens_solution = not (text[: announcement.start()].strip() or line[:3].strip("$-. ")[:1].isdigit())
        if opens_solution and _SENTENCE_START.search(said.strip()):
            continue  # "A: First she sells 3. Then …" announces a solution, not its conclusion
        if any(character.isnumeric() for character in line):
            trailer = _TRAILER.search(line)
            end = trailer.start() if trailer else len(line)
            return line[:end].strip(" *"), said[end:]  # a spelled-out number shifts the rest by a few letters
    if boxed >= 0:
        return text[boxed : boxed + MAX_ENDING].partition("\n")[0], ""
    return None, text


def _last_numbered(text: str) -> tuple[str, bool]:
    """The last sentence that holds a digit, and whether it is the last of all."""
    sentences = [part for part in _SENTENCE_START.split(text.strip()[-3 * MAX_ENDING :]) if part.strip()]
    for position, sentence in enumerate(reversed(sentences)):
        if any(character.isnumeric() for character in sentence):
            return sentence[-MAX_ENDING:], position == 0
    return "", False


def _holds(sentence: str, gold: str) -> bool:
    """Whether a plain gold number is among the plain numbers of a sentence."""
    if not _PLAIN.fullmatch(gold):
        return False
    value = _decimal(gold)
    return any(_decimal(digits) == value for digits in _DIGITS.findall(sentence))


def _parse(text: str) -> list[Any]:
    math_verify = _library()
    if "\\" in text:
        configs = [math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig()]
        return math_verify.parse(text, configs, parsing_timeout=None)
    return math_verify.parse(_spelled_out(text), [math_verify.ExprExtractionConfig()], parsing_timeout=None)


def _spelled_out(text: str) -> str:
    """Forms that math-verify does not know, as forms that it does."""
    text = text.replace("$", "").replace("**", "")  # a pair of currency signs would read as LaTeX
    text = _SCIENTIFIC.sub(lambda match: f"{Decimal(match[1]):f}", text)
    return _MIXED.sub(r"(\1+\2)", text)


@lru_cache(maxsize=8192)
def _gold(gold: str) -> tuple[Any, ...]:
    return tuple(_parse(gold))


def _decimal(digits: str) -> Decimal:
    return Decimal(digits.replace(",", ""))


@cache
def _library() -> Any:
    import math_verify  # takes 1 s with sympy

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they warn of the missing timeout, which is capped above
    return math_verify
