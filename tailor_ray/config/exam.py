"""`exam` and `evaluation`: sampling for mistake mining, greedy decoding for the scores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor_ray.config.base import OPERATIONAL, Section


class ExamConfig(Section):
    """How the student's mistakes are mined. Defaults are the reference's."""

    samples: int = Field(default=4, ge=1, le=256)
    """Attempts a question."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the sampler; greedy decoding belongs to `evaluation`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Cap of one attempt; an attempt that reaches it before its conclusion is `truncated`. Instruct students asked
    without demos write 130 tokens and more, with demos 30 to 60 on one-step problems."""
    shard_questions: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Questions in one committed part; teaching starts with the first. Auto takes what 32,768 new tokens of an engine
    hold (samples · max_new_tokens a question, two engines where `student.engines` is auto), at least 16 parts, and no
    fewer than 8 questions. What is answered of a part that is not whole yet survives a kill in any case."""
    max_engine_restarts: Annotated[int, OPERATIONAL] = Field(default=3, ge=0)
    """Engines replaced in one stage before it fails."""


class EvaluationConfig(Section):
    """How progress is measured: greedy decoding on validation (decides) and test (for the report alone)."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Cap of one answer."""
