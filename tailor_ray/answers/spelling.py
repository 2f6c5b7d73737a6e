"""One spelling of what Unicode, LaTeX and English have several of, so that both verifiers see the same characters.

`spelled`: accents, quotes, spaces, minus signs, fractions and raised digits of any text. `plain`: LaTeX as plain text.
`digits`: number words as the digits that they stand for. "Two hundred and five" is 205 and "three quarters" is 3/4.
"Two and a half" becomes 2.5, "seven point five" 7.5, and "half a million" 0.5 million.

Always holds. All are linear in the text's length. A run of number words is read to its end or not at all. One that
makes no number ("nineteen eighty-four") becomes UNREAD, which no reader takes for a value. Which number or letter
counts is each verifier's own to say.
"""

from __future__ import annotations

import re
import string
import unicodedata
from fractions import Fraction

_SPELLED = str.maketrans(
    {
        **dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011", "-"),
        **dict.fromkeys("\u2018\u2019\u02bc\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u2033", '"'),
        **dict.fromkeys("\u00a0\u2002\u2003\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", None),
        **{chr(ord(one) + 0xFEE0): one for one in string.digits + string.ascii_letters},  # of full width
        "\u2044": "/",
        "\u2215": "/",
        "\uff0c": ",",
        "\uff1a": ":",
        "\uff0e": ".",
    }
)
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_GROUPED = re.compile(r"(?<=\d)[\u2007\u2009\u202f'](?=\d{3}(?!\d))")  # 12'500, and by thin spaces
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|tt|sf)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname|boxed|fbox)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]{1,60})\}\s*\{([^{}]{1,60})\}|(\d)(\d)|(\d)\s*\{(\d{1,9})\})")
_ROOT = re.compile(r"\\sqrt\s*\{([^{}]{1,60})\}")
_POWER = re.compile(r"\^\s*\{\s*([^{}]{1,20}?)\s*\}")
_COMMANDS = {
    **dict.fromkeys(("left", "right", "displaystyle", "bf", "rm", "it", "limits"), ""),
    **dict.fromkeys(("quad", "qquad", "hspace", "space"), " "),
    **dict.fromkeys(("ge", "geq", "geqslant"), "≥"),
    **dict.fromkeys(("le", "leq", "leqslant"), "≤"),
    **dict.fromkeys(("ne", "neq"), "≠"),
    **dict.fromkeys(("approx", "simeq", "sim"), "≈"),
    "times": "×",
    "cdot": "·",
    "div": "÷",
    "pm": "±",
    "pi": "π",
    "circ": "°",
    "sqrt": "√",
    "gt": ">",
    "lt": "<",
    "degree": "°",
    "infty": "∞",
    "dollar": "$",
    "pounds": "£",
    "euro": "€",
    "cents": " cents",
    "percent": "%",
}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_ESCAPED = re.compile(r"\\([$%&#_{}])")
_SPACING = re.compile(r"\\[,;:! ]|~|\\[()\[\]]|\\\\")


def spelled(text: str) -> str:
    """One spelling of what Unicode has several of.

    That is accents, quotes, spaces, minus signs, fractions and raised digits. Returns a text that both verifiers read.
    """
    if text.isascii():
        return _GROUPED.sub(",", text) if "'" in text else text
    text = unicodedata.normalize("NFC", text).translate(_SPELLED)
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/"), text)
    text = _RAISED.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]).translate(_SPELLED), text)
    return re.sub("[\u2007\u2009\u202f]", " ", _GROUPED.sub(",", text))


def plain(text: str) -> str:
    """LaTeX as plain text: "\\frac{3}{4}" as 3/4, "\\text{ml}" as ml, "\\times" as ×.

    Unknown commands stay as they are.
    """
    if "\\" not in text and "{" not in text and "~" not in text:
        return text
    text = _SPACING.sub(
        lambda match: "" if match[0] == "\\!" else " ", text.replace("{,}", ",").replace("^\\circ", "°")
    )
    text = _ESCAPED.sub(r"\1", text)
    for _ in range(3):  # as deep as answers nest
        before = text
        text = _TEXT.sub(r"\1", text)
        text = _FRACTION.sub(_quotient, text)
        text = _POWER.sub(r"^(\1)", _ROOT.sub(r"√(\1)", text))
        if text == before:
            break
    return _COMMAND.sub(lambda match: _COMMANDS.get(match[1], match[0]), text)


def _quotient(match: re.Match[str]) -> str:
    above, below = (next(filter(None, match.groups()[start::2])).strip() for start in (0, 1))
    mixed = " " if match.string[match.start() - 1 : match.start()].isdigit() else ""  # 2\frac{3}{8} is 2 3/8
    return f"{mixed}{above}/{below}" if above.isdigit() and below.isdigit() else f"{mixed}({above})/({below})"


# Number words.

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
    """The text with its number words as digits, as the module's contract says."""
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
