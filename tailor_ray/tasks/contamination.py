"""Which training questions are test questions in disguise.

They are found by normalized text and by shared sequences of 8 words. The index holds the test questions, and training
questions stream past it.

Always holds: one look-up is linear in the question's length. So a million training rows take about a minute and a set
of GSM8K's size a second.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tailor_ray.records import Question

GRAM = 8
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training question that meets a test question."""

    train: str
    test: str
    how: str  # "text" or "8-gram"
    share: float  # of the shorter question's 8-word sequences that the other one has

    def to_json(self) -> dict[str, Any]:
        """As the manifest of the questions lists it."""
        return {"train": self.train, "test": self.test, "how": self.how, "share": round(self.share, 3)}


def normalized(text: str) -> str:
    """Words alone: case, punctuation, spacing and compatibility forms do not count."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


class TestIndex:
    """The test questions, ready to be compared with."""

    def __init__(self, questions: Iterable[Question], share: float) -> None:
        """`share`: from which overlap of 8-word sequences on two questions count as the same."""
        self._share = share
        self._ids: list[str] = []
        self._sizes: list[int] = []
        self._by_text: dict[str, int] = {}
        self._by_gram: dict[int, list[int]] = {}
        for position, question in enumerate(questions):
            words = normalized(question.text)
            grams = _grams(words)
            self._ids.append(question.id)
            self._sizes.append(len(grams))
            self._by_text.setdefault(words, position)
            for gram in grams:
                self._by_gram.setdefault(gram, []).append(position)

    def overlap(self, train_id: str, words: str) -> Overlap | None:
        """The test question that a training question overlaps with most.

        `words` is its text, `normalized`. Returns None where no overlap reaches the index's share.
        """
        same = self._by_text.get(words)
        if same is not None:
            return Overlap(train_id, self._ids[same], "text", 1.0)
        grams = _grams(words)
        shared = Counter(position for gram in grams for position in self._by_gram.get(gram, ()))
        if not shared:
            return None
        shares = {position: count / min(len(grams), self._sizes[position]) for position, count in shared.items()}
        most = max(shares, key=lambda position: shares[position])
        if shares[most] < self._share:
            return None
        return Overlap(train_id, self._ids[most], f"{GRAM}-gram", shares[most])


def _grams(normalized_text: str) -> set[int]:
    """Hashes of every 8 words in a row; none for a shorter text, which only equal text can meet."""
    words = normalized_text.split()
    return {hash(tuple(words[start : start + GRAM])) for start in range(len(words) - GRAM + 1)}
