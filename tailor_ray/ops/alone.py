"""One stage alone, on any model and task: a run without rounds, so that it commits and resumes like one.

No teacher is asked, so none need be there.
"""

from __future__ import annotations

import json

from tailor_ray.config import RunConfig
from tailor_ray.rounds.launch import open_run
from tailor_ray.rounds.spec import StageId


def evaluate_alone(config: RunConfig) -> str:
    """Greedy accuracy on validation and test as JSON."""
    with open_run(_without_rounds(config)) as (runner, session), session:
        runner.run(session)
        return json.dumps(runner.metrics(StageId(0, "evaluate")), indent=1)


def exam_alone(config: RunConfig) -> str:
    """Verdict counts of the sampled exam on the training questions as JSON; the attempts lie in the run folder."""
    with open_run(_without_rounds(config)) as (runner, session), session:
        runner.examine(session)
        return json.dumps(runner.metrics(StageId(1, "exam")), indent=1)


def _without_rounds(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"rounds": config.rounds.model_copy(update={"max_rounds": 0})})
