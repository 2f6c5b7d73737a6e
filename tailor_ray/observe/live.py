"""What a run's callbacks say, as Ray metrics: one function for each moment, called by the driver.

The driver alone exports, so that each figure is counted once, whatever the number of engines, actors and workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor_ray.observe import metrics
from tailor_ray.records import Verdict
from tailor_ray.storage import Manifest, Part

LOSS_TERMS = {"loss": "total", "mle": "mle", "triplet": "triplet"}


def answered(part: Part) -> None:
    """A part of an exam or evaluation was committed; its record counts verdicts and tokens."""
    counts = part.info["counts"]
    for verdict in Verdict:
        metrics.count("exam_samples", counts.get(verdict, 0), verdict=verdict.value)
    metrics.count("engine_tokens", counts["prompt_tokens"], direction="prompt")
    metrics.count("engine_tokens", counts["output_tokens"], direction="output")


class Training:
    """One training stage: call it with steps done, all steps, and the figures of the last step."""

    def __init__(self) -> None:
        self._done = 0

    def __call__(self, done: int, steps: int, figures: Mapping[str, Any]) -> None:  # noqa: ARG002 (training's callback)
        fresh, self._done = max(0, done - self._done), done
        metrics.count("training_steps", fresh)
        metrics.count("training_tokens", fresh * figures.get("tokens", 0))  # as if each were as long as the last
        for name, term in LOSS_TERMS.items():
            if figures.get(name) is not None:
                metrics.gauge("training_loss", figures[name], term=term)


def committed(manifest: Manifest) -> None:
    """A stage was committed."""
    metrics.gauge("round", manifest.round)
    metrics.gauge("stage_seconds", manifest.seconds, stage=manifest.stage)
    if manifest.stage == "exam":
        metrics.count("engine_restarts", manifest.metrics.get("engine_restarts", 0))
    if manifest.stage == "evaluate":
        for split in ("validation", "test"):
            metrics.gauge("accuracy", manifest.metrics[split]["accuracy"], split=split)
