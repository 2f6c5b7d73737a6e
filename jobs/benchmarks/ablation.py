"""Does the method teach? The full method against what is left when a part is taken away, at equal training steps.

    python jobs/benchmarks/ablation.py [--config jobs/ablation.yaml] [--seeds 1 2 3] [--storage runs/ablation]

Each variant is a whole run of its own (`tailor-ray run`), so the same command goes on where it was stopped. The runs
of one seed share questions and schooled student. Prints a table of the last round's test accuracy, and as its last
line one JSON object: for each variant accuracy_mean, ci95 (Wilson, all seeds' questions together) and seeds (the
accuracy of each); p_value_full_vs_plain and its like are exact McNemar tests over the same questions of all seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from tailor_ray.config import RunConfig, load_config
from tailor_ray.records import Attempt, Verdict, from_table
from tailor_ray.statistics import paired_p_value, sign_flip_p_value, wilson_interval
from tailor_ray.storage import Store, committed_parts, read_part

FULL, PLAIN = "full", "plain"
VARIANTS: dict[str, tuple[str, ...]] = {
    FULL: (),
    "without_feedback": ("training.feedback=false",),
    "without_reflection": ("training.triplet_weight=0",),
    PLAIN: ("training.feedback=false", "training.triplet_weight=0"),
}


def overrides(variant: str, seed: int, storage: str, extra: list[str]) -> list[str]:
    """The settings of one run. All but the first run of a seed take the student that the first one schooled."""
    name = f"{variant}-{seed}"
    shared = [] if variant == FULL else [f"student.model={storage}/{FULL}-{seed}/rounds/00/student/student"]
    return [*extra, f"storage={storage}", f"name={name}", f"seed={seed}", *shared, *VARIANTS[variant]]


def run(config: str, settings: list[str]) -> RunConfig:
    """Run or resume one variant in a process of its own; raises CalledProcessError when it fails."""
    arguments = [part for setting in settings for part in ("--set", setting)]
    subprocess.run([sys.executable, "-m", "tailor_ray", "run", config, *arguments], check=True, stdout=sys.stderr)
    return load_config(config, settings)


def test_answers(config: RunConfig) -> dict[str, bool]:
    """Whether each test question was answered right after the last round, by question id."""
    rounds = Store.open(config.storage).child(config.name, "rounds")
    last = rounds.child(f"{config.rounds.max_rounds:02d}", "evaluate")
    attempts = [row for part in committed_parts(last, "test") for row in from_table(read_part(last, part), Attempt)]
    return {attempt.question_id: attempt.verdict == Verdict.CORRECT for attempt in attempts}


def paired(one: list[dict[str, bool]], other: list[dict[str, bool]]) -> float:
    """The chance of so lopsided a difference between two variants, over the questions of all seeds."""
    pairs = [(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in sorted(a.keys() & b.keys())]
    return paired_p_value([first for first, _ in pairs], [second for _, second in pairs])


def summary(right: dict[str, list[dict[str, bool]]]) -> dict[str, object]:
    """The last line: each variant's figures, and how sure its difference from the full method is."""
    result: dict[str, object] = {}
    for variant, by_seed in right.items():
        shares = [_share(answers) for answers in by_seed]
        correct, total = sum(sum(answers.values()) for answers in by_seed), sum(map(len, by_seed))
        interval = [round(bound, 4) for bound in wilson_interval(correct, total)]
        accuracies = [round(share, 4) for share in shares]
        result[variant] = {"accuracy_mean": round(sum(shares) / len(shares), 4), "ci95": interval, "seeds": accuracies}
    for variant in right.keys() - {FULL}:
        result[f"p_value_full_vs_{variant}"] = paired(right[FULL], right[variant])
        # McNemar takes a seed's questions for independent of each other; this one takes only the seeds to be.
        gains = [_share(full) - _share(other) for full, other in zip(right[FULL], right[variant], strict=True)]
        result[f"p_value_by_seed_full_vs_{variant}"] = sign_flip_p_value(gains)
    return result


def _share(answers: dict[str, bool]) -> float:
    return sum(answers.values()) / len(answers)


def table(result: dict[str, object]) -> str:
    lines = ["| variant | test accuracy | 95 % interval | by seed | p against full |", "|---|---|---|---|---|"]
    for variant in VARIANTS:
        row = result[variant]
        assert isinstance(row, dict)
        low, high = row["ci95"]
        p = result.get(f"p_value_full_vs_{variant}")
        seeds = ", ".join(f"{share:.1%}" for share in row["seeds"])
        lines.append(
            f"| {variant} | {row['accuracy_mean']:.1%} | {low:.1%} – {high:.1%} | {seeds} "
            f"| {'' if p is None else f'{p:.3g}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="jobs/ablation.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--storage", default="runs/ablation")
    parser.add_argument("--set", dest="extra", action="append", default=[], help="a.b=c, for every run")
    given = parser.parse_args()
    storage = str(Path(given.storage).resolve())
    started = time.monotonic()
    right: dict[str, list[dict[str, bool]]] = {variant: [] for variant in VARIANTS}
    for seed in given.seeds:
        for variant in VARIANTS:
            print(f"{time.monotonic() - started:6.0f} s  {variant}, seed {seed}", file=sys.stderr, flush=True)
            config = run(given.config, overrides(variant, seed, storage, given.extra))
            right[variant].append(test_answers(config))
    result = summary(right)
    print(table(result))
    print(json.dumps({**result, "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
