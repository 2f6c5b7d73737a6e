"""From texts to token ids, as the engine sees them.

In: training examples and the student's tokenizer. Out: `TokenExample`s and the ids of questions whose rationale was
truncated or whose prompt leaves no room. What always holds: prompt and completion are tokenized apart, so that
prompt ids equal those that the engine is given and completion ids those that it may generate; a whole completion
ends with the end-of-sequence token, a truncated one does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tailor_ray.errors import ModelError
from tailor_ray.records import TrainExample

CHUNK = 1024  # texts a tokenizer call; fast tokenizers spread one call over the cores


@dataclass(frozen=True, slots=True)
class TokenExample:
    """One example as ids. `positive` and `negative` are both there or both empty, for only a pair counts."""

    question_id: str
    prompt: tuple[int, ...]
    rationale: tuple[int, ...]
    positive: tuple[int, ...] = ()
    negative: tuple[int, ...] = ()

    @property
    def has_pair(self) -> bool:
        return bool(self.positive)

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass that computes the prompt once."""
        return len(self.prompt) + len(self.rationale) + len(self.positive) + len(self.negative)


@dataclass(slots=True)
class TokenData:
    """The examples that are trained on, in the given order; `truncated` and `skipped` hold question ids."""

    examples: list[TokenExample] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def tokenize_examples(
    examples: Sequence[TrainExample],
    tokenizer: Any,
    max_length: int,
    rationale_cap: int,
    pairs: bool = True,
    special_tokens: bool = True,
) -> TokenData:
    """Token ids of every example that fits.

    A rationale is cut where prompt plus rationale reach `max_length`; a positive or negative there or at
    `rationale_cap`, for the triplet term reads no further. An example is skipped when its prompt leaves no room for
    one token. With `pairs` off, positives and negatives are left out. `special_tokens` says whether the tokenizer
    adds its own to a prompt; a chat template has written them already. Raises ModelError without an end token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ModelError("the student's tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
    data = TokenData()
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        prompts = _ids(tokenizer, [e.prompt for e in chunk], special_tokens)
        rationales = _ids(tokenizer, [e.rationale for e in chunk], False)
        positives = _ids(tokenizer, [e.positive or "" for e in chunk], False)
        negatives = _ids(tokenizer, [e.negative or "" for e in chunk], False)
        for index, example in enumerate(chunk):
            paired = pairs and example.positive is not None and example.negative is not None
            room = max_length - len(prompts[index])
            if room < 1 or not prompts[index]:
                data.skipped.append(example.question_id)
                continue
            rationale = [*rationales[index], eos]
            if len(rationale) > room:
                data.truncated.append(example.question_id)
            cap = min(room, rationale_cap)
            data.examples.append(
                TokenExample(
                    example.question_id,
                    tuple(prompts[index]),
                    tuple(rationale[:room]),
                    tuple([*positives[index], eos][:cap]) if paired else (),
                    tuple([*negatives[index], eos][:cap]) if paired else (),
                )
            )
    return data


def _ids(tokenizer: Any, texts: list[str], special_tokens: bool) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=special_tokens)["input_ids"]
