"""A run's manifests as the plain data of report.json. Reads manifests and run.yaml, writes nothing.

A stage without a manifest is null: an unfinished or failed run gives the same document with less in it. A damaged
manifest or run.yaml is named under `warnings`, and counts as not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailor_ray import layout
from tailor_ray.errors import CorruptionError, RunFolderError
from tailor_ray.layout import StageId
from tailor_ray.observe.advice import about_run, shares
from tailor_ray.statistics import accuracy
from tailor_ray.storage import Manifest, Part, Store, find_part, read_manifest, read_part, stage_parts
from tailor_ray.storage.commits import read_settings

STAGES = (*layout.FIRST_STAGES[:-1], *layout.STAGES)  # of all rounds, each once, in the order of their work
SECTIONS = ("task", "student", "teacher")  # of run.yaml, of which the report shows settings
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

    @property
    def rounds(self) -> list[int]:
        """Every round that committed a stage, ascending."""
        return sorted({number for number, _ in self.stages})

    def folder(self, number: int, stage: str) -> Store:
        return layout.stage_folder(self.store, StageId(number, stage))

    def metrics(self, number: int, stage: str) -> dict[str, Any] | None:
        manifest = self.stages.get((number, stage))
        return None if manifest is None else manifest.metrics

    def setting(self, section: str, name: str) -> Any:
        """The setting `name` of a section of run.yaml; None where it is not there."""
        return self.settings.get(section, {}).get(name)

    def part_count(self, number: int, stage: str, prefix: str) -> int:
        """How many parts of `prefix` the stage's manifest counts; returns 0 without a manifest."""
        manifest = self.stages.get((number, stage))
        return manifest.parts[prefix].count if manifest is not None and prefix in manifest.parts else 0

    def parts(self, number: int, stage: str, prefix: str) -> list[Part]:
        """All of the stage's part records by index, as its manifest names them; empty without a manifest.

        Raises CorruptionError for a record that is damaged or is not the one that the manifest counts.
        """
        return stage_parts(self.folder(number, stage), prefix) if self.part_count(number, stage, prefix) else []

    def part(self, number: int, stage: str, prefix: str, index: int) -> Part | None:
        """The record of part `index`, without reading the others.

        Returns None where the stage has no such part. Raises CorruptionError where its record is damaged or missing.
        """
        if index >= self.part_count(number, stage, prefix):
            return None
        return find_part(self.folder(number, stage), prefix, index)

    def steps(self, number: int) -> list[dict[str, Any]]:
        """The rows {step, loss, mle, reflection, …} of the round's training; empty before it has committed.

        Raises CorruptionError where their file is damaged or missing.
        """
        if (number, "train") not in self.stages:
            return []
        log = self.folder(number, "train").child(layout.LOG)
        return read_part(log, find_part(log, layout.STEPS, 0)).to_pylist()


def load_run(run: Store) -> RunRecord:
    """Read what is committed; a run that has only begun gives a record without rounds.

    Raises RunFolderError when the folder holds no run at all.
    """
    rounds = layout.rounds_begun(run)
    if not rounds and not run.exists(layout.RUN_FILE):
        raise RunFolderError(
            f"{run.uri} holds no run: there is no {layout.RUN_FILE} in it; check the path, or --storage"
        )
    warnings: list[str] = []
    settings = _settings(run, warnings)
    name = settings.get("name") or run.root.rstrip("/").rpartition("/")[2]
    record = RunRecord(run, str(name), settings, {}, warnings)
    for number, stage in ((number, stage) for number in rounds for stage in STAGES):
        try:
            manifest = read_manifest(record.folder(number, stage))
        except CorruptionError as error:
            warnings.append(str(error))
            continue
        if manifest is not None:
            record.stages[number, stage] = manifest
    return record


def _settings(run: Store, warnings: list[str]) -> dict[str, Any]:
    if not run.exists(layout.RUN_FILE):
        return {}
    try:
        settings = read_settings(run, layout.RUN_FILE)
    except CorruptionError as error:
        warnings.append(str(error))
        return {}
    if not all(isinstance(settings.get(name, {}), dict) for name in SECTIONS):
        warnings.append(f"{run.uri}/{layout.RUN_FILE} is damaged: a section of it is no mapping; restore it")
        return {}
    return settings


def flat_settings(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """A run's settings as pairs of `section.name` and value, the names below `path`.

    They hold no key, for keys are never read into them.
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def summarize(record: RunRecord) -> dict[str, Any]:
    """The document of report.json, of what is committed.

    NaN and infinities are null in it. A figure that cannot be read is missing, and named under `warnings`.
    """
    rounds = [_round(record, number) for number in record.rounds]
    base = record.metrics(0, "student") or {}
    trained = [entry["student"] for entry in rounds if entry["student"]]
    document = {
        "run": record.name,
        "task": record.setting("task", "name") or "unknown",
        "student": {
            "path": base.get("path") or str(record.setting("student", "model") or ""),
            "sha256": base.get("sha256", ""),
        },
        "final_student": trained[-1] if trained else None,
        "rounds": rounds,
        "unfinished": unfinished(record),
        "totals": _totals(rounds),
        "questions": record.metrics(0, "questions"),
        "warnings": record.warnings,
        "advice": list(about_run({stage: made.metrics for stage, made in record.stages.items()}, record.settings)),
    }
    finite: dict[str, Any] = plain(document)
    return finite


def _round(record: RunRecord, number: int) -> dict[str, Any]:
    exam, teach, train = (record.metrics(number, stage) for stage in ("exam", "teach", "train"))
    scores = record.metrics(number, "evaluate") or {}
    test, validation = (score(scores.get(split), split) for split in ("test", "validation"))
    stages = {stage: record.stages[number, stage] for stage in STAGES if (number, stage) in record.stages}
    teacher, student = _counts(teach, TEACHER_COUNTS), None
    if teach is not None and teacher is not None:
        teacher |= {"reasons": teach.get("reasons") or {}, "forecast": teach.get("forecast") or None}
    if train is not None:
        folder = record.folder(number, "train").child(layout.STUDENT)
        student = {"path": folder.uri, "sha256": train.get("student_sha256", "")}
    return {
        "round": number,
        "evaluation": test or validation,
        "validation": validation,
        "exam": _counts(exam, EXAM_COUNTS),
        "shares": shares(exam),
        "undecided": {key: (exam or {}).get(key, []) for key in ("disputed_attempts", "quarantined")},
        "teacher": teacher,
        "training": _counts(train, TRAINING_COUNTS),
        "mistakes": (exam or {}).get("changes"),
        "seconds": {stage: manifest.seconds for stage, manifest in stages.items()},
        "student": student,
        "sources": {
            stage: {
                "manifest": f"{StageId(number, stage).path}/manifest.json",
                "digest": manifest.digest(),
                "parts": sum(parts.count for parts in manifest.parts.values()),
            }
            for stage, manifest in stages.items()
        },
    }


def score(counts: Mapping[str, Any] | None, split: str) -> dict[str, Any] | None:
    """A manifest's `counts` of a split as the report shows them, with Wilson's interval.

    Returns None when the split was not asked.
    """
    if not counts or not counts.get("total"):
        return None
    return {"split": split, **accuracy(int(counts["correct"]), int(counts["total"]))}


def _counts(metrics: Mapping[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any] | None:
    return None if metrics is None else {name: metrics.get(name, 0) for name in names}


def unfinished(record: RunRecord) -> list[str]:
    """The stages still to do of the last round that has begun.

    Returns their names in order, as `round 2 train`; none between rounds.
    """
    if not record.stages:
        return [str(layout.QUESTIONS)]
    last = record.rounds[-1]
    names = layout.FIRST_STAGES if last == 0 else layout.STAGES
    return [str(StageId(last, name)) for name in names if (last, name) not in record.stages]


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
    return totals | _per_point(rounds)


def _per_point(rounds: list[dict[str, Any]]) -> dict[str, float | None]:
    """What the teacher was paid up to the last evaluation, divided by the points of accuracy gained over round 0.

    None where none was gained, the two evaluations are not of one split, or a round's bill is missing.
    """
    scored = [entry for entry in rounds if entry["evaluation"]]
    bills = [entry["teacher"] for entry in rounds if scored and 0 < entry["round"] <= scored[-1]["round"]]
    first, last = (scored[at]["evaluation"] for at in (0, -1)) if scored else ({}, {})
    known = bool(scored) and scored[0]["round"] == 0 and first["split"] == last["split"] and all(bills)
    points = 100 * (last["accuracy"] - first["accuracy"]) if known else 0.0
    if points <= 0:
        return {"usd_per_point": None, "tokens_per_point": None}
    tokens = sum(bill["input_tokens"] + bill["output_tokens"] for bill in bills)
    return {"usd_per_point": sum(bill["cost_usd"] for bill in bills) / points, "tokens_per_point": tokens / points}


def wall_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """The `seconds` of a round by stage, so that they add up to the round's.

    Exam and teaching begin together, so of the teaching counts what goes beyond the exam.
    """
    return {
        stage: max(0.0, value - seconds.get("exam", 0.0)) if stage == "teach" else value
        for stage, value in seconds.items()
    }


def step_count(steps: Sequence[Mapping[str, Any]]) -> int:
    """How many steps a curve spans, however thinned.

    Its `steps` are rows with the key `step`, which may count from 0 or from 1.
    """
    return steps[-1]["step"] - steps[0]["step"] + 1 if steps else 0


def plain(value: Any) -> Any:
    """The value with NaN and infinities as null.

    JSON has no word for them, and browsers refuse a document with one.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
