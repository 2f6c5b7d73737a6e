"""Kinds `text`, `regex` and `python`.

Text: the announced conclusion, else the last line, equals the gold answer. Case, spacing, quotes, the spelling of
accents and closing punctuation do not count. Regex: the gold answer is a pattern that matches that conclusion in full.

The second verifier is the lenient one. It says wrong only where neither the conclusion nor the last line contains the
gold answer, so what is called a mistake is one. A pattern that takes too long says nothing.

Python: the user's function judges alone.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import lru_cache

import regex

from tailor_ray.answers.conclusion import conclusions, last_line
from tailor_ray.answers.spelling import plain, spelled
from tailor_ray.errors import ConfigError
from tailor_ray.once import once

PATTERN_S = 0.2  # of CPU time that a pattern may take on a line; `(a+)+$` takes years on forty letters
Judge = Callable[[str, str], bool | None]
_EDGE = " \t\n\r*`\"'.,;:!"
_MARKED = re.compile(r"__(\S.*?)__|_([^_]+)_|\$([^$]+)\$")  # bold, emphasis, mathematics
_DUNDER = re.compile(r"__[a-z0-9_]+__")  # a name in Python's manner, where the underscores are no bold


def concluded(text: str) -> tuple[str | None, bool]:
    """The conclusion of a `visible` text, bare of markup and edges.

    Returns it, or None, and whether a marker announced it; without one the last line is taken.
    """
    for conclusion in conclusions(text):
        said = bare(conclusion.text)
        if said:
            return said, True
    return bare(last_line(text)) or None, False


def bare(text: str) -> str:
    """What a line says, without bold, LaTeX, quotes and closing punctuation."""
    text = (plain(text) if "\\" in text else text).strip(_EDGE)
    marked = None if _DUNDER.fullmatch(text) else _MARKED.fullmatch(text)
    return next(filter(None, marked.groups())).strip(_EDGE) if marked else text


def normalize(text: str) -> str:
    """Case, spacing, edge punctuation and the spelling of quotes and accents do not count."""
    return " ".join(spelled(text).strip(_EDGE).casefold().split())


def ends_with(text: str, gold: str) -> bool:
    """Whether the conclusion or the last line of a text contains the gold answer as whole words."""
    held = re.compile(rf"(?<!\w){re.escape(normalize(gold))}(?!\w)")
    return any(held.search(normalize(line)) for line in (concluded(text)[0] or "", last_line(text)))


def matches(conclusion: str, pattern: str) -> bool | None:
    """Whether `pattern` matches all of the conclusion.

    Returns None where it takes longer than PATTERN_S seconds.
    """
    try:
        return _pattern(pattern).fullmatch(conclusion, timeout=PATTERN_S) is not None
    except TimeoutError:
        return None


def ends_with_match(text: str, pattern: str) -> bool | None:
    """Whether `pattern` matches anywhere in the conclusion or the last line.

    Returns None where it takes longer than PATTERN_S seconds.
    """
    lines = (concluded(text)[0] or "", last_line(text))
    try:
        return any(_pattern(pattern).search(line, timeout=PATTERN_S) for line in lines)
    except TimeoutError:
        return None


def check_pattern(pattern: str) -> None:
    """Check that a gold answer of kind `regex` is a regular expression.

    Raises ValueError saying why where it is none.
    """
    try:
        _pattern(pattern)
    except regex.error as error:
        raise ValueError(f"the answer {pattern[:60]!r} is not a regular expression: {error}") from None


@once
def load_function(path: str) -> Judge:
    """The function at `path`, which has the form package.module:function.

    Raises ConfigError naming what is missing.
    """
    module_name, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # the user's own module may raise anything
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"task.answer_function {path!r} cannot be loaded: {said}") from error
    if not callable(function):
        raise ConfigError(f"task.answer_function {path!r} is a {type(function).__name__}, not a function")
    return function


@lru_cache(maxsize=4096)
def _pattern(pattern: str) -> regex.Pattern[str]:
    return regex.compile(spelled(pattern), regex.IGNORECASE)
