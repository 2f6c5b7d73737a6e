"""The second verifier of kind `number`: does the announced sentence, or the closing one, hold the gold value?

It reads otherwise than the first (`numbers.py`), which looks for one number by the paper's rule. Here the ending is cut
into arithmetic expressions. Each is computed exactly ("9 * 2", "1.5 × 10^3", "3/4", "18"). Their values make a set. The
two share the spelling of characters and words, and that labels are no numbers.

It is lenient where the first is strict. A text is a mistake only when the gold value is nowhere in its ending. It is
correct only when the first verifier's one number is right as well. What cannot be computed (2π, 1.2.3) is no proof of a
mistake, and the answer is None.

Always holds. An expression has at most MAX_EXPRESSION characters, and digits and exponents are bounded. So no text
takes longer than its capped length deserves. Nothing symbolic is computed.
"""

from __future__ import annotations

import ast
import re
from collections import deque
from fractions import Fraction
from math import factorial

from tailor_ray.answers.conclusion import before_reason, heads, remark, unlabelled
from tailor_ray.answers.numbers import Gold, Number
from tailor_ray.answers.spelling import SCALES, UNREAD, digits, plain

MAX_ENDING = 400  # characters of one sentence
MAX_ANNOUNCED = 16  # announcements looked at, from the end
MAX_EXPRESSION = 120
MAX_DIGITS = 40
# Every alternative begins with one character: re then looks for these first.
_ANNOUNCED = re.compile(
    r"####|\\(?:boxed|fbox)|<answer>|\n\W{0,8}[Aa]\W{0,3}:|\n\W{0,8}(?i:(?:final )?answer)\W{0,3}(?=\n)|"
    + "|".join(rf"{a}(?i:nswers?\b[^.\n=:]{{0,90}}?(?:\b(?:is|are|was|be)\b|n't|[:=]))" for a in "aA")
)
_SENTENCE = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bRs\.)(?<!\bMrs\.)(?<!\bapprox\.)\s+|\n")
_RETRACTS = re.compile(  # "We can't determine the answer.", "If she buys more, it is different."
    r"n't (?:know|have|determine|make)|\b(?:cannot|but|however|if|unless|assuming|depends|different|without|"
    r"impossible|error|mistakes?|incorrect|incomplete|inconsistent|undefined|not (?:possible|true|enough|clear))\b",
    re.IGNORECASE,
)
_EXPRESSION = re.compile(
    r"(?<![A-Za-z_])[-–(]{0,8}(?:[$€£¥₹]\s?)?[(]{0,4}[-–]?\.?\d"
    r"(?:[\d.,()%^]|(?<=\d)'(?=\d)|(?<=[\d)%^*])\s?\*\*?\s?(?=[\d(.$-])|[eE](?=[+-]?\d)"
    r"|\s?[-–+×·÷/]\s?(?=[\d(.$€£-])|\s[xX]\s(?=[\d$])|(?<=\d)[xX](?=\d)|(?<=\d) (?=\d+/\d)|[$€£]\s?(?=\d))*"
)
_UNKNOWN = re.compile(
    rf"(?<=\d)\s?[π√∞{UNREAD}\\]|(?<=\d)[xyznie!:_](?![A-Za-z.!?]|\s|$)|(?<=\d)[xyzni](?![A-Za-z\d])|[√∞\\][({{\s]?\d"
)
_SCALE = re.compile(r"\s?(?:(hundred|thousand|million|billion|trillion|dozen)\b|([kK]|mn|M|bn|B)\b)", re.IGNORECASE)
_SHORT = {"k": 10**3, "m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9}
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\^\(?\d\)?")  # cm^2
_ASIDE = re.compile(r"(?<=[\w.%]) \(([^()\n]*=[^()\n]*)\)")
_OPERATOR = re.compile(r"[\d)%]\s?[-–+*×·÷/x]|[+*×·÷/]\s?[\d(a-z]")
_CLOCK = re.compile(r"(?<![\d:])(\d{1,2}):([0-5]\d)(?![\d:])")
_EUROPEAN = re.compile(r"\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,3}(?:\.\d{3}){2,}")
_COMMAS = re.compile(r"\d{1,3}(?:,\d\d\d?)*,\d{3}(?:\.\d+)?")
_SPACED = re.compile(r"(?<![\d.,/])\d{1,3}(?: \d{3})+(?![\d,/]| ?\d)")
_SIGN = re.compile(r"((?:^|[:=({]|\b(?:is|be|are)\b)[\s*]*)(?:[-–] |(?:negative|minus) )(?=[$€£]?\.?\d)", re.IGNORECASE)


def says(text: str, gold: Gold) -> bool | None:
    """Whether a `visible` text's ending holds the gold number.

    Returns None where it cannot be told: there is no number, or one of unknown value.
    """
    announced, rest = _ending(text)
    held = _holds(announced, gold)
    closing, concludes = _closing(rest)
    closing_held = [_holds(sentence, gold) for sentence in closing]
    if held is True or (concludes and True in closing_held):
        return True
    if announced or not closing:
        return held
    # "We get 6 = 21. This cannot be." does not conclude; that it holds the gold value proves nothing.
    return closing_held[-1] if True not in closing_held else None


def _ending(text: str) -> tuple[str, str]:
    """The last announcement with a number, to the end of its sentence, or ""; and the text that follows it."""
    text = f"\n{text}"
    for announcement in reversed(deque(_ANNOUNCED.finditer(text), maxlen=MAX_ANNOUNCED)):
        written = text[announcement.end() : announcement.end() + 3 * MAX_ENDING]
        if announcement[0] == "####" and heads(written):
            continue
        said = written.lstrip(" \n*:=_")
        said = unlabelled(said, inline="\n" not in written[: len(written) - len(said)])
        parts = [part for part in _SENTENCE.split(said) if part.strip()]
        if (
            len(parts) > 1
            and not said[:3].strip("$-. ")[:1].isdigit()
            and not text[: announcement.start()].strip(" *#\n")
        ):
            continue  # "A: First she sells 3. Then …" announces a solution, not its conclusion
        for position, sentence in enumerate(parts):
            if _numbered(sentence) or (position == 0 and digits(sentence) != sentence):
                return sentence[:MAX_ENDING], said[said.find(sentence) + len(sentence) :]
    return "", unlabelled(text)


def _closing(text: str) -> tuple[list[str], bool]:
    """The last sentence with a digit, those before it while it is an aside, and whether nothing after takes it back."""
    found: list[str] = []
    concludes = True
    for sentence in reversed(_SENTENCE.split(text.strip()[-3 * MAX_ENDING :])):
        if _numbered(sentence) and not sentence.rstrip().endswith("?"):
            found.append(sentence[-MAX_ENDING:])
            if not remark(sentence):
                break
        elif not found:
            concludes = concludes and not _RETRACTS.search(sentence)
    return found, concludes


def _numbered(sentence: str) -> bool:
    return any(map(str.isdigit, sentence))


def _holds(sentence: str, gold: Gold) -> bool | None:
    """Whether one of a sentence's expressions has the gold value; None where one has no value, or there is none.

    What stands before "=" is how the value was come by: of it a number alone counts ("2 weeks = 14 days").
    """
    text = _SPACED.sub(lambda match: match[0].replace(" ", ","), _SIGN.sub(r"\1-", digits(plain(sentence))))
    text = _UNIT_POWER.sub("", text)
    text = _CLOCK.sub(lambda match: f"({match[1]}+{match[2]}/60)", text)
    found, known = False, True
    for clause in dict.fromkeys(
        (before_reason(text), _ASIDE.sub(" ", text), *_ASIDE.findall(text))
    ):  # "50 (5 x 10 = 50)"
        *before, last = re.split(r"(?<![<>≥≤≠!])[=≈]", clause)
        known = known and _UNKNOWN.search(last) is None
        for part in (*(part for part in before if not _OPERATOR.search(part)), last):
            for match in _EXPRESSION.finditer(part):
                found = True
                value = _value(match[0])
                known = known and value is not None
                if value is not None and gold.meant_by(_meant(value, match[0], part[match.end() :])):
                    return True
                known = known and not (value is not None and gold.rounds_to(value))
    return False if found and known else None


def _meant(value: Fraction, written: str, after: str) -> Number:
    """An expression's value with what its suffix makes of it."""
    scale = _SCALE.match(after)
    if scale:
        by = _SHORT[scale[2].lower()] if scale[2] else (SCALES | {"hundred": 100})[scale[1].lower()]
        return Number("", (value, value * by))
    if after.startswith("!") and value.denominator == 1 and 0 <= value <= 20:
        return Number("", (value, Fraction(factorial(int(value)))))  # "The answer is 5!" is seldom 120, but may be
    percent = written.endswith("%") or re.match(r"\s?(?:%|per\s?cent)", after)
    return Number("%", (value, value / 100)) if percent else Number("", (value,))


def _value(written: str) -> Fraction | None:
    """What an expression comes to, exactly; None where it is none or too large to compute."""
    text = re.sub(r"[$€£¥₹%]", "", written).strip().rstrip(".,").replace("–", "-")
    if re.fullmatch(r"-?\d{1,15}(?:\.\d{1,15})?", text):
        return Fraction(text)
    if len(text) > MAX_EXPRESSION:
        return None
    text = _EUROPEAN.sub(lambda match: match[0].replace(".", "").replace(",", "."), text)
    text = _COMMAS.sub(lambda match: match[0].replace(",", ""), text)
    text = re.sub(r"(\d) (\d+/\d+)", r"(\1+\2)", text)
    text = re.sub(r"\s?[×·xX]\s?", "*", text).replace("÷", "/").replace("^", "**")
    text += ")" * max(0, text.count("(") - text.count(")"))
    while text.count(")") > text.count("(") and text.endswith(")"):
        text = text[:-1]
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    try:
        return _compute(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _compute(node: ast.expr) -> Fraction:
    """The value of an expression of numbers. Raises ValueError for anything else, and for what is too large."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        written = repr(node.value)
        if len(written) > MAX_DIGITS or "inf" in written:
            raise ValueError(written)
        return Fraction(written)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _compute(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if not isinstance(node, ast.BinOp):
        raise ValueError(ast.dump(node)[:80])
    left, right = _compute(node.left), _compute(node.right)
    match node.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.Pow() if right.denominator == 1 and abs(right) <= MAX_DIGITS and abs(left) <= 10**MAX_DIGITS:
            if left.denominator.bit_length() + abs(left.numerator).bit_length() > 2**9:
                raise ValueError("too large to raise")
            return left ** int(right)
    raise ValueError(type(node.op).__name__)
