"""Spelled-out numbers: cardinals, fractions, decimals and dozens as the digits that they stand for.

In: a text. Out: the same text with "two hundred and five" as "205" and "three quarters" as "3/4". "Two and a half"
becomes "2.5", "seven point five" "7.5", and "half a million" "0.5 million".

Always holds. A run of number words is read to its end or not at all. One that makes no number ("nineteen eighty-four")
becomes UNREAD, which no reader takes for a value.
"""

from __future__ import annotations

import re
from fractions import Fraction

UNREAD = "\u241a"
_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: value for value, word in enumerate(_ONES)} | {word: 20 + 10 * i for i, word in enumerate(_TENS)}
SCALES = {"dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS = ["third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"]
_PARTS = {"half": 2, "quarter": 4, "hundredth": 100, **{word: value for value, word in enumerate(_ORDINALS, start=3)}}
_PLURALS = {"halves": 2, **{f"{word}s": value for word, value in _PARTS.items() if word != "half"}}

_CARDINAL = "|".join(sorted([*_VALUES, "hundred", *SCALES], key=len, reverse=True))
_PART = "|".join(sorted([*_PARTS, *_PLURALS], key=len, reverse=True))
_RUN = re.compile(
    rf"(?<![\w-])(?:half\s+an?\s+(?:{'|'.join(SCALES)})|half|(?:an?\s+(?:hundred|{'|'.join(SCALES)}|{_PART})|{'|'.join(_VALUES)})"
    rf"(?:(?:\s+and\s+an?\s+|\s+and\s+|\s+|-)(?:{_CARDINAL}|{_PART}|point(?=\s+(?:{_CARDINAL})\b))(?!\w))*)(?!\w|-[a-z])",
    re.IGNORECASE,
)
_MIXED = re.compile(rf"(?<![\w.,/])(\d{{1,9}})\s+and\s+(an?|{'|'.join(_ONES[1:10])})\s+({_PART})\b", re.IGNORECASE)
_NONE = re.compile(r"\bnone\b", re.IGNORECASE)


def digits(text: str) -> str:
    """The text with its number words as digits; see the module's contract. Linear in the text's length."""
    text = _MIXED.sub(lambda match: _written(_value([match[2].lower(), match[3].lower()]), int(match[1])), text)
    text = _RUN.sub(lambda match: _run(re.split(r"[\s-]+", match[0].lower())), text)
    return _NONE.sub("0", text)


def _run(words: list[str]) -> str:
    scale = SCALES.get(words[-1])
    if scale:
        count = _value(words[:-1])
        if count is not None and count < 1000:  # "2 million" may be counted in millions
            return f"{_written(count)} {words[-1]}"
    return _written(_value(words))


def _written(value: Fraction | None, whole: int = 0) -> str:
    if value is None:
        return f"0{UNREAD}"
    value += whole
    return f"{float(value):g}" if value.denominator in (2, 4, 10, 100, 1000) and value < 10**5 else str(value)


def _value(words: list[str]) -> Fraction | None:
    """What a whole run of words stands for, or None."""
    if words[-1] in _PARTS or words[-1] in _PLURALS:
        whole, counted = words[:-1], words[:-1]
        if "and" in words:
            split = len(words) - 1 - words[::-1].index("and")
            whole, counted = words[:split], words[split + 1 : -1]
        else:
            whole = []
        if not counted and words == ["half"]:
            counted = ["one"]
        count, base = _cardinal(counted), _cardinal(whole) if whole else 0
        singular = words[-1] in _PARTS
        if count is None or base is None or (singular and count != 1) or count > 99:
            return None
        return base + Fraction(count, _PARTS[words[-1]] if singular else _PLURALS[words[-1]])
    if "point" in words:
        split = words.index("point")
        whole_part, decimals = _cardinal(words[:split]), [_VALUES.get(word, 10) for word in words[split + 1 :]]
        if whole_part is None or max(decimals, default=10) > 9:
            return None
        return Fraction(f"{whole_part}.{''.join(map(str, decimals))}")
    if words[0] == "half" and len(words) == 2:
        return Fraction(1, 2)  # half a (dozen)
    value = _cardinal(words)
    return None if value is None else Fraction(value)


def _cardinal(words: list[str]) -> int | None:
    """An English cardinal. `room` is what may still be added to the group: 1 to 9 after "twenty"."""
    total, group, room, before = 0, 0, 10**12, 10**15
    for word in words:
        if word in ("a", "an"):
            group, room = (1, 1) if not group else (group, room)
        elif word in _VALUES:
            value = _VALUES[word]
            if value >= room or (value == 0 and len(words) > 1):
                return None
            group, room = group + value, 10 if value >= 20 else 1
        elif word == "hundred":
            if not 0 < group < 100:
                return None
            group, room = group * 100, 100
        elif word in SCALES:
            if not group or SCALES[word] >= before:
                return None
            total, before = total + group * SCALES[word], SCALES[word]
            group, room = 0, SCALES[word]
        elif word != "and":
            return None
    return total + group if words else None
