"""What the driver says as Ray metrics: one function for each moment.

Each figure is counted once, by the process that knows it first: the driver counts what parts' records and manifests
say. Training's steps, tokens and loss are its worker's of rank 0, restarts of engines their supervisor's, requests the
teacher's pool's.
"""

from __future__ import annotations

from tailor_ray.layout import SPLITS
from tailor_ray.observe import metrics
from tailor_ray.records import Verdict
from tailor_ray.storage import Manifest, Part


def answered(part: Part) -> None:
    """A part of an exam or evaluation was committed; its record counts verdicts and tokens."""
    counts = part.info["counts"]
    for verdict in Verdict:
        metrics.count("exam_samples", counts.get(verdict, 0), verdict=verdict.value)
    metrics.count("engine_tokens", counts["prompt_tokens"], direction="prompt")
    metrics.count("engine_tokens", counts["output_tokens"], direction="output")


def committed(manifest: Manifest) -> None:
    """A stage was committed."""
    metrics.gauge("round", manifest.round)
    metrics.gauge("stage_seconds", manifest.seconds, stage=manifest.stage)
    for split in SPLITS if manifest.stage == "evaluate" else ():
        if split in manifest.metrics:
            metrics.gauge("accuracy", manifest.metrics[split]["accuracy"], split=split)
