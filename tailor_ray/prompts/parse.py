"""Reading a teacher's reply: JSON by schema, tagged text, text under headings, or plain prose with a conclusion.

In: the reply's text as received. Out: a Reply. It holds the rationale without its conclusion line, the answer that it
states, and for feedback what went wrong and the student's first wrong step. Thinking that a model left in its reply is
cut away. An object or tags are found wherever they stand.

Nothing is judged here. Any text at all is read without an error, in time that grows with its length and not faster.
What cannot be found is None or empty. `Reply.markup` is what of our form is left in a text that should have none.

`plain_text` writes a rationale as the student is to write it. It keeps the words and numbers, and takes away `**`,
headings, code fences, `\\boxed` and the commands that arithmetic takes. A text that is plain stays what it is, to the
letter: `3 * 4`, `$5` and `2 < 3` are. `typeset` finds what is left of Markdown or LaTeX then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

FIELDS = ("feedback", "wrong_step", "rationale", "answer")

_THINKING = r"think(?:ing)?|thoughts?|reflection|scratchpad|analysis|reasoning|inner_monologue"
_CLOSED = re.compile(
    rf"</(?:\w{{1,12}}:)?(?:{_THINKING})\s{{0,2}}>|\[/(?:{_THINKING})\]|◁/think▷"
    r"|<\|(?:end_of_thought|end_thinking|/thinking)\|>",
    re.IGNORECASE,
)
_OPENED = re.compile(
    rf"<(?:\w{{1,12}}:)?(?:{_THINKING})\s{{0,2}}>|\[(?:THINK|THINKING)\]|◁think▷"
    r"|<\|(?:begin_of_thought|start_thinking|thinking)\|>",
    re.IGNORECASE,
)
_FINAL = re.compile(  # harmony, and what is left of it where a server hides its marks
    r"<\|channel\|>\s{0,4}final\s{0,4}(?:<\|constrain\|>\w{0,20})?\s{0,4}<\|message\|>|assistantfinal"
)
_TOKEN = re.compile(r"<\|(?:start|end|message|channel|return|call|im_start|im_end|eot_id|endoftext)\|>")
_TAG = re.compile(rf"<\s{{0,2}}(/?)\s{{0,2}}({'|'.join(FIELDS)})\s{{0,2}}>", re.IGNORECASE)
_HEADING = re.compile(
    r"^[ \t]{0,3}(?:#{1,6}[ \t]{0,3}|[*_]{1,3})?(feedback|rationale|answer|final answer)"
    r"[ \t]{0,3}(?::[*_]{0,3}|[*_]{1,3}:?|$)[ \t]{0,3}",
    re.IGNORECASE | re.MULTILINE,
)
_OBJECT = re.compile(r"\{\s*[\"}]")
OBJECTS = 16  # looked at in one reply
_LEFT = re.compile(
    rf"\{{\s{{0,4}}\"|```|</?\s{{0,2}}(?:{'|'.join(FIELDS)}|{_THINKING})\s{{0,2}}>"
    rf"|\"(?:{'|'.join(FIELDS)})\"\s{{0,4}}:|\[/?THINK\]|<\|\w{{1,20}}\|>"
    r"|^[ \t]{0,3}#{1,6}[ \t]{1,3}(?:feedback|rationale|answer)\b"
    rf"|</\s{{0,2}}[a-z][\w:.-]{{0,24}}\s{{0,2}}>|&lt;/?(?:{'|'.join(FIELDS)})|\{{\s{{0,4}}'(?:{'|'.join(FIELDS)})'",
    re.IGNORECASE | re.MULTILINE,
)
# LaTeX whose first letters JSON takes for an escape; \f and \b begin nothing else in a rationale.
_LATEX = re.compile(
    r"(?<!\\)\\(?=(?:[fb][a-z]|times|text|theta|tau|tan|tfrac|to|top|triangle|therefore|nu|nabla|neg|neq|not|ne|ni|rho"
    r"|right|rightarrow|rm|rangle|rceil|rfloor|Rightarrow)(?![a-z]))|(?<!\\)\\(?=[fb][a-z])"
)
_BAD_ESCAPE = re.compile(r"\\(?:\\|([^\"\\/bfnrtu]|u(?![0-9a-fA-F]{4})))")
_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
_CONCLUSION = re.compile(
    r"^[\s*#>_-]*(?:(?:final\s+)?answer(?:\s+is)?\s*[:=]|(?:therefore|thus|so|hence)?,?\s*the\s+(?:final\s+)?answer\s+is)"
    r"\s*:?\s*(?P<answer>\S.*)$",
    re.IGNORECASE,
)
_MARKDOWN = (
    (re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+", re.MULTILINE), ""),  # headings
    (re.compile(r"(?<![\w*])\*\*(?=\S)([^*\n]+?)(?<=\S)\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w_])__(?=\S)([^_\n]+?)(?<=\S)__(?![\w_])"), r"\1"),
    (re.compile(r"^[ \t]*[*•][ \t]+(?=[^\d\s])", re.MULTILINE), "- "),
    (re.compile(r"^```\w*[ \t]*\n?", re.MULTILINE), ""),
    (re.compile(r"`([^`\n]+)`"), r"\1"),
    (re.compile(r"^[ \t]*(?:-{3,}|\*{3,})[ \t]*\n", re.MULTILINE), ""),  # rules
)
_BRACED = r"\{([^{}\n]*)\}"
_COMMANDS = (
    (re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf|mbox|fbox|operatorname)\s?" + _BRACED), r"\1"),
    (re.compile(r"\\[dt]?frac\s?" + _BRACED + r"\s?" + _BRACED), r"\1/\2"),
    (re.compile(r"\\(?:left|right|big|Big)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\\(?:leq?|leqslant)(?![a-zA-Z])"), "<="),
    (re.compile(r"\\(?:geq?|geqslant)(?![a-zA-Z])"), ">="),
    (re.compile(r"\\(?:approx|sim)(?![a-zA-Z])"), "≈"),
    (re.compile(r"\\(?:Rightarrow|rightarrow|to|implies)(?![a-zA-Z])"), "->"),
    (re.compile(r"\\(?:quad|qquad|,|;|:|!)"), " "),
    (re.compile(r"\\[\[\]()]"), ""),
    (re.compile(r"\\neq?(?![a-zA-Z])"), "!="),
    (re.compile(r"\$\$"), ""),
)
_ESCAPED = re.compile(r"\\([$%&#_{}])")
_INLINE = re.compile(r"(?<!\\)\$(?=\S)([^$\n]{1,200})(?<=[^\s\\])\$(?!\d)")  # $x = 3$, and not $3 or $4
_MATHS = re.compile(r"[=\\^_+*/a-zA-Z]")
_TYPESET = re.compile(
    r"(?<!\S)\*\*(?=\S)|```|^[ \t]{0,3}#{1,6}[ \t]|^[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)+[ \t]*$"
    r"|\[[^\]\[\n]{0,200}\]\([^()\s]{1,300}\)",
    re.MULTILINE,
)
_LEFT_LATEX = re.compile(r"\\[a-zA-Z]+|\\[\[\]()]|\$\$")
DEPTH = 4  # of braces in braces


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, read. `answer` is None when the reply states none apart from its reasoning; `form` is how it was
    laid out: json, tagged, headed or prose; `markup` is set where tags, keys or fences are left in its texts."""

    rationale: str
    answer: str | None
    feedback: str | None
    wrong_step: str | None = None
    form: str = field(default="prose", compare=False)
    markup: str | None = field(default=None, compare=False)


def parse_reply(text: str) -> Reply:
    """Read a reply in whichever form it came: JSON, tags, headings or prose.

    Returns what was found; what was not is None, or empty for the rationale.
    """
    text = strip_thinking(text)
    found = ((form, read(text)) for form, read in _FORMS)
    form, fields = next(((form, fields) for form, fields in found if fields is not None), ("prose", {}))
    if form == "prose":
        fields = _prose(text)
    rationale, stated = split_conclusion(fields.get("rationale") or "")
    answer, feedback = fields.get("answer") or stated, fields.get("feedback")
    left = next(filter(None, map(_LEFT.search, (rationale, answer or "", feedback or ""))), None)
    return Reply(rationale, answer, feedback, fields.get("wrong_step"), form, left and left.group(0))


def parse_score(text: str) -> int | None:
    """A peer's score.

    Returns a whole number from 1 to 5, and None when the reply gives none.
    """
    text = strip_thinking(text).rpartition("</reasons>")[2]
    found = re.search(r"<score>\s*([1-5])\s*</score>", text) or re.search(r"(?<![\d.])([1-5])(?![\d.]|\s*/\s*10)", text)
    return int(found.group(1)) if found else None


def strip_thinking(text: str) -> str:
    """The reply without its thinking.

    Returns what stands behind the last mark that closes a thought, and before one that is never closed.
    """
    final = _last(_FINAL, text)
    if final is not None:
        text = text[final.end() :]
        end = _TOKEN.search(text)
        text = text[: end.start()] if end else text
    closed = _last(_CLOSED, text)
    if closed is not None:
        text = text[closed.end() :]
    opened = _OPENED.search(text)
    return (text[: opened.start()] if opened else text).strip()


def split_conclusion(rationale: str) -> tuple[str, str | None]:
    """The rationale without a last line that only states the answer, and that answer.

    Returns None for the answer where no line states it.
    """
    head, _, last = rationale.rstrip().rpartition("\n")
    found = _CONCLUSION.match(" ".join(last.split()))
    if found is None:
        return rationale.strip(), None
    return head.strip(), found.group("answer").strip("*_ ").rstrip(".").strip("*_ ") or None


def plain_text(text: str, latex: bool = False) -> str:
    """The text without the Markdown and LaTeX that can be taken away.

    Where answers are LaTeX themselves (`latex`) Markdown alone goes.
    """
    for pattern, instead in _MARKDOWN:
        text = pattern.sub(instead, text)
    if not latex and ("\\" in text or "$" in text):
        for _ in range(DEPTH):
            before = text
            text = _INLINE.sub(lambda found: found[1] if _MATHS.search(found[1]) else found[0], text)
            for pattern, instead in _COMMANDS:
                text = pattern.sub(instead, text)
            if text == before:
                break
        text = _ESCAPED.sub(r"\1", text)
    return text.strip()


def typeset(text: str, latex: bool = False) -> str | None:
    """The first Markdown, and unless `latex` the first LaTeX, that is in the text; None for a plain one."""
    found = _TYPESET.search(text) or (None if latex else _LEFT_LATEX.search(text))
    return found.group(0).strip() if found else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007  the last one is wanted
        pass
    return found


def _json_fields(text: str) -> Mapping[str, str | None] | None:
    """The last object that has a rationale, wherever it stands; as it is, and then with common slips mended."""
    if "{" not in text:
        return None
    text = _LATEX.sub(r"\\\\", text)
    found = _last_lesson(text)
    if found is None:
        mended = _BAD_ESCAPE.sub(lambda bad: rf"\\{bad.group(1)}" if bad.group(1) else bad.group(0), text)
        found = _last_lesson(_TRAILING_COMMA.sub("", mended))
    return None if found is None else {name: _as_text(found.get(name)) for name in FIELDS}


def _last_lesson(text: str) -> dict[str, Any] | None:
    decoder, lesson, past = json.JSONDecoder(strict=False), None, 0
    for number, start in enumerate(_OBJECT.finditer(text)):
        if number >= OBJECTS:
            break
        if start.start() < past:
            continue
        try:
            value, past = decoder.raw_decode(text, start.start())
        except (json.JSONDecodeError, RecursionError):
            continue
        lesson = next(_lessons_in(value), lesson)
    return lesson


def _lessons_in(value: Any) -> Iterator[dict[str, Any]]:
    """Objects with a rationale in a decoded value, at whatever depth; keys in lower case."""
    inside = [value]
    while inside:
        value = inside.pop()
        if isinstance(value, dict):
            named = {str(key).strip().lower(): one for key, one in value.items()}
            if "rationale" in named:
                yield named
            inside += value.values()
        elif isinstance(value, list):
            inside += value


def _as_text(value: Any) -> str | None:
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        value = "\n".join(value)
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int | float) else None


def _tagged(text: str) -> Mapping[str, str | None] | None:
    """The last text of each tag: up to its end, or where it has none up to the next tag of ours. None without a
    rationale."""
    tags = [(mark.start(), mark.end(), bool(mark.group(1)), mark.group(2).lower()) for mark in _TAG.finditer(text)]
    fields: dict[str, str] = {}
    for place, (_, end, closes, name) in enumerate(tags):
        following = tags[place + 1][0] if place + 1 < len(tags) else len(text)
        if not closes:
            fields[name] = text[end:following].strip()
    return fields if "rationale" in fields else None


def _headed(text: str) -> Mapping[str, str | None] | None:
    """Text under lines such as `### Rationale` or `**Answer:** 7`; None where no line says that a rationale begins."""
    heads = [(mark.start(), mark.end(), mark.group(1).lower().split()[-1]) for mark in _HEADING.finditer(text)]
    ends = [*(start for start, _, _ in heads), len(text)][1:]
    fields = {name: text[begin:end].strip() for (_, begin, name), end in zip(heads, ends, strict=True)}
    return fields if fields.get("rationale") else None


def _prose(text: str) -> Mapping[str, str | None]:
    """Reasoning without a form of ours; feedback and answer may still be tagged."""
    fields: dict[str, str | None] = {}
    kept, begin = [], 0
    marks = list(_TAG.finditer(text))
    for place, mark in enumerate(marks):
        if mark.start() < begin:
            continue
        name, opens = mark.group(2).lower(), not mark.group(1)
        end = marks[place + 1] if place + 1 < len(marks) else None
        kept.append(text[begin : mark.start()])
        begin = len(text) if opens else mark.end()
        if end is not None and end.group(1) and end.group(2).lower() == name:
            fields[name] = text[mark.end() : end.start()].strip()
            begin = end.end()
    kept.append(text[begin:])
    body = "".join(kept).strip()
    lines = body.split("\n")
    if len(lines) > 2 and lines[0].startswith("```") and lines[-1].strip() == "```":  # all of it stands in one fence
        body = "\n".join(lines[1:-1]).strip()
    label = re.match(r"(?:reasoning|rationale)\s{0,4}:", body, re.IGNORECASE)
    fields["rationale"] = body[label.end() :].strip() if label else body
    return fields


_FORMS = (("json", _json_fields), ("tagged", _tagged), ("headed", _headed))
