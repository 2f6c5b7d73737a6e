"""One spelling of what Unicode and LaTeX have several of, so that both verifiers see the same characters.

`spelled`: accents, quotes, spaces, minus signs, fractions and raised digits of any text. `plain`: LaTeX as plain text.

Both are linear in the text's length. Both read nothing. Which number or letter counts is each verifier's own to say.
"""

from __future__ import annotations

import re
import unicodedata
from string import ascii_letters, digits

_SPELLED = str.maketrans(
    {
        **dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011", "-"),
        **dict.fromkeys("\u2018\u2019\u02bc\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u2033", '"'),
        **dict.fromkeys("\u00a0\u2002\u2003\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", None),
        **{chr(ord(one) + 0xFEE0): one for one in digits + ascii_letters},  # of full width
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
