"""Kinds `text`, `regex` and `python`.

Text: the announced conclusion (else the last line) equals the gold answer but for case, spacing, quotes and closing
punctuation. Regex: the gold answer is a pattern that matches that conclusion in full. The second verifier is the
lenient one: it says wrong only where the last line does not even contain the gold answer, so what is called a mistake
is one. Python: the user's function judges alone.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import lru_cache

from tailor_ray.answers.conclusion import conclusions, last_line
from tailor_ray.errors import ConfigError
from tailor_ray.once import once

Judge = Callable[[str, str], bool | None]
_EDGE = " \t\n\r*_`\"'“”‘’.,;:!"


def concluded(text: str) -> tuple[str | None, bool]:
    """The conclusion of a `visible` text, edges stripped, and whether a marker announced it."""
    for conclusion in conclusions(text):
        if conclusion.text.strip(_EDGE):
            return conclusion.text.strip(_EDGE), True
    return last_line(text).strip(_EDGE) or None, False


def normalize(text: str) -> str:
    """Case, spacing and edge punctuation do not count."""
    return " ".join(text.strip(_EDGE).casefold().split())


def ends_with(text: str, gold: str) -> bool:
    """Whether the last line of a text contains the gold answer as whole words."""
    return re.search(rf"(?<!\w){re.escape(normalize(gold))}(?!\w)", normalize(last_line(text))) is not None


def matches(conclusion: str, pattern: str) -> bool:
    return _pattern(pattern).fullmatch(conclusion) is not None


def ends_with_match(text: str, pattern: str) -> bool:
    return _pattern(pattern).search(last_line(text)) is not None


@once
def load_function(path: str) -> Judge:
    """The function at `package.module:function`. Raises ConfigError naming what is missing."""
    module_name, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"task.answer_function {path!r} cannot be loaded: {error}") from error
    if not callable(function):
        raise ConfigError(f"task.answer_function {path!r} is a {type(function).__name__}, not a function")
    return function


@lru_cache(maxsize=4096)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)
