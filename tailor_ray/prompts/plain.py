"""Plain text of what a teacher typeset: Markdown and LaTeX as the student is to write them.

In: a rationale. Out: the same words and numbers without `**`, headings, code fences, `\\boxed` and the commands that
arithmetic takes; what is left of Markdown or LaTeX then is found by `typeset`. A text that is plain stays what it is,
to the letter: `3 * 4`, `$5` and `2 < 3` are. Where answers are LaTeX themselves (`latex`) Markdown alone goes.
"""

from __future__ import annotations

import re

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
_LATEX = (
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
_COMMAND = re.compile(r"\\[a-zA-Z]+|\\[\[\]()]|\$\$")
DEPTH = 4  # of braces in braces


def plain_text(text: str, latex: bool = False) -> str:
    """The text without what can be taken away; `latex`: LaTeX stays."""
    for pattern, instead in _MARKDOWN:
        text = pattern.sub(instead, text)
    if not latex and ("\\" in text or "$" in text):
        for _ in range(DEPTH):
            before = text
            text = _INLINE.sub(lambda found: found[1] if _MATHS.search(found[1]) else found[0], text)
            for pattern, instead in _LATEX:
                text = pattern.sub(instead, text)
            if text == before:
                break
        text = _ESCAPED.sub(r"\1", text)
    return text.strip()


def typeset(text: str, latex: bool = False) -> str | None:
    """The first Markdown, and unless `latex` the first LaTeX, that is in the text; None for a plain one."""
    found = _TYPESET.search(text) or (None if latex else _COMMAND.search(text))
    return found.group(0).strip() if found else None
