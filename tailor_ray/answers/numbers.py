"""Numbers as models write them, read by value: the first verifier of kind `number`, the paper's rule made strict.

The rule: the first number after the conclusion's marker, else the last number of the text. Values are compared, not
strings, so "18.00" is 18.

Strict means: the announced sentence must leave one number to be the answer. It does where only one is there, or one is
bold. It does where one opens the sentence and the others say of what ("18 dollars for 9 eggs"). It does where the last
"=" says it. Otherwise the gold answer among them proves nothing.

A number that is part of more (2π, 5x, √16, 36-40, "more than 36") is in doubt, and so is the whole reading. A number
may stand for two values. "75%" is 75 and 3/4, and "2 million" is 2 and 2,000,000. The gold answer decides which was
meant.

Without a marker it prefers what is bold or what the last "=" says. It prefers numbers that the question does not hold
("255 dollars a month for 3 months"). Where the question counts nothing, it prefers the only sum of money ("$18 in 1
day").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from tailor_ray.answers.conclusion import (
    CONCLUDES,
    MAX_SPAN,
    Conclusion,
    before_reason,
    conclusions,
    first_sentence,
    remark,
    sentences,
    unlabelled,
)
from tailor_ray.answers.spelling import SCALES, UNREAD, digits, plain, spelled

_CURRENCY = r"(?:(?:USD|EUR|GBP|INR|Rs\.?|US|AUD?|CAD?)\s?)?[$€£¥₹]?"
_NUMBER = re.compile(
    r"(?:(?<![\w)%.\]}^])(?P<sign>[-–])(?=[$€£¥₹]?\.?\d)|(?<![A-Za-z_\d.^√π]))"  # a minus after a digit is an operator
    rf"{_CURRENCY}\s?(?P<inner>-)?"
    r"(?:(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?![\d:])|"
    r"(?P<comma>\d{1,3}(?:\.\d{3})+,\d{1,2}(?![\d,])|\d{1,3}(?:\.\d{3}){2,}(?![.,]?\d))|"  # 1.234,56
    r"(?P<int>\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d\d)+,\d{3}(?![\d,])|\d{1,3}(?: \d{3})+(?![\d,.]?\d|/\d)|\d+)?"
    r"(?P<dec>\.\d+)?(?<=\d))"
    r"(?P<exp>[eE][+-]?\d{1,2}(?![\w.])|\s?[×x*·]\s?10\s?\^\s?\(?[+-]?\d{1,2}\)?(?!\d))?"
    r"(?:\s?(?:\^|\*\*)\s?\(?(?P<power>\d{1,2})\)?(?!\d))?"
    r"(?:\s?/\s?(?P<den>\d+(?![\d/.^]))|\s(?P<num2>\d{1,4})/(?P<den2>\d{1,4})(?!\d))?"
    r"(?:\s?(?P<percent>%|(?i:per\s?cent)\b)"
    r"|\s?(?P<scale>(?i:hundred|thousand|million|billion|trillion|dozen)|mn|bn|k|K|M|B)\b)?",
)
_SCALE = {**SCALES, "hundred": 100, "k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9}
_SIGNED = re.compile(r"((?:^|[:=({]|\b(?:is|be|are))[\s*]*)[-–] (?=[$€£]?\.?\d)")
_NEGATIVE = re.compile(
    r"(?<![\d)%] )\b(?:negative|minus)\s+(?=[$€£]?\d)", re.IGNORECASE
)  # "20 minus 2" is a difference
_ASIDE = re.compile(r"(?<=[\w.%]) \([^()]{0,120}(?:\)|$)|(?<!= )\b\d+(?:st|nd|rd|th)\b")
_SPEAKS = re.compile(
    r"\b(?:i|i'm|i've|my|confiden\w+|steps?|checked|verified|rating|score|problem|method|solution|calculation)\b",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"how many (?!dollars|cents)", re.IGNORECASE)
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_THAN = r"(?:more|less|fewer|greater|higher|lower|larger|smaller|bigger|other|rather) than(?: or equal to)?"
_BEFORE = re.compile(  # what makes the number after it another, or no answer
    rf"(?:[√π^]\(?|[><≥≤≠±|+×·÷/]|[\d)]\s?\*{{1,2}}|"
    r"\b(?:log|ln|sqrt|sin|cos|tan|mod|root|square|squared|cube|factorial|half|twice|double|times)"
    rf"(?:_\w*)?(?: of| root of)?\s?\(?|\\[A-Za-z]+_?\w*|\b(?:{_THAN}|at least|at most|up to|over|under|above|below|"
    r"between|from|either|neither|as (?:many|much|few|little) as))\s?[$€£]?$",
    re.IGNORECASE,
)
_AFTER = re.compile(
    rf"[.,:'_]?\d|\s?[π√∞^±{UNREAD}\\]|\s?\*\*\s?\d|[xyznie](?![A-Za-z])|[(\[]\s?\d|\s?[+×·÷*/]\s?[$€£(]?\d|\s[xX]\s\d"
    rf"|!(?=\d)|\s?[-–—]\s?[$€£(]?\d|[^,;.\d]{{0,24}}\b(?:is|are) (?:not|wrong|incorrect)\b|{UNREAD}"
    r"| (?:or|to) [$€£]?\d| or (?:more|less|fewer)\b|\s?[-+*]\s?[a-z]\b|\+(?!\w)"
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|nor|neither|cannot|instead of|rather than)\b|n't\b)[^,;.\d=]{0,40}$", re.IGNORECASE
)
_OF_WHAT = re.compile(
    r"\b(?:for|in|of|per|from|on|at|after|before|with|within|by|than|as|every|each|among|over|during|between|if|when|who"
    r"|which|because|since)"
    r"(?: (?:the|a|an|all|his|her|their|its|these|those|of|who|has|have|had|only|just|last|first|next))*\s?[$€£]?$",
    re.IGNORECASE,
)
_OPENS = re.compile(
    r"[\W_]*(?:(?:about|approximately|approx|around|roughly|exactly|only|just|now|nearly|almost|also|simply|equal|to|equals|"
    r"a|total|of|USD|US|Rs|[A-Za-z]\s?(?==|$))[\W_]+)*$",
    re.IGNORECASE,
)
_COMPOUND = re.compile(  # 5 feet 6 inches, 2 hours and 30 minutes
    r"\s*(?:hours?|hrs?|h|minutes?|mins?|days?|weeks?|months?|years?|feet|foot|ft|'|yards?|pounds?|lbs?|dollars?|euros?|"
    r"met(?:er|re)s?|m|kg|kilograms?|gallons?|quarts?|pints?)\.?,?\s*(?:and|&)?\s*[$€£]?",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"(?!.*\b(?:or|and|to|so|but|not|if|more|less)\b)\W{0,3}(?:[A-Za-z][\w/.^-]*(?:\s[A-Za-z][\w/-]*){0,3})?\W{0,3}"
)
_ANOTHER = re.compile(
    r"^[^\d=]{0,4}[\d.,]+[^\d=]{0,12}(?:,|;|\band\b|\bor\b)[^\d=]*$"
)  # "x = 4 and y" of "x = 4 and y = 9"


@dataclass(frozen=True, slots=True)
class Number:
    """One number as written, with the values that it may stand for (the literal one first)."""

    written: str
    values: tuple[Fraction, ...]
    start: int = 0
    end: int = 0
    doubtful: bool = False

    def equals(self, gold: Fraction) -> bool:
        """Whether one of its values is `gold`: an integer exactly, a rounded decimal to one part in a million."""
        return any(
            value == gold or (value.denominator != 1 and abs(value - gold) <= abs(gold) / 10**6)
            for value in self.values
        )

    def normalized(self) -> str:
        """18, -3, 0.75, 3/4: the literal value without grouping, currency or trailing zeros."""
        return format_number(self.values[0])


@dataclass(frozen=True, slots=True)
class Reading:
    """The numbers that may be the answer, the likeliest first; in doubt where none of them need be."""

    numbers: tuple[Number, ...]
    doubt: bool = False
    beside: tuple[Number, ...] = ()  # computed before: should the gold number be there, the text is no mistake

    def says(self, gold: Gold) -> bool | None:
        """Whether the reading is the gold number.

        Returns right or wrong, or None where it is in doubt, or has several numbers with the gold one among them.
        """
        if self.doubt or not self.numbers:
            return None
        right = [gold.meant_by(number) for number in self.numbers]
        if len(set(right)) != 1 or (not right[0] and any(map(gold.meant_by, self.beside))):
            return None
        return right[0]


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold number: what it counts ("2 million" is 2,000,000), and whether as a percentage."""

    value: Fraction
    percent: bool = False

    def meant_by(self, number: Number) -> bool:
        """Whether `number` says it.

        A gold answer of 40% is also said by 0.4, but 0.4% says neither.
        """
        if not self.percent:
            return number.equals(self.value)
        written = Number("", number.values[:1])
        return written.equals(self.value) or ("%" not in number.written and written.equals(self.value / 100))

    def rounds_to(self, value: Fraction) -> bool:
        """Whether `value`, a decimal or fraction, may be this one rounded.

        0.33 may be for 1/3, and nobody would call it a mistake.
        """
        return 1 not in (value.denominator, self.value.denominator) and abs(value - self.value) <= abs(self.value) / 200


WRITTEN_OUT = 10_000  # bits of a number whose digits are all written, about 3,000; Python refuses from 4,300 on


def format_number(value: Fraction) -> str:
    """The shortest exact form of `value`.

    Returns an integer, a terminating decimal or a fraction; 1.5e+9801 where its digits would be endless.
    """
    if max(abs(value.numerator), value.denominator).bit_length() > WRITTEN_OUT:
        with localcontext(prec=10):
            return f"{(Decimal(value.numerator) / Decimal(value.denominator)).normalize():e}"
    if value.denominator == 1:
        return str(value.numerator)
    digits = value.denominator
    for prime in (2, 5):
        while digits % prime == 0:
            digits //= prime
    if digits != 1 or value.denominator > 10**40:
        return f"{value.numerator}/{value.denominator}"
    with localcontext(prec=100):
        return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"


@lru_cache(maxsize=8192)
def read_gold(answer: str) -> Gold | None:
    """A gold answer as the readers of attempts read it.

    Returns None when `answer` is not one number, with a unit at most.
    """
    text = _prepared(spelled(answer))
    reading = _of_sentence(text)
    if reading.doubt or len(reading.numbers) != 1 or len(numbers(text)) != 1:
        return None
    number = reading.numbers[0]
    if not _OPENS.fullmatch(text[: number.start]) or not _UNIT.fullmatch(text[number.end :]):
        return None
    return Gold(number.values[-1] if "%" not in number.written else number.values[0], "%" in number.written)


def is_plain(answer: str) -> bool:
    """Whether a number is written as a decimal, so that its shortest form loses nothing.

    "75%" and "3/4" would lose something.
    """
    return re.fullmatch(r"-?\$?-?[\d,]*\.?\d+", answer.strip()) is not None


def read(text: str, question: str = "") -> tuple[Reading, Conclusion | None]:
    """What a `visible` text concludes with.

    `question` says which numbers were given. Returns the reading, and the announced conclusion that it was found in, or
    None where there was none.
    """
    for conclusion in conclusions(text):
        # "A: First she sells …" opens a whole solution; "Answer: 18" before an explanation does not.
        heads = conclusion.opening and not re.match(r"[\W_]*\d", conclusion.text) and len(sentences(text)) > 1
        reading = Reading(()) if heads else _announced(conclusion)
        if reading.numbers:
            return reading, conclusion
    return _unannounced(unlabelled(text), question), None


def numbers(text: str) -> list[Number]:
    """Every number of a `plain` text, in order."""
    found = []
    for match in _NUMBER.finditer(text):
        part, (start, end) = match.groupdict(), match.span()
        values = _values(part)
        if values is None:
            continue
        before, after = text[max(0, start - 48) : start], text[end : end + 48]
        doubtful = _BEFORE.search(before) is not None or _AFTER.match(after) is not None
        if part["sign"] or part["inner"]:
            values = tuple(-value for value in values)
        found.append(Number(match.group().strip(), values, start, end, doubtful))
    return found


def _prepared(text: str) -> str:
    """Plain text with signs closed up; number words as digits where there are no digits."""
    text = plain(text)
    if not any(map(str.isdigit, text)) or " and " in text:
        text = digits(text)
    return _SIGNED.sub(r"\1-", _NEGATIVE.sub("-", text))


def _announced(conclusion: Conclusion) -> Reading:
    """What the first sentence with a number says; "2. They …" below the marker may be a label and may be the answer."""
    text = _prepared(unlabelled(conclusion.text, inline=not conclusion.below))
    label = re.match(r"\W*(\d)[.)]\s+(?=.*\d)", text) if conclusion.below else None
    while text:
        sentence = first_sentence(text)
        reading = _of_sentence(sentence)
        text = text[len(sentence) + 1 :]
        if reading.numbers or reading.doubt:
            more = _of_sentence(text).numbers if label else ()
            return Reading(reading.numbers + more, reading.doubt or conclusion.taken_back)
    return Reading(())


def _of_sentence(sentence: str) -> Reading:
    """The numbers of a sentence that may be its answer: see the module's contract."""
    bold = [part for part in _BOLD.findall(sentence) if numbers(part)]
    if len(bold) == 1 and sentence.strip("* ") != bold[0].strip():
        start = sentence.index(f"**{bold[0]}**")
        return _of_part(bold[0], sentence[:start])
    said = before_reason(sentence)
    if said is not sentence and _OPENS.match(said[: numbers(said)[0].start] if numbers(said) else "?"):
        sentence = said
    shown = _ASIDE.sub("", sentence)
    parts = re.split(r"(?<![<>≥≤≠!])[=≈]", shown if any(map(str.isdigit, shown)) else sentence)
    for position in range(len(parts) - 1, -1, -1):
        reading = _of_part(parts[position])
        if reading.numbers or reading.doubt:
            others = [_of_part(part).numbers[:1] for part in parts[1:position] if _ANOTHER.match(part)]
            return Reading(reading.numbers + sum(others, ()), reading.doubt)
    return Reading(())


def _of_part(part: str, before: str = "") -> Reading:
    found = numbers(part)
    said = [number for number in found if not _DENIED.search(before + part[: number.start])]
    if not said:
        return Reading(tuple(found), doubt=bool(found))
    opens = said[0] is found[0] and _OPENS.match(part[: said[0].start]) is not None
    if len(found) > 1 and opens:
        gaps = [part[one.end : other.start] for one, other in pairwise(found)]
        if all(_OF_WHAT.search(gap) or number not in said for gap, number in zip(gaps, found[1:], strict=True)):
            said = said[:1]
        elif _COMPOUND.fullmatch(gaps[0]) and found[1] in said:
            return Reading(tuple(said), doubt=True)
    return Reading(tuple(said), any(number.doubtful for number in said))


def _unannounced(text: str, question: str) -> Reading:
    """The last sentence with a number that is no closing remark, and what was computed before it.

    In doubt: a remark's own number, and what a closing paragraph says of the solution rather than of the question.
    """
    last, remarked = Reading(()), False
    parts = sentences(text)
    closes = "\n\n" in text
    for sentence in reversed(parts):
        shown = _prepared(sentence[-MAX_SPAN:]) if len(parts) == 1 else plain(sentence[-MAX_SPAN:])
        found = Reading(()) if sentence.endswith("?") else _in_sentence(shown, question)
        if not found.numbers:
            continue
        concludes = "=" in sentence or CONCLUDES.match(sentence) is not None
        if not last.numbers:
            remarked = remark(sentence)
            if not remarked and (concludes or not closes):
                return found
            last = Reading(found.numbers, found.doubt or remarked or (closes and _SPEAKS.search(sentence) is not None))
        elif remarked and not remark(sentence):
            return found
        elif concludes:
            return Reading(last.numbers, last.doubt, found.numbers)
    return last


def _in_sentence(sentence: str, question: str) -> Reading:
    """Without a marker: what is bold, else what the last "=" says, else the last number that the question lacks."""
    sentence = _ASIDE.sub("", sentence) or sentence
    if "=" in sentence or "**" in sentence:
        reading = _of_sentence(sentence)
        return Reading(reading.numbers[:1], reading.doubt)
    found = numbers(sentence)
    given = _given(question)
    fresh = [number for number in found if number.values[0] not in given]
    money = [number for number in fresh if "$" in number.written]
    if len(money) == 1 and not _COUNTED.search(question):
        fresh = money  # "She makes $18 in 1 day."
    last = (fresh or found)[-1:]
    return Reading(tuple(last), any(number.doubtful for number in last))


@lru_cache(maxsize=1024)
def _given(question: str) -> frozenset[Fraction]:
    """The values that a question holds; a conclusion seldom repeats one as its answer."""
    return frozenset(number.values[0] for number in numbers(question))


def _values(part: dict[str, str | None]) -> tuple[Fraction, ...] | None:
    """What a match stands for, before its sign; None for what is no number or too long to be one."""
    if part["hour"]:
        return (int(part["hour"]) + Fraction(int(part["minute"] or 0), 60),)
    whole, decimals = re.sub(r"\D", "", part["int"] or ""), part["dec"] or ""
    if part["comma"]:
        whole, _, decimals = part["comma"].partition(",")
        whole, decimals = whole.replace(".", ""), f".{decimals}" if decimals else ""
    if len(whole) > 40 or len(decimals) > 40:
        return None  # a run of digits, not an answer; and Fraction would pay for it
    value = Fraction(f"{whole or 0}{decimals}")
    if part["exp"]:
        value *= Fraction(10) ** int(re.sub(r".*[eE^]\s?\(?", "", part["exp"]).rstrip(")"))
    if part["power"]:
        value **= int(part["power"])
    for numerator, denominator in ((value, part["den"]), (part["num2"], part["den2"])):
        if denominator and (len(denominator) > 40 or int(denominator) == 0):
            return None
        if denominator:
            ratio = Fraction(numerator or 0) / int(denominator)
            value = ratio if numerator is value else value + ratio
    if part["percent"]:
        return (value, value / 100)
    if part["scale"]:
        return (value, value * (_SCALE.get(part["scale"]) or _SCALE[part["scale"].lower()]))
    return (value,)
