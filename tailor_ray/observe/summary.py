"""A run's manifests as the plain data of report.json. Reads manifests and run.yaml, writes nothing.

A stage without a manifest is null: an unfinished or failed run gives the same document with less in it. A damaged
manifest is named under `warnings` and counts as not there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from tailor_ray.errors import CorruptionError, RunFolderError
from tailor_ray.statistics import accuracy
from tailor_ray.storage import Manifest, Part, Store, read_manifest, read_part

STAGES = ("questions", "student", "exam", "teach", "train", "evaluate")
EXAM_COUNTS = ("questions", "attempts", "correct", "wrong", "unparsed", "truncated", "disputed", "error")
TEACHER_COUNTS = (
    *("requests", "from_ledger", "accepted", "rejected", "failed"),
    *("input_tokens", "output_tokens", "cost_usd"),
)
TRAINING_COUNTS = ("examples", "with_pair", "steps", "tokens", "loss_first", "loss_last")


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds: its settings and each committed stage's manifest by (round, stage)."""

    store: Store
    name: str
    settings: dict[str, Any]
    stages: dict[tuple[int, str], Manifest]
    warnings: list[str] = field(default_factory=list)
    _parts: dict[tuple[int, str, str], dict[int, Part]] = field(default_factory=dict, repr=False)

    @property
    def rounds(self) -> list[int]:
        """Every round that committed a stage, ascending."""
        return sorted({number for number, _ in self.stages})

    def folder(self, number: int, stage: str) -> Store:
        return self.store.child("rounds", f"{number:02d}", stage)

    def metrics(self, number: int, stage: str) -> dict[str, Any] | None:
        manifest = self.stages.get((number, stage))
        return None if manifest is None else manifest.metrics

    def parts(self, number: int, stage: str, prefix: str) -> dict[int, Part]:
        """The stage's parts `prefix-*.parquet` by index, as its manifest names them; empty without a manifest."""
        key = (number, stage, prefix)
        if key not in self._parts:
            manifest = self.stages.get((number, stage))
            pattern = re.compile(re.escape(prefix) + r"-(\d+)\.parquet")
            named = [(pattern.fullmatch(entry.path), entry) for entry in (manifest.files if manifest else ())]
            found = {int(match[1]): entry for match, entry in named if match}
            self._parts[key] = {index: Part(index, entry, {}) for index, entry in sorted(found.items())}
        return self._parts[key]

    def steps(self, number: int) -> list[dict[str, Any]]:
        """The rows {step, loss, mle, triplet, …} of the round's steps.parquet; empty before training has committed."""
        manifest = self.stages.get((number, "train"))
        for entry in manifest.files if manifest else ():
            if entry.path.endswith("steps.parquet"):
                return read_part(self.folder(number, "train"), Part(0, entry, {})).to_pylist()
        return []


def load_run(run: Store) -> RunRecord:
    """Read what is committed; a run that has only begun gives a record without rounds.

    Raises RunFolderError when the folder holds no run at all.
    """
    if not run.exists("run.yaml") and not run.folders("rounds"):
        raise RunFolderError(f"{run.uri} holds no run: there is no run.yaml in it; check the path, or --storage")
    settings = yaml.safe_load(run.read_bytes("run.yaml")) if run.exists("run.yaml") else {}
    record = RunRecord(run, settings.get("name") or run.root.rstrip("/").rpartition("/")[2], settings, {})
    for name in run.folders("rounds"):
        if not name.isdigit():
            continue
        for stage in STAGES:
            folder = record.folder(int(name), stage)
            try:
                manifest = read_manifest(folder)
            except CorruptionError as error:
                record.warnings.append(str(error))
                continue
            if manifest is not None:
                record.stages[int(name), stage] = manifest
    return record


def flat_settings(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """run.yaml's settings as `section.name`; it holds no key, for keys are never read into it."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def summarize(record: RunRecord, mistakes: Mapping[int, dict[str, int]]) -> dict[str, Any]:
    """The document of report.json; `mistakes` holds fixed/regressed/stubborn by round (see observe.mistakes)."""
    rounds = [_round(record, number, mistakes.get(number)) for number in record.rounds]
    base = record.metrics(0, "student") or {}
    trained = [entry["student"] for entry in rounds if entry["student"]]
    task = record.settings.get("task") or {}
    document = {
        "run": record.name,
        "task": task.get("name", "unknown"),
        "student": {"path": base.get("path", _student_setting(record)), "sha256": base.get("sha256", "")},
        "final_student": trained[-1] if trained else None,
        "rounds": rounds,
        "unfinished": unfinished(record),
        "totals": _totals(rounds),
        "questions": record.metrics(0, "questions"),
        "warnings": record.warnings,
    }
    finite: dict[str, Any] = plain(document)
    return finite


def _round(record: RunRecord, number: int, mistakes: dict[str, int] | None) -> dict[str, Any]:
    exam, teach, train = (record.metrics(number, stage) for stage in ("exam", "teach", "train"))
    scores = record.metrics(number, "evaluate") or {}
    test, validation = (score(scores.get(split), split) for split in ("test", "validation"))
    return {
        "round": number,
        "evaluation": test or validation,
        "validation": validation,
        "exam": _counts(exam, EXAM_COUNTS),
        "undecided": _undecided(exam),
        "teacher": _teacher(teach),
        "training": _counts(train, TRAINING_COUNTS),
        "mistakes": mistakes,
        "seconds": {
            stage: record.stages[number, stage].seconds for stage in STAGES if (number, stage) in record.stages
        },
        "student": _student(record, number),
        "sources": {
            stage: {
                "manifest": f"rounds/{number:02d}/{stage}/manifest.json",
                "digest": record.stages[number, stage].digest(),
                "files": len(record.stages[number, stage].files),
            }
            for stage in STAGES
            if (number, stage) in record.stages
        },
    }


def score(counts: Mapping[str, Any] | None, split: str) -> dict[str, Any] | None:
    """A manifest's counts as the report shows them, None when the split was not asked; the interval is Wilson's."""
    if not counts or not counts.get("total"):
        return None
    return {"split": split, **accuracy(int(counts["correct"]), int(counts["total"]))}


def _counts(metrics: Mapping[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any] | None:
    return None if metrics is None else {name: metrics.get(name, 0) for name in names}


def _undecided(exam: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the exam kept out of teaching by name: disputed attempts (the first of them), quarantined questions."""
    return {key: (exam or {}).get(key, []) for key in ("disputed_attempts", "quarantined")}


def _teacher(metrics: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if metrics is None:
        return None
    counts = _counts(metrics, TEACHER_COUNTS) or {}
    return {**counts, "reasons": metrics.get("reasons") or {}, "forecast": metrics.get("forecast") or None}


def _student(record: RunRecord, number: int) -> dict[str, str] | None:
    """Where the student that left this round lies, and its weights' checksum as the engines reported it."""
    if number == 0 or (number, "train") not in record.stages:
        return None
    train, evaluate = record.metrics(number, "train") or {}, record.metrics(number, "evaluate") or {}
    checksum = train.get("student_sha256") or evaluate.get("student_sha256", "")
    return {"path": f"{record.folder(number, 'train').uri}/student", "sha256": checksum}


def _student_setting(record: RunRecord) -> str:
    return str((record.settings.get("student") or {}).get("model", ""))


def unfinished(record: RunRecord) -> list[str]:
    """The first stages still to do of a round that has begun, as `round 2 train`; empty between rounds."""
    if not record.stages:
        return ["round 0 questions"]
    last = record.rounds[-1]
    names = ("questions", "student", "evaluate") if last == 0 else ("exam", "teach", "train", "evaluate")
    return [f"round {last} {name}" for name in names if (last, name) not in record.stages]


def _totals(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over rounds; what was paid before the last exam, divided by the questions found fixed up to it."""
    taught = [entry["teacher"] for entry in rounds if entry["teacher"]]
    totals: dict[str, Any] = {name: sum(entry[name] for entry in taught) for name in TEACHER_COUNTS}
    totals["seconds"] = sum(sum(wall_seconds(entry["seconds"]).values()) for entry in rounds)
    compared = [entry for entry in rounds if entry["mistakes"]]
    totals["fixed"] = sum(entry["mistakes"]["fixed"] for entry in compared)
    paid = sum(
        entry["teacher"]["cost_usd"]
        for entry in rounds
        if entry["teacher"] and compared and entry["round"] < compared[-1]["round"]
    )
    totals["usd_per_fixed_question"] = paid / totals["fixed"] if totals["fixed"] else None
    return totals


def wall_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage that add up to the round's: exam and teach begin together, so teach counts beyond the exam."""
    return {
        stage: max(0.0, value - seconds.get("exam", 0.0)) if stage == "teach" else value
        for stage, value in seconds.items()
    }


def step_count(steps: Sequence[Mapping[str, Any]]) -> int:
    """How many steps a curve spans, whether it counts from 0 or from 1 and however thinned."""
    return steps[-1]["step"] - steps[0]["step"] + 1 if steps else 0


def plain(value: Any) -> Any:
    """The value with NaN and infinities as null: JSON has no word for them and browsers refuse the whole document."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
