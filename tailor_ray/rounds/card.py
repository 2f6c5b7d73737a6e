"""The model card of a round's student: what it learnt from, with which settings, what was measured.

In: the run's manifests and the round's own evaluation, which is not committed yet. Out: `student/README.md` beside
the weights. It is not among the files of the training stage's manifest, for it is written after that.
"""

from __future__ import annotations

from typing import Any

import yaml

from tailor_ray.config import RunConfig
from tailor_ray.rounds.spec import StageId
from tailor_ray.storage import Store, read_manifest

SECTIONS = ("task", "student", "exam", "teacher", "training")  # of the settings that change results


def write_card(store: Store, config: RunConfig, number: int, evaluation: dict[str, Any]) -> None:
    """Write the card of round `number`'s student; `evaluation` holds that round's scores by split."""
    rounds = [_Round(store, earlier) for earlier in range(number + 1)]
    rounds[-1].scores = evaluation
    text = model_card(config, rounds)
    store.child(*StageId(number, "train").folder).write_bytes("student/README.md", text.encode())


class _Round:
    """What a round's manifests say, {} for what it does not have."""

    def __init__(self, store: Store, number: int) -> None:
        found = {
            name: read_manifest(store.child(*StageId(number, name).folder)) for name in ("teach", "train", "evaluate")
        }
        metrics = {name: {} if manifest is None else manifest.metrics for name, manifest in found.items()}
        self.number = number
        self.teach, self.train, self.scores = metrics["teach"], metrics["train"], metrics["evaluate"]


def model_card(config: RunConfig, rounds: list[_Round]) -> str:
    """Markdown with the front matter that the hub reads."""
    given = f"{config.student.model}" + (f" at {config.student.revision}" if config.student.revision else "")
    data = config.task.name + (f", {config.task.path}" if config.task.path else "")
    settings = {name: section for name, section in config.results().items() if name in SECTIONS}
    lines = [
        *("---", "library_name: transformers", "pipeline_tag: text-generation"),
        *("tags: [reasoning, distillation, tailor-ray]", "---", "", f"# {config.name}, round {rounds[-1].number}", ""),
        "A small causal language model that learnt step-by-step reasoning from a larger one, in rounds: on the",
        "teacher's rationales (weighted cross-entropy) and on its own mistakes (triplet loss). Made by tailor-ray.",
        "",
        f"- Data: {_plain(data)}",
        f"- Student as given: {_plain(given)}",
        f"- Teacher: {_plain(config.teacher.model)}",
        f"- Seed: {config.seed}",
        "",
        "| round | lessons | examples | with a mistake | steps | accuracy on validation | accuracy on test |",
        "|---|---|---|---|---|---|---|",
        *(_row(one) for one in rounds),
        "",
        "Accuracies are of greedy answers, with 95 % intervals.",
        "",
        "## Settings",
        "",
        *("```yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip(), "```", ""),
    ]
    return "\n".join(lines)


def _row(one: _Round) -> str:
    train = one.train
    counts = [one.teach.get("accepted", ""), *(train.get(name, "") for name in ("examples", "with_pair"))]
    steps = train.get("steps", "")
    if train.get("step_kept", steps) != steps:
        steps = f"{train['step_kept']} of {steps}"
    cells = [one.number, *counts, steps, _score(one.scores.get("validation")), _score(one.scores.get("test"))]
    return "| " + " | ".join(map(str, cells)) + " |"


def _score(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    low, high = score["ci95"]
    return f"{score['accuracy']:.1%} ({low:.1%} – {high:.1%}) of {score['total']}"


def _plain(text: str) -> str:
    return " ".join(text.split())
