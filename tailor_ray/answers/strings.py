"""Kinds `text`, `regex`, `python` and `math`.

Text: the announced conclusion, else the last line, equals the gold answer. Case, spacing, quotes, the spelling of
accents and closing punctuation do not count. Regex: the gold answer is a pattern that matches that conclusion in full.

The second verifier is the lenient one. It says wrong only where neither the conclusion nor the last line contains the
gold answer, so what is called a mistake is one. A pattern that takes too long says nothing.

Python: the user's function judges alone.

Math: symbolic answers ("\\frac{1}{2}", "(1, 2]", "x^2 + 1"). First verifier: the announced conclusion and the gold
answer are one expression once spelling is normalized, or math-verify says so in both orders. Second verifier: math-
verify on the ending as it reads it itself. What the conclusion denies is disputed. So is what takes longer than
EXPRESSION_S of CPU time.

Always holds of math. Math-verify runs in a process of its own, one for each process that grades. The kernel stops its
work. A hung expression costs EXPRESSION_S and no signal of this process. The first question waits a second or two for
it to start.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, cast

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


# Kind `math`.

EXPRESSION_S = 0.4  # CPU seconds for one comparison, of which a row takes two at most; the median takes 0.005
MAX_EXPRESSION = 400
MAX_DEPTH = 10  # brackets in brackets
MAX_ENDING = 600
_WORKER = Path(__file__).with_name("math_worker.py")
_DENIES = re.compile(r"\b(?:not|neither|cannot|can't|isn't)\b", re.IGNORECASE)
_DELIMITED = re.compile(r"\$|\\\(|\\\[")
_INTRODUCED = re.compile(r"^.*(?:\bis\b|\bare\b|\bequals\b|:)\s", re.DOTALL | re.IGNORECASE)
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|log|ln|exp|sqrt|inf|pi|and|or)\b)[A-Za-z]{3,}")
_SAME = (
    *((rf"\{name}frac", r"\frac") for name in "dtc"),
    *((rf"\{name}", "") for name in ("left", "right", "displaystyle", "!", ",", ";", ":", " ", "(", ")", "[", "]")),
    *((mark, "") for mark in ("$", " ", "\n")),
)


def first_expression(text: str, gold: str) -> tuple[str | None, bool | None]:
    """The announced expression of a `visible` text, and whether it is the gold one.

    Returns (None, None) where nothing is announced, and None for what cannot be compared.
    """
    for conclusion in conclusions(text):
        said = conclusion.text.strip(" \t*`.").removesuffix(".")
        if said:
            if conclusion.taken_back or _DENIES.search(said):
                return said, None
            return said, True if _alike(said, gold) else _equal(gold, said)
    return None, None


def second_expression(text: str, gold: str) -> bool | None:
    """What math-verify says of the ending of a `visible` text, which it reads by its own rules.

    Returns None where it finds nothing, or takes too long.
    """
    found = conclusions(text)
    if found and _alike(found[0].text.strip(" \t*`."), gold):
        return True
    said = found[0].text if found else text[-MAX_ENDING:]
    return _equal(
        gold, said if not found or _DELIMITED.search(said) else f"The final answer is $\\boxed{{{_expression(said)}}}$"
    )


def balanced(gold: str) -> bool:
    """Whether the expression `gold` can be compared: its braces close and it is short enough."""
    return len(gold) <= MAX_EXPRESSION and gold.count("{") == gold.count("}")


def _alike(said: str, gold: str) -> bool:
    return _plainly(_expression(said)) == _plainly(gold)


def _plainly(text: str) -> str:
    for written, meant in _SAME:
        text = text.replace(written, meant)
    return re.sub(r"\{(\w)\}", r"\1", text)


def _equal(gold: str, said: str) -> bool | None:
    said = said if _DELIMITED.search(said) else f"${_expression(said)}$"
    if len(said) > MAX_EXPRESSION + MAX_ENDING or (
        _WORD.search(re.sub(r"\\[A-Za-z]+|\\text\{[^{}]*\}", "", said)) and not _DELIMITED.search(said[1:])
    ):
        return None
    depths = accumulate((character in "([{") - (character in ")]}") for character in said)
    if max(depths, default=0) > MAX_DEPTH:
        return None
    return _ask(gold if _DELIMITED.search(gold) else f"${gold}$", said)


def _expression(said: str) -> str:
    """An announced expression without the words before it: "the area is 5\\pi" is 5\\pi."""
    return said if _DELIMITED.search(said) else _INTRODUCED.sub("", said)


@lru_cache(maxsize=4096)
def _ask(gold: str, said: str) -> bool | None:
    return _PROCESS.ask({"gold": gold, "said": said}).get("right")


class _Process:
    """The worker of this process, started when first asked and again when it is gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: dict[str, str]) -> dict[str, Any]:
        """Its reply; {} when it died over the question."""
        with self._lock:
            for _ in range(2):
                if self._running is None or self._owner != os.getpid():  # a forked process starts its own
                    # -P: this folder has a numbers.py
                    command = [sys.executable, "-P", str(_WORKER), str(EXPRESSION_S)]
                    self._running = subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                    )
                    self._owner = os.getpid()
                worker = self._running
                requests, replies = cast(IO[bytes], worker.stdin), cast(IO[bytes], worker.stdout)
                try:
                    requests.write(json.dumps(request).encode() + b"\n")
                    requests.flush()
                    line = replies.readline()
                except BrokenPipeError:
                    line = b""
                if line:
                    return json.loads(line)
                self.close()
        return {}

    def close(self) -> None:
        """End the worker, which its closed input does."""
        if self._running is not None and self._owner == os.getpid():
            for stream in (self._running.stdin, self._running.stdout):
                if stream is not None:
                    stream.close()
            self._running.wait()
        self._running = None


_PROCESS = _Process()
atexit.register(_PROCESS.close)
