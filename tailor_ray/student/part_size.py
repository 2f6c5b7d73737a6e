"""How many questions are one part: what is answered, taught and committed together.

A part is to be some seconds' to a minute's work of the engines. A small exam of training questions is to have several
parts. So teaching begins while it goes on. Other exams have few, for several parts at a time take as many processes.
The size depends on the settings alone, so a run is the same on every cluster.
"""

from __future__ import annotations

from tailor_ray.config import RunConfig

TOKENS_PER_ENGINE = 32_768  # the most that a part's answers hold: 10 s of a GPU's engine, two minutes of a CPU's
ENGINES = 2  # what `student.engines: auto` counts as
MOST = 1024  # questions
PARTS = 16  # that training questions have at least, if that leaves FEWEST questions in each
FEWEST = 8


def questions_per_part(config: RunConfig, split: str, questions: int) -> int:
    """The size of a part: `exam.shard_questions`, or what suits the work where that is `auto`.

    `split` is train, validation or test, and `questions` how many it has. Every count of `enough_to_know` questions and
    more gives the same size, so a longer split need not be counted first.
    """
    if config.exam.shard_questions != "auto":
        return config.exam.shard_questions
    most = _by_tokens(config, split)
    parts = PARTS if split == "train" else max(1, -(-questions // most))
    return min(most, max(FEWEST, -(-questions // parts)))


def enough_to_know(config: RunConfig, split: str) -> int:
    """From how many questions of `split` on the size of a part no longer depends on their number."""
    return PARTS * _by_tokens(config, split)


def _by_tokens(config: RunConfig, split: str) -> int:
    engines = ENGINES if config.student.engines == "auto" else config.student.engines
    tokens = config.evaluation.max_new_tokens
    if split == "train":
        tokens = config.exam.samples * config.exam.max_new_tokens
    return max(1, min(MOST, TOKENS_PER_ENGINE * engines // tokens))
