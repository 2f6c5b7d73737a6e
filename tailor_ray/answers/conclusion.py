"""Where a text concludes: the reading half of the first verifier, shared by all answer kinds.

In: an attempt's text. Out: the part that holds the conclusion, and whether a marker ("Answer:", "####", "the
answer is", "\\boxed{…}", "A:") announced it. Always holds: linear time in the text's length, which is capped.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from dataclasses import dataclass

MAX_MARKERS = 16  # the last ones; a text that announces more is rambling
MAX_SPAN = 600  # characters of one announced conclusion
MAX_CHARS = 20_000  # of a text's end: 128 to 4,096 tokens fit; a hostile text costs no more than this

# A base model that has answered often goes on with a question of its own; its answer is not to be read.
_NEXT_QUESTION = re.compile(
    r"\n[ \t]{0,8}(?:(?:Question|Q|Problem|User|Human|Input|Instruction)\s*\d{0,3}|(?:Example|Exercise)\s*\d{1,3})\s*:"
    r"|\n###[ \t]*\n|<\|(?:endoftext|im_end|eot_id|end)\|>|</s>"
)
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's calculator annotations: <<48/2=24>>
_MARKER = re.compile(
    r"####"
    r"|\\boxed\s*\{"
    r"|\banswer(?:\s*\([^()\n]{1,40}\))?(?:\s+(?:to|for|of|in)\b[^.:\n=]{0,80}?)?[*_\"')\s]{0,8}"
    r"(?:(?:\bis\b|\bare\b|\bwas\b|(?:would|will|should|must)\s+be\b)(?!\s+not\b)|:|=)"
    r"|(?:^|\n)[*_\s]{0,8}A[*_]{0,3}\s?:"
    r"|(?:^|\n)\s{0,4}[#*]{1,6} ?(?:final )?answer[*]{0,3}\s*\n",  # a heading
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


@dataclass(frozen=True, slots=True)
class Conclusion:
    """`text` is what the marker announces, to its line's end."""

    text: str
    closed: bool  # more text follows it
    opening: bool = False  # no text comes before the marker


def visible(text: str) -> str:
    """The part of an attempt that answers the question: annotations and follow-up questions removed, length capped."""
    text = text[-MAX_CHARS:].rpartition("</think>")[2]
    for written, meant in (("\u2212", "-"), ("\u00a0", " "), ("__", "")):  # a minus sign, a no-break space, bold
        text = text.replace(written, meant)
    follow_up = _NEXT_QUESTION.search(text, 1)
    if follow_up:
        before = text[: follow_up.start()].rstrip()
        if before and not before.endswith(":"):  # "Let me restate it:" comes before the answer, not after it
            text = before + "\n"
    if not text.isascii():
        text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/"), text)
    return _ANNOTATION.sub("", text) if "<<" in text else text


def conclusions(text: str) -> list[Conclusion]:
    """Announced conclusions of a `visible` text, the last first."""
    found = []
    for match in reversed(deque(_MARKER.finditer(text), maxlen=MAX_MARKERS)):
        if match.group().startswith("\\"):
            found.append(_boxed(text, match.end()))
            continue
        announced = _announced(text, match.end(), at_start=not text[: match.start()].strip(" *_#\n"))
        if announced is not None:
            found.append(announced)
    return found


def last_line(text: str) -> str:
    """The last line that is not blank, or ""."""
    return text.rstrip().rpartition("\n")[2].strip()


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence; a decimal point does not."""
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def sentences(text: str) -> list[str]:
    """Sentences and lines, blank ones left out."""
    return [part.strip() for line in text.splitlines() for part in re.split(r"(?<=[.!?])\s+", line) if part.strip()]


def _announced(text: str, start: int, at_start: bool) -> Conclusion | None:
    """The rest of the marker's line, or the next line where that one is empty; None where the marker is a heading."""
    span = text[start : start + MAX_SPAN]
    line, newline, rest = span.partition("\n")
    if not line.strip(" *_:$"):
        line, newline, rest = rest.lstrip("\n ").partition("\n")
        if at_start and rest.strip():
            return None  # "Answer:" over a whole solution announces the solution, not its conclusion
    if not line.strip():
        return None
    return Conclusion(line, closed=bool(newline) or len(span) == MAX_SPAN, opening=at_start)


def _boxed(text: str, start: int) -> Conclusion:
    """The content of \\boxed{…} with its braces balanced."""
    depth = 1
    span = text[start : start + MAX_SPAN]
    for index, character in enumerate(span):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return Conclusion(span[:index], closed=True)
    return Conclusion(span, closed=False)
