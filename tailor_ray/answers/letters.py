"""Kinds `choice` and `yes_no`: both verifiers of each.

The last announced or boxed conclusion decides in both. Without one the last sentence does that decides anything.

First verifier, the paper's rule: the letter, or yes or no, that the conclusion says. Second verifier: the choice whose
text it names, before any letter; or the polarity of the sentence's own claim ("is true", "Yes, …").

Two letters, yes beside no, and what is denied ("not B") leave an answer in doubt. A letter that is no choice ends the
search, and so does an announcement that says neither yes nor no. Nothing before it is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from tailor_ray.answers.conclusion import MAX_SPAN, conclusions, first_sentence, sentences
from tailor_ray.answers.spelling import plain


@dataclass(frozen=True, slots=True)
class Said:
    """What a text stands for: letters or yes/no, the likeliest first; in doubt where it need not be any of them."""

    words: tuple[str, ...] = ()
    doubt: bool = False

    @property
    def answer(self) -> str | None:
        return self.words[0] if self.words else None

    def says(self, gold: str) -> bool | None:
        """Whether it is the gold answer: right, wrong, or None where that cannot be told."""
        return None if self.doubt or len(set(self.words)) != 1 else self.words[0] == gold


_LETTER = re.compile(
    r"[(\[]([A-Za-z])[)\]]|(?<![\w'])([A-Za-z])(?=\))|(?<![\w'(-])([B-HJ-Z])(?![\w'’-])"
    r"|(?<![\w'])([AI])(?=\s*(?:[.:,;!/]|$)|\s+(?:because|since|as|is|or|and|but|due|rather|not|for)\b)"
    r"|(?<![\w'.])([a-z])(?=[.:;](?:\s|$)|\s*$|,?\s+(?:or|and)\s+[a-z]\b)"
)
_MARKS = re.compile(r"\*\*|[$`_*\"{}\\]|'(?=\W|$)|(?<=\W)'")
_DENIED = re.compile(
    r"(?:\b(?:not|neither|nor|never|cannot|instead of|rather than|eliminate|excludes?)\b|n't\b)"
    r"(?:(?!\bbut\b)[^,;.]){0,30}$",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"\b(?:not|rather than|instead of) (?:option |choice )?\(?[A-Za-z]\b\)?(?! \w+ing\b)")
_JOINED = re.compile(
    r"[)\].:]?\s*(?:,|;|/|&|\bor\b|\band\b)+\s*(?:\bor\b|\band\b)?\s*(?:option|choice)?\s*[(\[]?", re.IGNORECASE
)
_NONE = re.compile(r"\bnone\b|\bneither\b|\bcannot be\b", re.IGNORECASE)

_EMPHASIS = str.maketrans("_`", "  ")
_GOES_ON = r"(?:because|since|as|it|he|she|they|this|that|the|there|you|we|i|is|and|or|but|not|yes|for|although)\b"
_NO = rf"no(?!\s+(?!{_GOES_ON})[a-z])"  # before a noun it is no verdict
_VERDICT = re.compile(rf"\b(?:(yes|true|yep|yeah|correct)|({_NO}|false|nope|incorrect))\b", re.IGNORECASE)
_BOTH = re.compile(
    r"\b(?:yes|true)[\"']?\s*(?:or|/)\s*[\"']?(?:no|false)\b", re.IGNORECASE
)  # the question, not its answer
_CONCESSION = re.compile(  # "It is true that birds fly, but …"
    r"(?:\bit(?:'s| is)|\bwhile|\balthough|\bthough)\s+(?:it(?:'s| is) )?(?:true|false|correct) that\b"
    r"(?=[^.!?\n]*(?:\b(?:but|however|yet)\b|;))|\b(?:while|although|though)\s+it(?:'s| is) (?:true|false|correct)\b",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"^\W*(?:(?:so|therefore|thus|hence|finally|in conclusion)\W+)?(yes|no|true|false|nope|yep|yeah)\b"
    r"(?=\s*(?:[^\w\s\"']|$|(?:because|since|as|it|he|she|they|this|that|the|there|you|we|i)\b))",
    re.IGNORECASE,
)
_SAID = re.compile(
    r"(?:\b(?:answer|statement|claim|conclusion|it|this|that|result)\b[^.!?\n]{0,60}?"
    r"(?:\bis\b|'s\b|\bwould be\b|\bmust be\b|\bto be\b|:)"
    r"|[\"”]\s+is\b"  # the answer to the question "Does it …?" is "false"
    r"|\b(?:would|will|must|can|I)\s+(?:answer|say|conclude)(?:\s+that\s+it\s+is)?\b)"
    r"[\s*\"'(:]*(?:likely |most likely |probably |definitely )?(not )?"
    rf"(yes|{_NO}|true|false|nope|correct|incorrect)\b",
    re.IGNORECASE,
)


def first_choice(text: str, choices: Mapping[str, str]) -> Said:
    """The letter that a `visible` text concludes with by the paper's rule.

    `choices` maps lower-case letters to texts. Returns what is said, in doubt where it is denied, taken back or one of
    several.
    """
    for conclusion in conclusions(text):
        span = _bare(first_sentence(plain(conclusion.text)))
        said = _letters(_masked(span, choices), choices, begins=True)
        if said.words:
            return Said(said.words, said.doubt or conclusion.taken_back) if _known(said, choices) else Said()
        named = _named(span, choices)
        if len({choices[letter].strip().lower() for letter in named}) == 1:
            start = min(span.lower().find(choices[letter].strip().lower()) for letter in named)
            denied = _DENIED.search(span[: max(start, 0)]) is not None
            return Said((min(named),), doubt=denied or conclusion.taken_back)
        if named or _NONE.search(span):
            return Said(tuple(sorted(named)), doubt=True)
    for sentence in reversed(sentences(text)):
        said = _letters(_masked(_bare(plain(sentence[-MAX_SPAN:])), choices), choices)
        if said.words and _known(said, choices):
            return Said(said.words[-1:], said.doubt)
    named = _named(" ".join(sentences(text)[-1:])[-MAX_SPAN:], choices)
    return Said(tuple(named)) if len(named) == 1 else Said()


def second_choices(text: str, choices: Mapping[str, str]) -> frozenset[str] | None:
    """The letters that the conclusion of a `visible` text stands for.

    They go by the text of `choices`, and by letter where none is named. Returns several where two choices have one
    text, and None where nothing is said.
    """
    announced = [first_sentence(plain(conclusion.text)) for conclusion in conclusions(text)]
    parts = sentences(text)
    for position, sentence in enumerate(announced or reversed(parts)):
        sentence = _REFUSED.sub("", sentence[-MAX_SPAN:])
        named = _named(_bare(sentence), choices)
        if len(named) == 1:
            return named
        letters = {word.lower() for word in re.findall(r"(?<![\w'])[A-Za-z](?![\w'’-])", _bare(sentence))}
        alone = letters if len(_bare(sentence).strip(" .()[],:")) == 1 else letters - {"a", "i"}
        alone |= {
            letter
            for letter in letters
            if re.search(
                rf"[(\[]{letter}[)\]]|\b{letter}[).:,]|\b{letter} (?:because|since|as|or|and)\b",
                sentence,
                re.IGNORECASE,
            )
        }
        known = alone & choices.keys()
        if named and known & named:
            known &= named
        if len(known) == 1:
            return frozenset(known)
        if len({choices[letter].strip().lower() for letter in named}) == 1:
            return named  # one text, listed twice: either letter
        if known or named or (announced and alone):
            # of several that are not its alternatives the one that opens the text
            opening = re.match(r"\W*([A-Za-z])\b\W?\s*(?!(?:or|and)\b|[/,&(]\s*\(?[A-Za-z]\b)", _bare(sentence))
            return frozenset({opening[1].lower()}) if opening and opening[1].lower() in known else None
        if not announced and position > 8:
            break
    return None


def first_yes_no(text: str) -> Said:
    """What a `visible` text answers by the paper's rule.

    True and false count as yes and no. Returns "yes" or "no", in doubt where it is denied or taken back.
    """
    text = _CONCESSION.sub("", text.translate(_EMPHASIS))
    for conclusion in conclusions(text):
        span = _BOTH.sub("", plain(conclusion.text))
        if not span.strip(" .:"):
            continue  # "Please answer: true or false"
        for sentence in sentences(span):
            found = list(_VERDICT.finditer(sentence))
            if found:
                said = _polarity(sentence, found)
                return Said(said.words, said.doubt or conclusion.taken_back)
        if not conclusion.opening:
            return Said()
    for sentence in reversed(sentences(_BOTH.sub("", text))):
        sentence = sentence[-MAX_SPAN:]
        found = list(_VERDICT.finditer(sentence))
        if found:
            opens = found[:1] if _OPENING.match(sentence) else found[-1:]
            return _polarity(sentence, opens)
    return Said()


def second_yes_no(text: str) -> str | None:
    """What the last sentence of a `visible` text states that states anything.

    Returns "yes", "no", or None: "no evidence" states neither.
    """
    text = _CONCESSION.sub("", text.translate(_EMPHASIS))
    announced = [one for one in conclusions(text) if _BOTH.sub("", one.text).strip(" .:")]
    if announced:
        if _VERDICT.search(plain(announced[0].text)):
            text = f"The answer is: {plain(announced[0].text).strip(' *$:')}"
        elif not announced[0].opening:
            return None
    for sentence in reversed(sentences(_BOTH.sub("", plain(text)))):
        said = list(_SAID.finditer(sentence))
        if said:
            polarity = _as_word(said[-1][2])
            return {"yes": "no", "no": "yes"}[polarity] if said[-1][1] else polarity
        opening = _OPENING.match(sentence)
        if opening:
            return _as_word(opening[1])
    return None


def _as_word(word: str) -> str:
    return "yes" if word.lower() in ("yes", "true", "yep", "yeah", "correct") else "no"


def _polarity(sentence: str, found: list[re.Match[str]]) -> Said:
    """The first verdict of a sentence; in doubt where it is denied or joined with its opposite."""
    words = tuple(_as_word(match[0]) for match in found)
    if re.search(r"(?:\bnot|n't)\s+(?:\w+\s+)?$", sentence[: found[0].start()], re.IGNORECASE):
        return Said(words[:1], doubt=True)
    between = sentence[found[0].end() : found[1].start()] if len(found) > 1 else ""
    joined = bool(between) and words[1] != words[0] and re.fullmatch(r"\W*(?:and|or)\W*", between) is not None
    return Said(words[:1], doubt=joined)


def _bare(text: str) -> str:
    """Without bold, mathematics' marks and quotes around a letter."""
    return _MARKS.sub("", text).strip()


def _letters(text: str, choices: Mapping[str, str], begins: bool = False) -> Said:
    """The letters of a span that are not denied. One that opens it decides, unless it is joined with another."""
    found = [match for match in _LETTER.finditer(text) if match[0] != "I" or "i" in choices]
    kept = [match for match in found if not _DENIED.search(text[: match.start()])]
    words = tuple(_of(match) for match in kept)
    if not kept:
        return Said(tuple(_of(match) for match in found), doubt=bool(found))
    joined = [
        _of(other)
        for one, other in pairwise(found)
        if _JOINED.fullmatch(text[one.end() : other.start()])
        and one in kept
        and other in kept
        and _of(one) != _of(other)
    ]
    if joined:
        return Said(words, doubt=True)
    if begins and not re.search(r"\w", text[: kept[0].start()]):
        return Said(words[:1])
    return Said(words if begins else words[-1:])


def _masked(text: str, choices: Mapping[str, str]) -> str:
    """The text with the choices' own words blanked out: "vitamin B" is no letter, "not hungry" denies nothing."""
    for letter in _named(text, choices):
        choice = choices[letter].strip()
        if len(choice) > 1:
            text = re.sub(rf"(?<!\w){re.escape(choice)}(?!\w)", "~" * len(choice), text, flags=re.IGNORECASE)
    return text


def _of(match: re.Match[str]) -> str:
    return next(filter(None, match.groups())).lower()


def _known(said: Said, choices: Mapping[str, str]) -> bool:
    return all(word in choices for word in said.words)


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
