"""The run's live figures as Ray metrics, scraped by Prometheus and shown by the Grafana dashboard in cluster/.

`count`, `gauge` and `observe` may be called from any process and thread, with or without Ray. Outside a Ray process
they only check the name. A metric is made when first used, so importing this module costs nothing. Ray adds `ray_` to
each name and `_total` to a counter's. `teacher_requests` is scraped as `ray_tailor_teacher_requests_total`.

Each figure is counted once, by the process that knows it first. The driver counts what the records of parts and the
manifests say. Training's worker of rank 0 counts steps, tokens and loss. The engines' supervisor counts their restarts.
The teacher's pool counts requests.

Every series carries the label `run`, for several runs may share a cluster. A process works for one run at a time. The
driver and whoever it gives work to say which by `set_run`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from tailor_ray.layout import SPLITS
from tailor_ray.once import once
from tailor_ray.records import Verdict
from tailor_ray.storage import Manifest, Part

PREFIX = "tailor_"
RUN = "run"  # the label of every series


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str
    tags: tuple[str, ...] = ()

    @property
    def scraped(self) -> str:
        """The name that Prometheus sees; a histogram's series carry `_bucket`, `_sum` and `_count` behind it."""
        return f"ray_{PREFIX}{self.name}" + ("_total" if self.kind == "counter" else "")


TABLE = {
    metric.name: metric
    for metric in (
        Metric("exam_samples", "counter", "attempts", "Attempts graded, by verdict", ("verdict",)),
        Metric("engine_tokens", "counter", "tokens", "Tokens through the student's engines", ("direction",)),
        Metric("engine_restarts", "counter", "engines", "Engines replaced after they died"),
        Metric("weight_swap_seconds", "gauge", "s", "Time of the last swap of weights in all engines"),
        Metric("teacher_requests", "counter", "requests", "Teacher requests ended, by outcome", ("outcome",)),
        Metric("teacher_in_flight", "gauge", "requests", "Teacher calls sent and not yet answered"),
        Metric("teacher_tokens", "counter", "tokens", "Tokens that the teacher counted in usage", ("direction",)),
        Metric("teacher_latency_seconds", "histogram", "s", "From sending a teacher call to its reply", ("outcome",)),
        Metric("teacher_spent_usd", "gauge", "USD", "Dollars paid to the teacher in this run"),
        Metric("teacher_left_usd", "gauge", "USD", "Dollars left in the run's budget"),
        Metric("ledger_hits", "counter", "requests", "Teacher requests answered from the ledger, at no cost"),
        Metric("training_loss", "gauge", "nats", "Loss of the last step, by term: total, mle, reflection", ("term",)),
        Metric("training_tokens", "counter", "tokens", "Tokens through training's forward pass"),
        Metric("training_steps", "counter", "steps", "Optimizer steps taken"),
        Metric("round", "gauge", "", "Round under way; 0 is the evaluation of the student as given"),
        Metric("accuracy", "gauge", "share", "Greedy accuracy of the last evaluation, by split", ("split",)),
        Metric("stage_seconds", "gauge", "s", "Wall time of the last committed stage of a kind", ("stage",)),
    )
}

LATENCY_BOUNDS_S = [0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120]

_run = ""


def set_run(name: str) -> None:
    """From now on this process's figures belong to the run `name`."""
    global _run
    _run = name


def current_run() -> str:
    """The name given to `set_run` last; empty where there was none."""
    return _run


def count(name: str, n: float = 1, **tags: str) -> None:
    """Add `n` to the counter `name`, in the series of these `tags`; adding 0 only checks the name.

    Raises KeyError for a name or tag not in TABLE.
    """
    metric = _checked(name, "counter", tags)
    if n > 0 and _in_ray():
        _instrument(metric).inc(n, tags={**tags, RUN: _run})


def gauge(name: str, value: float, **tags: str) -> None:
    """Set the gauge `name`, in the series of these `tags`, to `value`.

    Raises KeyError for a name or tag not in TABLE.
    """
    metric = _checked(name, "gauge", tags)
    if _in_ray():
        _instrument(metric).set(value, tags={**tags, RUN: _run})


def observe(name: str, value: float, **tags: str) -> None:
    """Add `value` to the histogram `name`, in the series of these `tags`.

    Raises KeyError for a name or tag not in TABLE.
    """
    metric = _checked(name, "histogram", tags)
    if _in_ray():
        _instrument(metric).observe(value, tags={**tags, RUN: _run})


def part_answered(part: Part) -> None:
    """A part of an exam or evaluation was committed; its record counts verdicts and tokens."""
    counts = part.info["counts"]
    for verdict in Verdict:
        count("exam_samples", counts.get(verdict, 0), verdict=verdict.value)
    count("engine_tokens", counts["prompt_tokens"], direction="prompt")
    count("engine_tokens", counts["output_tokens"], direction="output")


def stage_committed(manifest: Manifest) -> None:
    """Show its round, its time, and an evaluation's accuracy by split."""
    gauge("round", manifest.round)
    gauge("stage_seconds", manifest.seconds, stage=manifest.stage)
    for split in SPLITS if manifest.stage == "evaluate" else ():
        if split in manifest.metrics:
            gauge("accuracy", manifest.metrics[split]["accuracy"], split=split)


def _checked(name: str, kind: str, tags: dict[str, str]) -> Metric:
    metric = TABLE[name]
    if metric.kind != kind or set(tags) != set(metric.tags):
        raise KeyError(f"metric {name} is a {metric.kind} with tags {metric.tags}, not a {kind} with {tuple(tags)}")
    return metric


def _in_ray() -> bool:
    """Whether this process can export; never imports Ray by itself."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@once
def _instrument(metric: Metric) -> Any:
    """The process's one instrument for a metric: Ray warns when a name is registered twice."""
    from ray.util import metrics as ray_metrics

    name, text = PREFIX + metric.name, f"{metric.description} [{metric.unit}]" if metric.unit else metric.description
    tags = (*metric.tags, RUN)
    if metric.kind == "counter":
        return ray_metrics.Counter(name, text, tag_keys=tags)
    if metric.kind == "gauge":
        return ray_metrics.Gauge(name, text, tag_keys=tags)
    return ray_metrics.Histogram(name, text, boundaries=LATENCY_BOUNDS_S, tag_keys=tags)
