"""`tailor-ray plan`: what a run will ask, cost and take, before anything is spent.

It reads the data and calls nobody. Questions are counted from the task itself. What else is assumed is listed below the
table. A run folder's ledger and exam take the place of assumptions. Rounds that are done are shown as what they took.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import islice

import pyarrow.compute as pc

from tailor_ray.config import RunConfig
from tailor_ray.layout import ATTEMPTS, StageId, ledger_folder, rounds_begun, stage_folder
from tailor_ray.observe.progress import duration
from tailor_ray.observe.report import aligned
from tailor_ray.records import Verdict
from tailor_ray.storage import Store, find_part, read_manifest, read_part
from tailor_ray.tasks import load_task
from tailor_ray.teacher.ledger_rows import LedgerFiles
from tailor_ray.teacher.preflight import Amount, Basis, Forecast, forecast

SAMPLE = 200  # questions whose length stands for all
SAMPLED_PARTS = 32  # of an exam, spread over all of it: some 8,000 questions say what share has mistakes


def plan(config: RunConfig) -> str:
    """The forecast as text: a table with one line per round, what it assumes, and the budgets."""
    store = Store.open(config.storage).child(config.name)
    made = run_forecast(config, store)
    rows: list[tuple[str, ...]] = [("round", "requests", "input tokens", "output tokens", "cost", "teacher's time")]
    named: list[tuple[str, Amount]] = [(str(number), amount) for number, amount in enumerate(made.rounds, start=1)]
    for name, amount in (*named, ("all", made.total)):
        counts = (f"{one:,}" for one in (amount.requests, amount.input_tokens, amount.output_tokens))
        rows.append((name, *counts, f"${amount.cost_usd:,.2f}", duration(amount.seconds)))
    lines = [aligned(rows), "", "The forecast assumes:", *(f"- {text}" for text in made.assumptions)]
    lines.append(
        f"- an exam asks each question {config.exam.samples} times, up to {config.exam.max_new_tokens} new tokens "
        "each; its time depends on the engines and is not forecast"
    )
    for name, limit in (("budget_usd", config.teacher.budget_usd), ("budget_tokens", config.teacher.budget_tokens)):
        if limit is not None:
            lines.append(f"teacher.{name} is {limit:g}; the run stops cleanly (exit code 3) when it is used up")
    return "\n".join(lines)


def run_forecast(config: RunConfig, store: Store) -> Forecast:
    """All rounds' requests, tokens and dollars.

    They come from the ledger, exams and rounds of the run folder `store`, where it has them.
    """
    task = load_task(config.task, config.seed)
    questions = sum(1 for _ in task.train)
    done = {}  # what the rounds took whose teaching is committed
    for number in rounds_begun(store):
        manifest = read_manifest(stage_folder(store, StageId(number, "teach")))
        if manifest is not None:
            took = manifest.metrics
            tokens = took["input_tokens"], took["output_tokens"]
            done[number] = Amount(took["requests"], *tokens, took["cost_usd"], manifest.seconds)
    basis = Basis(
        questions=questions,
        sample=tuple(islice(iter(task.train), SAMPLE)),
        kind=task.answer_kind,
        rounds=config.rounds.max_rounds,
        attempts=config.exam.samples,
        done=done,
    )
    basis, sampled = _examined(basis, config, store)
    made = forecast(config.asked_teacher(), basis, LedgerFiles(ledger_folder(store)).read())
    return replace(made, assumptions=(*made.assumptions, *sampled))


def _examined(basis: Basis, config: RunConfig, store: Store) -> tuple[Basis, list[str]]:
    """The basis with the mistakes of the latest exam in place of assumed ones, and what is assumed of them."""
    for number in reversed(rounds_begun(store)):
        folder = stage_folder(store, StageId(number, "exam"))
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        count = manifest.parts[ATTEMPTS].count
        indices = sorted({place * count // SAMPLED_PARTS for place in range(SAMPLED_PARTS)})
        questions, wanted, lengths = 0, 0, list[int]()
        for index in indices:
            texts: defaultdict[str, set[str]] = defaultdict(set)
            rows = read_part(folder, find_part(folder, ATTEMPTS, index), ["question_id", "text", "verdict"])
            questions += len(rows["question_id"].unique())
            for row in rows.filter(pc.equal(rows["verdict"], Verdict.WRONG.value)).to_pylist():
                texts[row["question_id"]].add(row["text"].strip())
            wanted += sum(min(len(some), config.asked_teacher().max_mistakes) for some in texts.values())
            lengths += [len(text) for some in texts.values() for text in some]
        some = f"the mistakes of round {number}'s exam are those of {len(indices)} of its {count:,} parts"
        basis = replace(
            basis,
            mistakes=wanted / max(1, questions),
            mistake_characters=sum(lengths) / max(1, len(lengths)),
        )
        return basis, [some] if len(indices) < count else []
    return basis, []
