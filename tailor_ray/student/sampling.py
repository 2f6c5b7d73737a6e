"""What goes to an engine and what comes back.

It is plain data, known to engines, exam and benchmarks alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tailor_ray.errors import TailorError


class EngineBroken(TailorError):
    """The engine failed inside a step and must be replaced."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a batch is sampled; temperature 0 is greedy."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    special_tokens: bool = True  # whether the tokenizer adds its own to a prompt; a chat template wrote them already


@dataclass(slots=True)
class Completions:
    """Columns over the samples of a batch, the samples of one prompt side by side."""

    texts: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)  # "stop", "length" or "error"
    prompt_tokens: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)  # why there is no answer; None where there is one

    @classmethod
    def of_errors(cls, reasons: list[str]) -> Completions:
        """Completions without an answer, one for each of `reasons`."""
        n = len(reasons)
        return cls([""] * n, ["error"] * n, [0] * n, [0] * n, list(reasons))

    def put(self, index: int, text: str, reason: str, prompt_tokens: int, output_tokens: int) -> None:
        """Fill in the answer of sample `index`, with its finish reason and its counts of tokens."""
        self.texts[index], self.finish_reasons[index], self.errors[index] = text, reason, None
        self.prompt_tokens[index], self.output_tokens[index] = prompt_tokens, output_tokens

    def extend(self, other: Completions) -> None:
        """Add the samples of `other` behind these."""
        self.texts += other.texts
        self.finish_reasons += other.finish_reasons
        self.prompt_tokens += other.prompt_tokens
        self.output_tokens += other.output_tokens
        self.errors += other.errors


def sample_seed(run_seed: int, round: int, question_id: str, sample: int) -> int:
    """The sampler's seed of one attempt, the same whatever the part, the order or the engine.

    Returns a number below 2**63 that depends on the run's seed, the round, the question's id and the sample's index.
    """
    key = f"{run_seed}/{round}/{question_id}/{sample}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def unaskable(prompt: str) -> str | None:
    """Why `prompt` is not text that a student can be asked.

    Returns None where it can be: it is not empty, holds no NUL character and no lone surrogate.
    """
    if not prompt.strip():
        return "the prompt is empty"
    if "\0" in prompt:
        return "the prompt holds a NUL character"
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        return f"the prompt holds a lone surrogate at character {error.start}"
    return None
