"""`tailor-ray plan`: what a run will ask, cost and take, before anything is spent. Reads the data, calls nobody.

Questions are counted from the task itself. Once a run folder has a ledger and an exam, their means take the place of
the assumptions, which are listed below the table.
"""

from __future__ import annotations

from itertools import islice

from tailor_ray.config import RunConfig
from tailor_ray.observe.progress import duration
from tailor_ray.storage import Store, read_manifest
from tailor_ray.tasks import load_task
from tailor_ray.teacher.book import stored_rows
from tailor_ray.teacher.forecast import Amount, Basis, Forecast, forecast

SAMPLE = 200  # questions whose length stands for all


def plan(config: RunConfig) -> str:
    """The forecast as text."""
    store = Store.open(config.storage).child(config.name)
    made = run_forecast(config, store)
    lines = [_table(made), "", "The forecast assumes:"]
    lines += [f"- {text}" for text in (*made.assumptions, *_exam_lines(config))]
    for name, limit in (("budget_usd", config.teacher.budget_usd), ("budget_tokens", config.teacher.budget_tokens)):
        if limit is not None:
            lines.append(f"teacher.{name} is {limit:g}; the run stops cleanly (exit code 3) when it is used up")
    return "\n".join(lines)


def run_forecast(config: RunConfig, store: Store) -> Forecast:
    """All rounds' requests, tokens and dollars; from the run's own ledger and last exam where it has them."""
    task = load_task(config.task, config.seed)
    questions = sum(1 for _ in task.train)
    basis = Basis(
        questions=questions,
        sample=tuple(islice(iter(task.train), SAMPLE)),
        kind=task.answer_kind,
        rounds=config.rounds.max_rounds,
        attempts=config.exam.samples,
        mistake_share=_mistake_share(store),
    )
    return forecast(config.teacher, basis, stored_rows(store.child("teacher")))


def _mistake_share(store: Store) -> float | None:
    """Share of wrong attempts in the latest exam, None before the first."""
    for number in sorted(store.folders("rounds"), reverse=True):
        manifest = read_manifest(store.child("rounds", number, "exam"))
        if manifest is not None and manifest.metrics["attempts"]:
            return manifest.metrics["wrong"] / manifest.metrics["attempts"]
    return None


def _table(made: Forecast) -> str:
    rows = [("round", "requests", "input tokens", "output tokens", "cost", "teacher's time")]
    named: list[tuple[str, Amount]] = [(str(number), amount) for number, amount in enumerate(made.rounds, start=1)]
    for name, amount in [*named, ("all", made.total)]:
        rows.append(
            (
                name,
                f"{amount.requests:,}",
                f"{amount.input_tokens:,}",
                f"{amount.output_tokens:,}",
                f"${amount.cost_usd:,.2f}",
                duration(amount.seconds),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _exam_lines(config: RunConfig) -> list[str]:
    return [
        f"an exam asks each question {config.exam.samples} times, up to {config.exam.max_new_tokens} new tokens each; "
        "its time depends on the engines and is not forecast"
    ]
