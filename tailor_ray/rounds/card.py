"""The model card of a round's student: what it learnt from and with which settings.

How well it does is not known when it is written: the report says so, with intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tailor_ray.config import RunConfig

SECTIONS = ("task", "student", "exam", "teacher", "training")  # of the settings that change results

REFLECTIONS = {"triplet": "triplet loss", "likelihood": "as less likely", "none": "by the lessons on them alone"}


def model_card(config: RunConfig, taught: Mapping[int, Mapping[str, Any]], trained: Mapping[str, Any]) -> str:
    """Markdown with the front matter that the hub reads.

    `taught` holds the teaching's figures by round up to this one, `trained` those of this round's training.
    """
    given = f"{config.student.model}" + (f" at {config.student.revision}" if config.student.revision else "")
    data = config.task.name + (f", {config.task.path}" if config.task.path else "")
    settings = {name: section for name, section in config.results().items() if name in SECTIONS}
    steps = str(trained["steps"])
    if trained["step_kept"] != trained["steps"]:
        steps = f"{trained['step_kept']} of {steps}"
    lines = [
        *("---", "library_name: transformers", "pipeline_tag: text-generation"),
        *("tags: [reasoning, distillation, tailor-ray]", "---", "", f"# {config.name}, round {max(taught)}", ""),
        "A small causal language model that learnt step-by-step reasoning from a larger one, in rounds: on the",
        f"teacher's rationales (weighted cross-entropy) and its own mistakes ({REFLECTIONS[config.training.pairs]}).",
        "Made by tailor-ray.",
        "",
        f"- Data: {_plain(data)}",
        f"- Student as given: {_plain(given)}",
        f"- Teacher: {_plain(config.teacher.model)}",
        f"- Lessons accepted, by round: {', '.join(str(figures['accepted']) for figures in taught.values())}",
        f"- Examples of this round: {trained['examples']}, {trained['with_pair']} of them with a mistake",
        f"- Training steps of this round: {steps}",
        f"- Seed: {config.seed}",
        "- Accuracy: in the run's report",
        "",
        "## Settings",
        "",
        *("```yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip(), "```", ""),
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return " ".join(text.split())
