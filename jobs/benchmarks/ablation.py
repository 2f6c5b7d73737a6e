"""Does the method teach? The full method, what is left when a part is taken away, and switches beside it.

    python jobs/benchmarks/ablation.py [--config jobs/ablation.yaml | --gpu] [--storage runs/ablation]
        [--seeds 1 2 3 … | --show] [--variants full plain …] [--lanes 2] [--set a.b=c …] [--results FILE]

The unit is the seed: all variants of one have its questions, its schooled student and its first exam, and a variant's
figure is its difference to plain distillation, paired by seed, with a 95 % interval over the seeds by Student's t and a
bootstrap beside it. Variants are chosen on seeds 1 to 8; `--show` takes the seeds 11 to 18, for what was chosen alone.
All take equal steps. At equal teacher tokens plain distillation is `plain_equal_tokens`, which asks for as many
rationales of a question as cost what `--against` spends, or more. The student is the tiny one; jobs/ablation-real.yaml
has a pretrained one for two cores, and `--gpu` the same for one GPU.

Each variant and seed is a run folder of its own, so the same command goes on where it was stopped, and a variant or a
seed may be run alone. What a run came to is a line of the file `--results`, which is kept beside this one: a seed whose
variants all have a line under the same settings is not run again, on no machine. A seed is to end on the kind of
processor that it began on, for others round otherwise; lines of code that computed otherwise are to be deleted.

Without --variants it is the method and what is left of it; SWITCHES are ways beside the paper's, each beside the
teacher's feedback and no triplet term, and COMBINATIONS some of them together. What two variants do alike is done once
and copied: questions, schooled student, first exam and first lessons by all variants of a seed, and the whole first
round by those that differ in the second alone, which brings feedback. Lanes are processes side by side that share the
machine's cores; each has its own Ray and keeps its engines and workers from run to run. Prints a table of the last
round's test accuracy, and as its last line one JSON object: for each variant accuracy_mean, ci95 (Wilson, all seeds'
questions together), seeds (the accuracy of each), to_plain and to_plain_equal_tokens with mean, t95 and bootstrap95,
teacher_tokens (a seed's, of the lessons that it learns from) and tokens_per_point gained over round 0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tailor_ray.config import RunConfig, load_config
from tailor_ray.layout import RUN_FILE, StageId, stage_folder
from tailor_ray.statistics import bootstrap_interval, t_interval, wilson_interval
from tailor_ray.storage import Store, read_manifest

FULL, PLAIN, FEEDBACK = "full", "plain", "without_reflection"
PARTS: dict[str, tuple[str, ...]] = {
    FULL: (),
    "without_feedback": ("training.feedback=false",),
    FEEDBACK: ("training.triplet_weight=0",),
    PLAIN: ("training.feedback=false", "training.triplet_weight=0"),
}
# Beside no triplet term, so that each shows what it adds to learning from the teacher's lessons and feedback.
_BARE = PARTS[FEEDBACK]
_OWN = ("training.own_correct=1", "training.own_correct_weight=0.5")
_ORPO = ("training.reflection=orpo",)
EQUAL_TOKENS = "plain_equal_tokens"
SWITCHES: dict[str, tuple[str, ...]] = {
    "orpo": _ORPO,
    "redi": ("training.reflection=redi", "training.redi_weight=0.2"),  # 0.8 is for rates of 1e-6, not of 1e-3
    "own_correct": (*_BARE, *_OWN),
    "critique": (*_BARE, "training.critique=true"),
    "continue": (*_BARE, "teacher.correction=continue"),
    "fit": (*_BARE, "teacher.rationales=3", "training.rationales=1", "training.choose=fit"),
    "hinted": (*_BARE, "teacher.last_try=hinted"),
    "replay": (*_BARE, "training.lessons=replay", "training.replay_share=0.5"),
}
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "own_correct_orpo": (*_OWN, *_ORPO),
    "own_correct_replay": (*SWITCHES["replay"], *_OWN),
    "continue_orpo": ("teacher.correction=continue", *_ORPO),
    "own_correct_plain": (*PARTS[PLAIN], *_OWN),  # without feedback: they cost the teacher nothing
    "orpo_plain": ("training.feedback=false", *_ORPO),
    "tailored": ("method=tailored",),
    EQUAL_TOKENS: PARTS[PLAIN],
}
VARIANTS = PARTS | SWITCHES | COMBINATIONS
CHOICE, SHOW = list(range(1, 9)), list(range(11, 19))  # seeds to choose by, and those that take no part in it
MOST_RATIONALES = 8
STUDENT = tuple(StageId(0, stage) for stage in ("questions", "student", "evaluate"))
EXAMINED = (*STUDENT, StageId(1, "exam"))
BEGUN = (*EXAMINED, StageId(1, "teach"))
ROUND_1 = (*BEGUN, StageId(1, "examples"), StageId(1, "train"), StageId(1, "evaluate"))
_LATER = ("continue", "continue_orpo", "fit", "hinted", EQUAL_TOKENS)  # their first lessons differ
BEGINS_AS = {  # a variant's first stages are another's
    **dict.fromkeys((FULL, *SWITCHES, *COMBINATIONS), (PLAIN, BEGUN)),
    **dict.fromkeys((FEEDBACK, "critique"), (PLAIN, ROUND_1)),
    "without_feedback": (FULL, ROUND_1),
    **dict.fromkeys(_LATER, (PLAIN, EXAMINED)),
}
RESULTS = Path(__file__).with_suffix(".jsonl")
GPU_CONFIG = "jobs/ablation-gpu.yaml"
POLL_S = 2.0
Task = tuple[str, int]  # variant, seed


@dataclass(frozen=True)
class Result:
    """What one run came to."""

    variant: str
    seed: int
    settings: str  # a digest of all that change results
    right: int  # of the test questions, after the last round
    questions: int
    begun: int  # of them right before round 1
    teacher_tokens: int


def read_results(path: Path) -> dict[tuple[str, int, str], Result]:
    """By variant, seed and settings; of several the last one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [Result(**json.loads(line)) for line in lines]
    return {(one.variant, one.seed, one.settings): one for one in found}


def key_of(given: argparse.Namespace, task: Task) -> tuple[str, int, str]:
    """How a run's line is found: the folder that it lies in, and the share of the machine, change nothing."""
    variant, seed = task
    settings = load_config(given.config, [*given.extra, f"seed={seed}", *VARIANTS[variant]]).results()
    if variant == EQUAL_TOKENS:  # so many rationales as cost what this one spends
        settings["against"] = load_config(given.config, [*given.extra, *VARIANTS[given.against]]).results()
    text = json.dumps(settings, sort_keys=True, default=str)
    return (*task, hashlib.sha256(text.encode()).hexdigest()[:12])


def overrides(variant: str, seed: int, storage: str, extra: list[str], lanes: int = 1) -> list[str]:
    """The settings of one run; of several lanes, each has its share of the cores, and no dashboard takes some of it."""
    cores = max(1, (os.cpu_count() or 1) // lanes)
    share = [
        f"cluster.num_cpus={cores}",
        f"student.engines={cores}",
        f"training.threads={cores}",
        "cluster.dashboard=false",
    ]
    return [
        *(share if lanes > 1 else ()),
        *extra,
        f"storage={storage}",
        f"name={variant}-{seed}",
        f"seed={seed}",
        *VARIANTS[variant],
    ]


def lanes_of(variants: list[str], seeds: list[int], lanes: int, against: str = FEEDBACK) -> list[list[Task]]:
    """Who runs what: whole seeds by turns, what is left over run by run; a run comes after those that it needs."""
    wanted = [*variants, *((against, PLAIN) if EQUAL_TOKENS in variants else ())]
    order = sorted(VARIANTS, key=lambda name: (name == EQUAL_TOKENS, len(_chain(name))))
    ordered = [name for name in order if any(name in _chain(one) for one in wanted)]
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


def run_lane(given: argparse.Namespace, tasks: list[Task]) -> None:
    """Do or resume the runs of one lane, on one Ray and by the same engines."""
    from tailor_ray.rounds.cluster import connected
    from tailor_ray.rounds.loop import run
    from tailor_ray.rounds.services import WorkerPools

    os.environ["RAY_ADDRESS"] = "local"  # each lane its own: the cores are shared out by hand
    first = load_config(given.config, overrides(*tasks[0], given.storage, given.extra, given.lanes))
    with connected(first.cluster):
        pools = WorkerPools(first)
        for task in tasks:
            settings = overrides(*task, given.storage, given.extra, given.lanes)
            if task[0] == EQUAL_TOKENS:
                settings.append(f"teacher.rationales={as_many_rationales(given.storage, task[1], given.against)}")
            one = load_config(given.config, settings)
            _say(f"{task[0]}, seed {task[1]}")
            begin(one, task)
            run(one, pools)
            result = result_of(one, key := key_of(given, task))
            if read_results(path := Path(given.results)).get(key) != result:
                with path.open("a", encoding="utf-8") as file:
                    file.write(f"{json.dumps(asdict(result))}\n")
        pools.close()


def result_of(config: RunConfig, key: tuple[str, int, str]) -> Result:
    """Of a run that has ended."""
    run = Store.open(config.storage).child(config.name)
    scores = []
    for number in (0, config.rounds.max_rounds):
        manifest = read_manifest(stage_folder(run, StageId(number, "evaluate")))
        assert manifest is not None, f"{config.name} has no figures of round {number}"
        scores.append(manifest.metrics["test"])
    begun, ended = scores
    tokens = teacher_tokens(run, key[0])
    assert tokens is not None, f"{config.name} has rounds without lessons"
    return Result(*key, ended["correct"], ended["total"], begun["correct"], tokens)


def as_many_rationales(storage: str, seed: int, against: str) -> int:
    """Rationales of a question at which plain distillation pays no fewer tokens than the run of this seed paid."""
    paid = [_wait_for_tokens(Store.open(storage).child(f"{name}-{seed}"), name) for name in (against, PLAIN)]
    return min(MOST_RATIONALES, -(-paid[0] // max(1, paid[1])))


def _wait_for_tokens(run: Store, variant: str) -> int:
    while (paid := teacher_tokens(run, variant)) is None:
        time.sleep(POLL_S)
    return paid


def teacher_tokens(run: Store, variant: str) -> int | None:
    """Prompt and reply tokens of the lessons that the variant learns from; None before its last round has them.

    Feedback that is asked for and left out, so that runs may share it, is not counted.
    """
    ends = _rounds(run)
    found = [read_manifest(stage_folder(run, StageId(number, "teach"))) for number in range(1, ends + 1)]
    if not found or not all(found):
        return None
    learnt = found[:1] if "training.feedback=false" in VARIANTS[variant] else found
    return sum(one.metrics["input_tokens"] + one.metrics["output_tokens"] for one in learnt if one is not None)


def _rounds(run: Store) -> int:
    """Of the run's settings; 0 before it has any."""
    return yaml.safe_load(run.read_bytes(RUN_FILE))["rounds"]["max_rounds"] if run.exists(RUN_FILE) else 0


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


def summary(results: dict[str, list[Result]]) -> dict[str, Any]:
    """The last line: each variant's figures, and its difference from plain distillation at both budgets.

    `results` has the same seeds in the same order for each variant.
    """
    summed: dict[str, Any] = {}
    for variant, by_seed in results.items():
        shares = _shares(by_seed)
        right, total = sum(one.right for one in by_seed), sum(one.questions for one in by_seed)
        begun = sum(one.begun / one.questions for one in by_seed) / len(by_seed)
        gained, spent = sum(shares) / len(shares) - begun, sum(one.teacher_tokens for one in by_seed) / len(by_seed)
        found: dict[str, Any] = {
            "accuracy_mean": round(sum(shares) / len(shares), 4),
            "ci95": _rounded(wilson_interval(right, total)),
            "seeds": [round(share, 4) for share in shares],
            "teacher_tokens": round(spent),
            "gain_over_round_0": round(gained, 4),
            "tokens_per_point": round(spent / (100 * gained)) if gained > 0 else None,
        }
        for reference in (PLAIN, EQUAL_TOKENS):
            if reference in results and variant not in (PLAIN, reference):
                found[f"to_{reference}"] = _difference(shares, _shares(results[reference]))
        summed[variant] = found
    return summed


def _shares(by_seed: list[Result]) -> list[float]:
    return [one.right / one.questions for one in by_seed]


def _difference(shares: list[float], others: list[float]) -> dict[str, object]:
    """Of accuracies, paired by seed; an interval of null bounds where there is one seed alone."""
    gains = [mine - theirs for mine, theirs in zip(shares, others, strict=True)]
    intervals = {"t95": t_interval(gains), "bootstrap95": bootstrap_interval(gains)}
    shown = {name: _rounded(bounds) for name, bounds in intervals.items()}
    return {"mean": round(sum(gains) / len(gains), 4), **shown, "seeds": [round(gain, 4) for gain in gains]}


def _rounded(bounds: tuple[float, float]) -> list[float | None]:
    return [round(bound, 4) if math.isfinite(bound) else None for bound in bounds]


def table(result: dict[str, Any]) -> str:
    heads = ["variant", "test accuracy", "by seed", "to plain", "95 % by t", "bootstrap"]
    heads += ["to plain at equal tokens", "teacher tokens", "tokens per point"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for variant in VARIANTS:
        row = result.get(variant)
        if row is None:
            continue
        seeds = ", ".join(f"{share:.1%}" for share in row["seeds"])
        cells = [variant, f"{row['accuracy_mean']:.1%}", seeds, *_shown(row.get("to_plain"))]
        cells.append(" ".join(_shown(row.get("to_plain_equal_tokens"))[:2]).strip())
        cells += [f"{row[name]:,}" if row.get(name) else "" for name in ("teacher_tokens", "tokens_per_point")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(difference: Any) -> list[str]:
    """A difference in points, its two intervals."""
    if difference is None:
        return ["", "", ""]
    bounds = [difference[name] for name in ("t95", "bootstrap95")]
    shown = ["" if low is None else f"({100 * low:+.1f} – {100 * high:+.1f})" for low, high in bounds]
    return [f"{100 * difference['mean']:+.1f}", *shown]


def _say(text: str) -> None:
    print(f"{time.strftime('%X')}  {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="jobs/ablation.yaml")
    parser.add_argument("--gpu", dest="config", action="store_const", const=GPU_CONFIG, help=f"{GPU_CONFIG}; one lane")
    parser.add_argument("--seeds", type=int, nargs="+", default=CHOICE)
    parser.add_argument("--show", dest="seeds", action="store_const", const=SHOW, help="seeds 11 to 18")
    parser.add_argument("--against", choices=VARIANTS, default=FEEDBACK, help=f"whose tokens {EQUAL_TOKENS} spends")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(PARTS))
    parser.add_argument("--storage", default="runs/ablation")
    parser.add_argument("--lanes", type=int, default=min(2, os.cpu_count() or 1), help="processes side by side")
    parser.add_argument("--lane", type=int, help="do this lane's runs alone, and no table")
    parser.add_argument("--results", default=str(RESULTS), help="a line for each run that has ended")
    parser.add_argument("--set", dest="extra", action="append", default=[], help="a.b=c, for every run")
    given = parser.parse_args()
    given.storage = str(Path(given.storage).resolve())
    if given.config == GPU_CONFIG:
        given.lanes = 1  # one run at a time has the GPU
    if given.lane is not None:
        run_lane(given, lanes_of(given.variants, given.seeds, given.lanes, given.against)[given.lane])
        return
    started = time.monotonic()
    wanted = {
        name: [key_of(given, (name, seed)) for seed in given.seeds] for name in VARIANTS if name in given.variants
    }
    done = read_results(Path(given.results))
    missing = sorted({key[1] for keys in wanted.values() for key in keys if key not in done})
    command = [sys.executable, *sys.argv, "--lanes", str(given.lanes), "--seeds", *map(str, missing)]
    lanes = lanes_of(given.variants, missing, given.lanes, given.against)
    finish(
        [
            subprocess.Popen([*command, "--lane", str(lane)], stdout=sys.stderr)
            for lane, tasks in enumerate(lanes)
            if tasks
        ]
    )
    done = read_results(Path(given.results))
    result = summary({name: [done[key] for key in keys] for name, keys in wanted.items()})
    print(f"{table(result)}\n")
    print(json.dumps({**result, "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
