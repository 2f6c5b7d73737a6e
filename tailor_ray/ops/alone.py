"""One stage alone, on any model and task: a run without rounds, so that it commits and resumes like one.

No teacher is asked, so none need be there.
"""

from __future__ import annotations

import json

from tailor_ray.config import RunConfig
from tailor_ray.layout import StageId, stage_folder
from tailor_ray.rounds.launch import open_run
from tailor_ray.rounds.loop import run_exam_alone, run_rounds
from tailor_ray.storage import read_manifest


def evaluate_alone(config: RunConfig) -> str:
    """Greedy accuracy on validation and test as JSON."""
    alone = _without_rounds(config)
    with open_run(alone) as (run, services), services:
        run_rounds(alone, run, services)
        manifest = read_manifest(stage_folder(run, StageId(0, "evaluate")))
        assert manifest is not None
        return json.dumps(manifest.metrics, indent=1)


def exam_alone(config: RunConfig) -> str:
    """Verdict counts of the sampled exam on the training questions as JSON; the attempts lie in the run folder."""
    alone = _without_rounds(config)
    with open_run(alone) as (run, services), services:
        return json.dumps(run_exam_alone(alone, run, services), indent=1)


def _without_rounds(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"rounds": config.rounds.model_copy(update={"max_rounds": 0})})
