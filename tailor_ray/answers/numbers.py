"""Numbers as models write them, read by value: the first verifier of kind `number`.

The paper's rule is the first number after the conclusion's marker, else the last number of the text; ours
compares by value, not as strings ("18.00" is 18, "1,200" is 1200). Without a marker it prefers what the last "=" says
and numbers that the question does not hold ("255 dollars a month for 3 months"): on 1,800 recorded outputs without a
marker that is right 58 times where the last number is not, and wrong twice where it is. Where the question counts
nothing, the only sum of money is preferred ("$18 in 1 day"): 3 more right of 10,107, none less. A reading may stand for
two values: "75%" is 75 and 3/4, "2 million" is 2 and 2,000,000; the gold answer decides which was meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

from tailor_ray.answers.conclusion import MAX_SPAN, Conclusion, conclusions, first_sentence, sentences

_NUMBER = re.compile(
    r"(?:(?<![\w)%.])(?P<sign>[-−–])(?=[$€£]?\.?\d)|(?<![A-Za-z_\d.^]))"  # a minus after a digit or word is an operator
    r"(?P<currency>[$€£])?\s?(?P<inner>-)?"
    r"(?:(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?![\d:])|"
    r"(?P<int>\d{1,3}(?:[,\u00a0\u202f]\d{3})+(?!\d)|(?<=[$€£])\d{1,3}(?: \d{3})+(?![\d,.]\d)|\d+)?"
    r"(?P<dec>\.\d+)?(?<=\d))"
    r"(?P<exp>[eE][+-]?\d{1,2}(?![\w.]))?"
    r"(?:\s?/\s?(?P<den>\d+(?![\d/.]))|\s(?P<num2>\d{1,4})/(?P<den2>\d{1,4})(?!\d))?"
    r"(?:\s?(?P<percent>%|percent\b|per\s?cent\b)|\s(?P<scale>hundred|thousand|million|billion|dozen)\b)?",
    re.IGNORECASE,
)
_SCALE = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_WORDS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORD = re.compile(
    rf"\b(?:(?P<tens>{'|'.join(_TENS)})(?:[- ](?P<unit>{'|'.join(_WORDS[1:10])}))?|(?P<word>{'|'.join(_WORDS)}|none))\b"
    rf"(?:\s(?P<scale>{'|'.join(_SCALE)})\b)?",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(
    r"(?<![\d)%] )\b(?:negative|minus)\s+(?=[$€£]?\d)", re.IGNORECASE
)  # "20 minus 2" is a difference
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]{1,40})\}\s*\{([^{}]{1,40})\}|(\d)(\d))")
_LATEX_NOISE = re.compile(r"\\[!,;: ]|\{,\}(?=\d)|\\left|\\right|\\text(?:bf|it)?\b|\\mathrm\b|\\\(|\\\)|\\\[|\\\]")
_HALF = re.compile(r"(?<![\w.])(\d+) and (?:a|one) half\b", re.IGNORECASE)
_BEGINS = re.compile(r"[\W_]*\d")
_SPACED = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?=\W*$)")  # "118 000" at the end
_ASIDE = re.compile(r"(?<=[\w.]) \([^()]{0,120}\)|(?<!= )\b\d+(?:st|nd|rd|th)\b")
_COUNTED = re.compile(r"how many (?!dollars|cents)", re.IGNORECASE)
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")


@dataclass(frozen=True, slots=True)
class Number:
    """One number as written, with the values that it may stand for (the literal one first)."""

    written: str
    values: tuple[Fraction, ...]

    def equals(self, gold: Fraction) -> bool:
        """Exact for an integer; a rounded decimal may miss by one part in a million."""
        return any(
            value == gold or (value.denominator != 1 and abs(value - gold) <= abs(gold) / 10**6)
            for value in self.values
        )

    def normalized(self) -> str:
        """18, -3, 0.75, 3/4: the literal value without grouping, currency or trailing zeros."""
        return format_number(self.values[0])


def format_number(value: Fraction) -> str:
    """The shortest exact form: an integer, a terminating decimal, or a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    digits = value.denominator
    for prime in (2, 5):
        while digits % prime == 0:
            digits //= prime
    if digits != 1 or value.denominator > 10**12:
        return f"{value.numerator}/{value.denominator}"
    with localcontext(prec=100):
        return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"


@lru_cache(maxsize=8192)
def gold_value(answer: str) -> Fraction | None:
    """A gold answer's value, or None when it is not a number and nothing but a number."""
    text = plain(answer).strip().strip("$€£").strip()
    match = _NUMBER.fullmatch(text)
    number = _number(match) if match else None
    return number.values[0] if number else None


def is_plain(answer: str) -> bool:
    """Whether a number is written as a decimal, so that its shortest form loses nothing ("75%" and "3/4" do)."""
    return not any(character.isalpha() or character in "%/" or ord(character) > 127 for character in answer)


def read(text: str, question: str = "") -> tuple[Number | None, Conclusion | None]:
    """The number that a `visible` text concludes with, and the announced conclusion that it was found in."""
    for conclusion in conclusions(text):
        number = None if _is_heading(conclusion, text) else _in_conclusion(conclusion.text)
        if number:
            return number, conclusion
    for sentence in reversed(sentences(plain(text))):
        number = _in_sentence(sentence, question)
        if number:
            return number, None
    return None, None


def _is_heading(conclusion: Conclusion, text: str) -> bool:
    """Whether "A: First she sells …" opens a whole solution; "Answer: 18" before an explanation does not."""
    return conclusion.opening and not _BEGINS.match(conclusion.text) and len(sentences(text)) > 1


def plain(text: str) -> str:
    """LaTeX fractions and spacing as plain text, "6 and a half" as 6.5."""
    if "half" in text:
        text = _HALF.sub(r"\1.5", text)
    if "\\" in text or "{,}" in text:
        text = _FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]}", text)
        text = _LATEX_NOISE.sub("", text).replace("\\$", "$").replace("\\%", "%")
    return text


def numbers(text: str) -> list[Number]:
    """Every number of a text, in order."""
    return [number for number in map(_number, _NUMBER.finditer(text)) if number]


def _in_conclusion(text: str) -> Number | None:
    """First number of the sentence, or of what its last "=" says: "The answer is 9 * 2 = 18 dollars for 3 days"."""
    text = _NEGATIVE.sub("-", plain(text))
    sentence = _SPACED.sub(lambda match: match[0].replace(" ", ""), first_sentence(text))
    for part in (sentence.rpartition("=")[2], sentence, text):
        found = numbers(part)
        if found:
            return found[0]
    word = _WORD.search(sentence)
    return _word_number(word) if word else None


def _in_sentence(sentence: str, question: str) -> Number | None:
    """Without a marker: what is bold, else what the last "=" says, else the last number that the question lacks."""
    sentence = _ASIDE.sub("", sentence[-MAX_SPAN:]) or sentence[-MAX_SPAN:]
    for bold in reversed(_BOLD.findall(sentence)):
        found = numbers(bold)
        if found:
            return found[-1]
    _, equals, right = sentence.rpartition("=")
    found = numbers(right) if equals else []
    if found:
        return found[0]
    found = numbers(sentence)
    given = _given(question)
    fresh = [number for number in found if number.values[0] not in given]
    money = [number for number in fresh if "$" in number.written]
    if len(money) == 1 and not _COUNTED.search(question):
        return money[0]  # "She makes $18 in 1 day."
    return fresh[-1] if fresh else found[-1] if found else None


@lru_cache(maxsize=1024)
def _given(question: str) -> frozenset[Fraction]:
    """The values that a question holds; a conclusion seldom repeats one as its answer."""
    return frozenset(number.values[0] for number in numbers(question))


def _word_number(match: re.Match[str]) -> Number:
    part = {name: (word or "").lower() for name, word in match.groupdict().items()}
    if part["tens"]:
        value = 10 * (2 + _TENS.index(part["tens"])) + (_WORDS.index(part["unit"]) if part["unit"] else 0)
    else:
        value = 0 if part["word"] == "none" else _WORDS.index(part["word"])
    return Number(match.group(), (Fraction(value * _SCALE.get(part["scale"], 1)),))


def _number(match: re.Match[str]) -> Number | None:
    part = match.groupdict()
    if part["hour"]:
        return Number(match.group().strip(), (int(part["hour"]) + Fraction(int(part["minute"]), 60),))
    whole = re.sub(r"\D", "", part["int"] or "")
    if len(whole) > 40 or len(part["dec"] or "") > 40:
        return None  # a run of digits, not an answer; and Fraction would pay for it
    value = Fraction(f"{whole or 0}{part['dec'] or ''}{part['exp'] or ''}")
    for numerator, denominator in ((value, part["den"]), (part["num2"], part["den2"])):
        if denominator and (len(denominator) > 40 or int(denominator) == 0):
            return None
        if denominator:
            ratio = Fraction(numerator) / int(denominator)
            value = ratio if numerator is value else value + ratio
    if part["sign"] or part["inner"]:
        value = -value
    values: tuple[Fraction, ...] = (value,)
    if part["percent"]:
        values = (value, value / 100)
    elif part["scale"]:
        values = (value, value * _SCALE[part["scale"].lower()])
    return Number(match.group().strip(), values)
