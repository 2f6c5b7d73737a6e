"""`exam` and `evaluation`: sampling for mistake mining, greedy decoding for the scores."""

from __future__ import annotations

from typing import Annotated

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
    """Cap of one attempt; an attempt that reaches it before its conclusion is `truncated`."""
    shard_questions: int = Field(default=256, ge=1)
    """Questions in one committed shard; teaching starts with the first."""
    max_engine_restarts: Annotated[int, OPERATIONAL] = Field(default=3, ge=0)
    """Engines replaced in one stage before it fails."""


class EvaluationConfig(Section):
    """How progress is measured: greedy decoding on validation (decides) and test (for the report alone)."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Cap of one answer."""
