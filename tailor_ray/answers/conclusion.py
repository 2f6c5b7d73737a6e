"""Where a text concludes: what is announced by "Answer:", "####", "the answer is", "\\boxed{…}", "<answer>", "A:".

In: an attempt's text. Out: its visible part, in one spelling of quotes, spaces, signs and accents, and the announced
conclusions. A heading ("#### Solution") and a label ("Step 2:") announce nothing.

Always holds: linear time in the text's length, which is capped.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

from tailor_ray.answers.spelling import spelled

MAX_MARKERS = 16  # the last ones; a text that announces more is rambling
MAX_SPAN = 600  # characters of one announced conclusion
MAX_CHARS = 20_000  # of a text's end: 128 to 4,096 tokens fit; a hostile text costs no more than this

_THOUGHT = re.compile(r"<(/?)(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_END = re.compile(r"<\|(?:endoftext|im_end|eot_id|end)\|>|</s>")
# A base model that has answered often goes on with a question of its own; its answer is not to be read.
_NEXT_QUESTION = re.compile(
    r"\n[ \t]{0,8}(?:(?:Question|Q|Problem|User|Human|Input|Instruction)\s*\d{0,3}|(?:Example|Exercise)\s*\d{1,3})\s*:"
    r"|\n###[ \t]*\n"
)
CONCLUDES = re.compile(
    r"\W{0,8}(?:so|therefore|thus|hence|in total|altogether|in all|finally|in conclusion)\b", re.IGNORECASE
)
_REASONED = re.compile(  # "So there are 18", "3 * 6 = 18"
    r"(?:^|[.!?]\s|\n)\W{0,8}(?:so|therefore|thus|hence|in total|altogether|in all)\b"
    r"|\d\s?[-+*/×÷x]\s?[$(]{0,2}\w[^=\n]{0,40}=|=\s?[$(]{0,4}\d+\s?[-+*/×÷]",
    re.IGNORECASE,
)
_HASHED = re.compile(r"####[ \t]*[-$€£]?\d[\d,.]*[ \t]*%?[ \t]*\n")  # GSM8K's last line
_TAKES_BACK = re.compile(
    r"(?:^|[.!?(\n])\W*(?:but |oh |no,? |hmm,? )?"
    r"(?:(?:wait|actually|correction|oops|hold on|on second thought|sorry)\b(?=\s?[,:.!-])"
    r"|scratch that|let me (?:re|double)[- ]?\w+)|\?\s{0,3}no\b",
    re.IGNORECASE,
)
_REFUSES = re.compile(
    r"^\W*(?:determined|known|found|calculated|answered|provided|given|unknown|undefined"
    r"|not (?:given|known|possible))\b"
    r"|\b(?:cannot|can't|could not|unable to|not possible to|impossible to) (?:\w+ )?"
    r"(?:determine|answer|calculate|find|know|tell|say|solve)"
    r"|\b(?:cannot|can't) be (?:\w+ )?(?:determined|answered|calculated|found|known|solved)|\bnot enough information",
    re.IGNORECASE,
)
_ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's calculator annotations: <<48/2=24>>
_ANNOUNCES = (
    r"(?:\s*\([^()\n]{1,40}\))?(?:\s+(?:to|for|of|in)\b[^.:\n=]{0,80}?)?[*_\"')\s]{0,8}"
    r"(?:is\b|are\b|was\b|isn't|(?:would|will|should|must|can|could)(?:n't|not)?\s+(?:not\s+)?be\b|:|=)"
)
_WORDS = (("a", "nswer"), *((word[0], f"{word[1:]} (?:option|choice)") for word in ("correct", "right", "best")))
# Every alternative begins with one character: re then looks for these first, six times as fast.
_MARKER = re.compile(
    r"####|\\(?:boxed|fbox)\s*\{|<(?i:answer)>|\n[*_\s]{0,8}[Aa][*_]{0,3}\s?:"
    r"|\n\s{0,4}[#*]{1,6} ?(?i:(?:final )?answer)[*]{0,3}\s*\n|"  # a heading
    + "|".join(rf"{c}(?<!\w{c})(?i:{rest}{_ANNOUNCES})" for first, rest in _WORDS for c in (first, first.upper()))
)
_HEADING = re.compile(r"\W*(?!(?:yes|no|true|false|answer)\b)[A-Za-z]{2,}|[\W_]*\d{1,2}[.)]\s+[A-Za-z]", re.IGNORECASE)
_LABEL = re.compile(
    r"(?<!#)#\d{1,3}\b|\b(?:step|part|case|question|problem|example|exercise|equation|figure|phase|method|option)\s?#?\d{1,3}\b[.:)]?",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^[ \t*_]{0,8}\(?(\d{1,2})[.)][*_]{0,2}[ \t]+(?=\S[^\n]*[A-Za-z(])", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*[-*•–][ \t]+", re.MULTILINE)
_REMARK = re.compile(
    r"^\W*(?:note|p\.? ?s\b|rating|score|confidence|certainty|i checked|i verified|this took|for example)\b"
    r"|\b(?:sure|certain|confident)\W*$|\b(?:hope|let me know|feel free|ask me)\b",
    re.IGNORECASE,
)
_REASON = re.compile(
    r";|\s[–—]\s|\s-\s(?![\d$])|,?\s(?:because|since|that is|i\.e\.|which|where|as (?:she|he|it|they|there))\b",
    re.IGNORECASE,
)
_DENIED = re.compile(r"n't\b|not\b", re.IGNORECASE)
_SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?<!\bRs)(?<!\bapprox)(?<!\bNo)[.!?][*_\"')]{0,4}(?=\s|$)"
)


@dataclass(frozen=True, slots=True)
class Conclusion:
    """`text` is what the marker announces, to its line's end; `rest` what follows it, capped."""

    text: str
    closed: bool  # more text follows it
    opening: bool = False  # no text comes before the marker
    below: bool = False  # on a line of its own below the marker
    denied: bool = False  # "the answer is not …"
    rest: str = ""

    @property
    def taken_back(self) -> bool:
        """Whether the text goes on with "Wait, …" or its like."""
        after = self.text[len(first_sentence(self.text)) :]
        return self.denied or _TAKES_BACK.search(f"{after}\n{self.rest}") is not None


def thinks(text: str) -> bool:
    """Whether a text ends inside a thought that it never closes."""
    if "<" not in text:
        return False
    tags = deque(_THOUGHT.finditer(text), maxlen=1)
    return bool(tags) and not tags[0][1]


def visible(text: str) -> str:
    """The part of an attempt that answers the question, in one spelling.

    Thoughts, end tokens, calculator annotations and follow-up questions are removed; of a long text the last MAX_CHARS
    characters are read. What every other reader here calls a `visible` text is what this returns.
    """
    text = spelled(text[-MAX_CHARS:])
    for tag in deque(_THOUGHT.finditer(text), maxlen=1):
        text = text[tag.end() :]
    end = _END.search(text, 1)
    text = _cut(text[: end.start()] + "\n" if end else text)
    return _ANNOTATION.sub("", text) if "<<" in text else text


@lru_cache(maxsize=8)  # the verifiers ask in turn
def conclusions(text: str) -> tuple[Conclusion, ...]:
    """The announced conclusions of a `visible` text.

    Returns the last one first, and at most MAX_MARKERS of them.
    """
    text = f"\n{text}"
    found = []
    for match in reversed(deque(_MARKER.finditer(text), maxlen=MAX_MARKERS)):
        if match[0].startswith("\\"):
            found.append(_boxed(text, match.start(), match.end()))
            continue
        announced = _announced(text, match)
        if announced is not None:
            found.append(announced)
    return tuple(found)


def refuses(text: str) -> bool:
    """Whether the last conclusion of a `visible` text says that there is no answer."""
    for said in conclusions(text)[:1]:
        gives = re.match(r"[\W_]*(?:about |approximately )?[$€£]?\d", said.text)
        return gives is None and _REFUSES.search(first_sentence(said.text)) is not None
    return False


def heads(text: str) -> bool:
    """Whether what follows "####" is a heading: words, with more below them."""
    line, _, rest = text.partition("\n")
    return bool(rest.strip()) and _HEADING.match(line) is not None


def last_line(text: str) -> str:
    """The last line that is not blank, or ""."""
    return text.rstrip().rpartition("\n")[2].strip()


def first_sentence(text: str) -> str:
    """The text up to the first full stop that ends a sentence.

    A decimal point ends none, nor does the point of "Mr." or "approx.".
    """
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def before_reason(sentence: str) -> str:
    """What a sentence says before it says why: "42, because she has 6 boxes of 7" says 42.

    Returns the whole sentence where no number stands before the reason.
    """
    reason = _REASON.search(sentence)
    return sentence[: reason.start()] if reason and _numbered(sentence[: reason.start()]) else sentence


def sentences(text: str) -> list[str]:
    """Sentences and lines, blank ones left out."""
    return [part.strip() for line in text.splitlines() for part in re.split(r"(?<=[.!?])\s+", line) if part.strip()]


def unlabelled(text: str, inline: bool = False) -> str:
    """A text without what only counts its steps: "Step 2:", bullets, and "2." or "2)" before a line with a number.

    Below a line that ends in a colon "2." may be the answer. There it goes only if it is one of a list. With `inline`
    the text begins behind a marker on its line, and a number there is none of this.
    """
    if inline:
        line, newline, rest = text.partition("\n")
        return _LABEL.sub(" ", line) + newline + (unlabelled(rest) if rest else "")
    text = _BULLET.sub("", _LABEL.sub(" ", text))
    items = {int(item[1]) for item in _ITEM.finditer(text)}
    listed = {number for number in items if number - 1 in items or number + 1 in items}

    def bare(item: re.Match[str]) -> str:
        number = int(item[1])
        announced = text[max(0, item.start() - 16) : item.start()].rstrip(" *_\n").endswith(":")
        counts = number < 10 and not announced and _numbered(text[item.end() : item.end() + MAX_SPAN])
        return "" if number in listed or counts else item[0]

    return _ITEM.sub(bare, text) if items else text


def remark(sentence: str) -> bool:
    """Whether a sentence is an aside or speaks of itself: "(3 + 4 = 7)", "I am 100% sure.", "Confidence: 95%"."""
    if sentence.startswith("(") and sentence.rstrip(". ").endswith(")"):
        return True
    return _REMARK.search(sentence) is not None and "=" not in sentence


def _numbered(text: str) -> bool:
    return any(character.isdigit() for character in text[:MAX_SPAN].partition("\n")[0])


def _cut(text: str) -> str:
    """The text before a question that follows a conclusion; a problem that is restated comes before one."""
    hashed = _HASHED.search(text)
    if hashed and not _TAKES_BACK.search(text, hashed.end()):
        return text[: hashed.end()]
    follow_up = _NEXT_QUESTION.search(text, 1)
    if follow_up:
        marker = _MARKER.search(text)
        concluded = marker.end() if marker else len(text)
        reasoned = _REASONED.search(text)
        concluded = min(concluded, reasoned.end()) if reasoned else concluded
        if follow_up.start() < concluded:
            follow_up = _NEXT_QUESTION.search(text, concluded)
    if follow_up:
        before = text[: follow_up.start()].rstrip()
        if before and not before.endswith(":"):  # "Let me restate it:" comes before the answer, not after it
            return before + "\n"
    return text


def _announced(text: str, marker: re.Match[str]) -> Conclusion | None:
    """The rest of the marker's line, or the next line where that one is empty; None where the marker is a heading."""
    start = marker.end()
    at_start = not text[: marker.start()].strip(" *_#\n")
    span = text[start : start + MAX_SPAN]
    line, newline, rest = span.partition("\n")
    below = not line.strip(" *_:$")
    if marker[0] == "####" and heads(span):
        return None
    if marker[0].lower() == "<answer>":
        said, closing, after = span.partition("</")
        return Conclusion(said.strip(), closed=bool(closing), rest=after) if said.strip() else None
    if below or (line.rstrip(" *_").endswith(":") and len(line) < 60 and rest.strip()):  # "the answer is as follows:"
        below = True
        line, newline, rest = rest.lstrip("\n ").partition("\n")
        opened = line.strip(" *_")
        if opened in ("\\[", "$$"):  # display mathematics on lines of its own
            said, closing, rest = rest.partition("\\]" if opened == "\\[" else "$$")
            line, newline = f"${' '.join(said.split())}$", closing
        listed = _LABEL.match(line.strip(" *_")) or _ITEM.match(line)
        if rest.strip() and (at_start or (listed and _numbered(rest.lstrip()))):
            return None  # "Answer:" over a whole solution announces the solution, not its conclusion
    if not line.strip():
        return None
    return Conclusion(
        line,
        closed=bool(newline) or len(span) == MAX_SPAN,
        opening=at_start,
        below=below,
        denied=_DENIED.search(marker[0]) is not None,
        rest=rest,
    )


def _boxed(text: str, begin: int, start: int) -> Conclusion:
    """The content of \\boxed{…} with its braces balanced, joined with those of the boxes before it on its line."""
    depth = 1
    span = text[start : start + MAX_SPAN]
    for index, character in enumerate(span):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            before = text[max(0, begin - MAX_SPAN) : begin].rpartition("\n")[2]
            if before.rstrip().endswith((" or", " and", "},", "}$,")) and "\\boxed" in before:
                return Conclusion(f"{before} {span[:index]}", closed=True)
            return Conclusion(span[:index], closed=True, rest=span[index + 1 :])
    return Conclusion(span, closed=False)
