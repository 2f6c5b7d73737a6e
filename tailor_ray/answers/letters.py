"""Kinds `choice` and `yes_no`: both verifiers of each.

First verifier, the paper's rule: the first letter or yes/no after the conclusion's marker, else the last of the
text. Second verifier: what the last sentence that decides anything says, choices by their texts before their
letters, yes/no by the sentence's own polarity ("is true", "Yes, …"). The two share the capped text, and that "true or
false" repeats the question, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tailor_ray.answers.conclusion import conclusions, first_sentence, sentences

_CHOICE = re.compile(
    r"\(([A-Za-z])\)|\b([A-Za-z])\)|\b([B-Z])\b(?!['’-])|\b(A)(?=[.:,;*]|\s*$)|\b([a-z])(?=[.:;*]|\s*$)"
)
_YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
_BOTH = re.compile(
    r"\b(yes|true)[\"”']?\s*(?:or|/)\s*[\"“']?(no|false)\b", re.IGNORECASE
)  # the question, not its answer
_POLARITY = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_SECOND_LETTER = re.compile(r"(?:^|[\s(*\"'{])([A-Za-z])(?:\)|\}|[.:,;!*\"']|\s*$)")
_OPENING = re.compile(r"^\W*(yes|no|true|false)\b(?=\s*(?:[.,;:!*)-]|$))", re.IGNORECASE)
_SAID = re.compile(
    r"(?:\b(?:answer|statement|claim|conclusion|it|this|that|result)\b[^.!?\n]{0,60}?"
    r"(?:\bis\b|\bwould be\b|\bmust be\b|\bto be\b|:)"
    r"|[\"”]\s+is\b"  # the answer to the question "Does it …?" is "false"
    r"|\b(?:would|will|must|can|I)\s+(?:answer|say|conclude)(?:\s+that\s+it\s+is)?\b)"
    r"[\s*\"“'(:]*(?:likely |most likely |probably |definitely )?(not )?(yes|no|true|false)\b",
    re.IGNORECASE,
)


def first_choice(text: str, choices: Mapping[str, str]) -> tuple[str | None, bool]:
    """The letter that a `visible` text concludes with by the paper's rule, and whether a marker announced it."""
    for conclusion in conclusions(text):
        letter = _letter(conclusion.text, choices) or _by_text(first_sentence(conclusion.text), choices)
        if letter:
            return letter, True
    for sentence in reversed(sentences(text)):
        found = [next(filter(None, groups)).lower() for groups in _CHOICE.findall(sentence)]
        found = [letter for letter in found if letter in choices]
        if found:
            return found[-1], False
    return None, False


def second_choices(text: str, choices: Mapping[str, str]) -> frozenset[str]:
    """The letters that the last deciding sentence stands for: by choice text, or by letter where no text is named."""
    parts = sentences(text)
    deciding = [part for part in parts if "answer" in part.lower()] + parts[-1:]
    for sentence in sorted(deciding, key=parts.index, reverse=True):
        named = _named(sentence, choices)
        if len(named) == 1:
            return named
        letters = [letter.lower() for letter in _SECOND_LETTER.findall(sentence) if letter.lower() in choices]
        letters = [letter for letter in letters if not named or letter in named]
        if letters:
            return frozenset(letters[-1:])
        if len({choices[letter].strip().lower() for letter in named}) == 1:
            return named  # one text, listed twice: either letter
    return frozenset()


def first_yes_no(text: str) -> tuple[str | None, bool]:
    """ "yes" or "no" by the paper's rule, and whether a marker announced it; true and false count as yes and no."""
    text = _BOTH.sub("", text)
    for conclusion in conclusions(text):
        found = _YES_NO.search(conclusion.text)
        if found:
            return _POLARITY[found[1].lower()], True
    every = _YES_NO.findall(text)
    return (_POLARITY[every[-1].lower()], False) if every else (None, False)


def second_yes_no(text: str) -> str | None:
    """ "yes" or "no" by the last sentence that states one; "no evidence" states none."""
    for sentence in reversed(sentences(_BOTH.sub("", text))):
        said = list(_SAID.finditer(sentence))
        if said:
            polarity = _POLARITY[said[-1][2].lower()]
            return {"yes": "no", "no": "yes"}[polarity] if said[-1][1] else polarity
        opening = _OPENING.match(sentence)
        if opening:
            return _POLARITY[opening[1].lower()]
    return None


def _letter(text: str, choices: Mapping[str, str]) -> str | None:
    for match in _CHOICE.finditer(text):
        letter = next(filter(None, match.groups())).lower()
        if letter in choices:
            return letter
    return None


def _by_text(text: str, choices: Mapping[str, str]) -> str | None:
    """The only choice whose text is named; None where none or several are."""
    named = _named(text, choices)
    return min(named) if len({choices[letter].strip().lower() for letter in named}) == 1 else None


def _named(text: str, choices: Mapping[str, str]) -> frozenset[str]:
    """Letters of the choices whose text is in `text`, less those inside a longer one that is ("jewelry box" in …)."""
    lower = text.lower()
    named = {
        letter: choice.strip().lower()
        for letter, choice in choices.items()
        if choice.strip() and re.search(rf"(?<!\w){re.escape(choice.strip().lower())}(?!\w)", lower)
    }
    return frozenset(
        letter
        for letter, choice in named.items()
        if not any(choice != other and choice in other for other in named.values())
    )
