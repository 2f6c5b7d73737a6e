"""Does the method teach? The full method against what is left when a part is taken away, at equal training steps.

    python jobs/benchmarks/ablation.py [--config jobs/ablation.yaml] [--storage runs/ablation]
        [--seeds 1 2 3] [--variants full plain …] [--lanes 2] [--set a.b=c …] [--report FILE]

Each variant and seed is a run folder of its own, so the same command goes on where it was stopped, and a variant or a
seed may be run alone. Without --variants it is the method and what is left of it; TRIED are settings that were tried to
make its gain larger. What two variants do alike is done once and copied: questions, schooled student, first exam and
first lessons by all variants of a seed, and the whole first round by those that differ in feedback alone, which comes
in round 2. Lanes are processes side by side that share the machine's cores; each has its own Ray and keeps its engines
and workers from run to run. Prints a table of the last round's test accuracy, and as its last line one JSON object:
for each variant accuracy_mean, ci95 (Wilson, all seeds' questions together) and seeds (the accuracy of each);
p_value_full_vs_plain and its like are exact McNemar tests over the same questions of all seeds, against the full method
and against plain distillation at either decay of the learning rate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

from tailor_ray.config import RunConfig, load_config
from tailor_ray.layout import StageId, stage_folder
from tailor_ray.records import Attempt, Verdict, from_table
from tailor_ray.statistics import paired_p_value, sign_flip_p_value, wilson_interval
from tailor_ray.storage import Store, read_manifest, read_part, stage_parts

FULL, PLAIN, LIGHT, DECAY_PLAIN = "full", "plain", "light_reflection", "steeper_decay_plain"
PARTS: dict[str, tuple[str, ...]] = {
    FULL: (),
    "without_feedback": ("training.feedback=false",),
    "without_reflection": ("training.triplet_weight=0",),
    PLAIN: ("training.feedback=false", "training.triplet_weight=0"),
    LIGHT: ("training.triplet_weight=0.1",),  # tried: the paper's weight is 0.5
}
TRIED: dict[str, tuple[str, ...]] = {
    "small_margin": ("training.triplet_margin=0.2",),
    "more_mistakes": (*PARTS[LIGHT], "exam.samples=4", "teacher.max_mistakes=2"),
    "latest_lessons": (*PARTS[LIGHT], "training.lessons=replay", "training.replay_share=0.5"),
    "cooler_exam": (*PARTS[LIGHT], "exam.temperature=0.7"),
    "steeper_decay": (*PARTS[LIGHT], "training.round_decay=0.5"),
    DECAY_PLAIN: (*PARTS[PLAIN], "training.round_decay=0.5"),
}
VARIANTS = PARTS | TRIED
STUDENT = tuple(StageId(0, stage) for stage in ("questions", "student", "evaluate"))
BEGUN = (*STUDENT, StageId(1, "exam"), StageId(1, "teach"))
ROUND_1 = (*BEGUN, StageId(1, "examples"), StageId(1, "train"), StageId(1, "evaluate"))
BEGINS_AS = {  # a variant's first stages are another's
    "without_feedback": (FULL, ROUND_1),
    "without_reflection": (FULL, BEGUN),
    PLAIN: ("without_reflection", ROUND_1),
    LIGHT: (FULL, BEGUN),
    **dict.fromkeys(TRIED, (FULL, BEGUN)),
    **dict.fromkeys(("more_mistakes", "cooler_exam"), (FULL, STUDENT)),
}
POLL_S = 2.0
Task = tuple[str, int]  # variant, seed


def overrides(variant: str, seed: int, storage: str, extra: list[str], lanes: int = 1) -> list[str]:
    """The settings of one run, on its lane's share of the machine."""
    cores = max(1, (os.cpu_count() or 1) // lanes)
    share = [f"cluster.num_cpus={max(1, cores)}", f"student.engines={cores}", f"training.threads={cores}"]
    return [*share, *extra, f"storage={storage}", f"name={variant}-{seed}", f"seed={seed}", *VARIANTS[variant]]


def lanes_of(variants: list[str], seeds: list[int], lanes: int) -> list[list[Task]]:
    """Who runs what: whole seeds by turns, what is left over run by run; a run comes after those that it begins as."""
    order = sorted(VARIANTS, key=lambda name: len(_chain(name)))
    ordered = [name for name in order if any(name in _chain(wanted) for wanted in variants)]
    whole = len(seeds) // lanes * lanes
    out: list[list[Task]] = [[] for _ in range(lanes)]
    for index, seed in enumerate(seeds[:whole]):
        out[index % lanes] += [(variant, seed) for variant in ordered]
    rest = [(variant, seed) for seed in seeds[whole:] for variant in ordered]
    for index, task in enumerate(rest):
        out[index % lanes].append(task)
    return out


def _chain(variant: str) -> list[str]:
    """The variant, what it begins as, what that begins as, and so on."""
    return [variant, *(_chain(BEGINS_AS[variant][0]) if variant in BEGINS_AS else ())]


def run_lane(config: str, tasks: list[Task], storage: str, extra: list[str], lanes: int) -> None:
    """Do or resume the runs of one lane, on one Ray and by the same engines."""
    from tailor_ray.rounds.cluster import connected
    from tailor_ray.rounds.launch import run
    from tailor_ray.rounds.services import Staff

    os.environ["RAY_ADDRESS"] = "local"  # each lane its own: the cores are shared out by hand
    runs = [load_config(config, overrides(*task, storage, extra, lanes)) for task in tasks]
    with connected(runs[0].cluster):
        staff = Staff(runs[0])
        for task, one in zip(tasks, runs, strict=True):
            _say(f"{task[0]}, seed {task[1]}")
            begin(one, task)
            run(one, staff)
        staff.dismiss()


def finish(lanes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for all; when one fails the others end too, for they may be waiting for it."""
    while (codes := [lane.poll() for lane in lanes]).count(0) < len(lanes):
        if any(codes):
            for lane in lanes:
                lane.terminate()
            sys.exit("a lane failed: its run.log says why, and the same command goes on")
        time.sleep(POLL_S)


def begin(config: RunConfig, task: Task) -> None:
    """Copy what a run begins with from the run that did it, once that is committed there."""
    variant, seed = task
    target = Path(config.storage) / config.name
    if target.exists() or variant not in BEGINS_AS:
        return
    other, stages = BEGINS_AS[variant]
    source = target.with_name(f"{other}-{seed}")
    while not all(read_manifest(stage_folder(Store.open(str(source)), stage)) for stage in stages):
        time.sleep(POLL_S)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for stage in stages:
        shutil.copytree(source / stage.path, temporary / stage.path)
    temporary.rename(target)


def test_answers(config: RunConfig) -> dict[str, bool]:
    """Whether each test question was answered right after the last round, by question id."""
    run = Store.open(config.storage).child(config.name)
    last = stage_folder(run, StageId(config.rounds.max_rounds, "evaluate"))
    attempts = [row for part in stage_parts(last, "test") for row in from_table(read_part(last, part), Attempt)]
    return {attempt.question_id: attempt.verdict == Verdict.CORRECT for attempt in attempts}


def paired(one: list[dict[str, bool]], other: list[dict[str, bool]]) -> float:
    """The chance of so lopsided a difference between two variants, over the questions of all seeds."""
    pairs = [(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in sorted(a.keys() & b.keys())]
    return paired_p_value([first for first, _ in pairs], [second for _, second in pairs])


def summary(right: dict[str, list[dict[str, bool]]]) -> dict[str, object]:
    """The last line: each variant's figures, and how sure its difference from full and plain ones is."""
    result: dict[str, object] = {}
    for variant, by_seed in right.items():
        shares = [_share(answers) for answers in by_seed]
        correct, total = sum(sum(answers.values()) for answers in by_seed), sum(map(len, by_seed))
        interval = [round(bound, 4) for bound in wilson_interval(correct, total)]
        accuracies = [round(share, 4) for share in shares]
        result[variant] = {"accuracy_mean": round(sum(shares) / len(shares), 4), "ci95": interval, "seeds": accuracies}
    for reference, variant in product((FULL, PLAIN, DECAY_PLAIN), right):
        if reference in right and variant != reference:
            result[f"p_value_{reference}_vs_{variant}"] = paired(right[reference], right[variant])
            # McNemar takes a seed's questions for independent of each other; this one takes only the seeds to be.
            gains = [_share(one) - _share(other) for one, other in zip(right[reference], right[variant], strict=True)]
            result[f"p_value_by_seed_{reference}_vs_{variant}"] = sign_flip_p_value(gains)
    return result


def _share(answers: dict[str, bool]) -> float:
    return sum(answers.values()) / len(answers)


def table(result: dict[str, object]) -> str:
    lines = ["| variant | test accuracy | 95 % interval | by seed | p against full | p against plain |"]
    lines.append("|---" * 6 + "|")
    for variant in VARIANTS:
        row = result.get(variant)
        if not isinstance(row, dict):
            continue
        low, high = row["ci95"]
        seeds = ", ".join(f"{share:.1%}" for share in row["seeds"])
        cells = [variant, f"{row['accuracy_mean']:.1%}", f"{low:.1%} – {high:.1%}", seeds]
        for reference in (FULL, PLAIN):
            p = result.get(f"p_value_{reference}_vs_{variant}")
            cells.append("" if p is None else f"{p:.3g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"{time.strftime('%X')}  {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="jobs/ablation.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(PARTS))
    parser.add_argument("--storage", default="runs/ablation")
    parser.add_argument("--lanes", type=int, default=min(2, os.cpu_count() or 1), help="processes side by side")
    parser.add_argument("--lane", type=int, help="do this lane's runs alone, and no table")
    parser.add_argument("--report", help="write the table to this file as well")
    parser.add_argument("--set", dest="extra", action="append", default=[], help="a.b=c, for every run")
    given = parser.parse_args()
    storage = str(Path(given.storage).resolve())
    tasks = lanes_of(given.variants, given.seeds, given.lanes)
    if given.lane is not None:
        run_lane(given.config, tasks[given.lane], storage, given.extra, given.lanes)
        return
    started = time.monotonic()
    command = [sys.executable, *sys.argv, "--lanes", str(given.lanes)]
    finish(
        [
            subprocess.Popen([*command, "--lane", str(lane)], stdout=sys.stderr)
            for lane in range(given.lanes)
            if tasks[lane]
        ]
    )
    right = {
        variant: [
            test_answers(load_config(given.config, overrides(variant, seed, storage, given.extra)))
            for seed in given.seeds
        ]
        for variant in VARIANTS
        if variant in given.variants
    }
    result = {**summary(right), "seconds": round(time.monotonic() - started)}
    text = f"{table(result)}\n"
    if given.report:
        Path(given.report).write_text(f"{text}\n{json.dumps(result)}\n", encoding="utf-8")
    print(text)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
