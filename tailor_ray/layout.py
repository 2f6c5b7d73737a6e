"""Where everything of a run lies: the only file that spells a run's paths. No file's content is read or written here.

    <storage>/<run>/
      run.yaml, run.yaml.copy                           the resolved settings, and what stands in for them
      teacher/                                          the ledger
      rounds/00/{questions,student,evaluate}/           manifest.json, <prefix>-*.parquet with their records
      rounds/01/{exam,teach,examples,train,evaluate}/   likewise; train/student/ is the student in Hugging Face form
      report/                                           report.json, index.html
      progress.json                                     the stages under way, for `tailor-ray status`
      run.log, trackers/                                where the storage is a local folder

Parts of an exam that are not whole yet have their answers so far in `<prefix>-answered/`. A stage's `log/` tells how it
went: requests of the teacher, training's steps. It has times in it, so no later stage is made from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tailor_ray.errors import DataError
from tailor_ray.storage import Store
from tailor_ray.storage.store import node_cache

RUN_FILE = "run.yaml"
LOG_FILE = "run.log"
PROGRESS_FILE = "progress.json"  # the stages under way, while a driver lives
TRACKERS = "trackers"
STUDENT = "student"  # the folder of a model, in a stage's folder
LOG = "log"
REPORT, REPORT_PAGE = "report/report.json", "report/index.html"
FIRST_STAGES = ("questions", "student", "evaluate")  # of round 0, in order
STAGES = ("exam", "teach", "examples", "train", "evaluate")  # of every later round
SPLITS = ("train", "validation", "test")  # prefixes of the question parts, the last two of the evaluation's as well
ATTEMPTS, LESSONS, REQUESTS, EXAMPLES, STEPS, GREEDY = "attempts", "lessons", "requests", "examples", "steps", "greedy"


@dataclass(frozen=True, slots=True, order=True)
class StageId:
    """A stage of a round, and the folder that it owns."""

    round: int
    name: str

    @property
    def path(self) -> str:
        """The stage's folder, relative to the run's."""
        return f"rounds/{self.round:02d}/{self.name}"

    def __str__(self) -> str:
        return f"round {self.round} {self.name}"


QUESTIONS = StageId(0, "questions")
BASE_STUDENT = StageId(0, "student")


def student_after(round_: int) -> StageId:
    """The stage that holds the student as it is after a round."""
    return BASE_STUDENT if round_ == 0 else StageId(round_, "train")


def stage_folder(run: Store, stage: StageId) -> Store:
    """The folder of `stage` in the run's storage `run`."""
    return run.child(*stage.path.split("/"))


def answered_folder(prefix: str) -> str:
    """In an exam's folder: what engines have answered of parts that are not whole yet."""
    return f"{prefix}-answered"


def ledger_folder(run: Store) -> Store:
    """The folder of what the teacher was asked, of all rounds."""
    return run.child("teacher")


def log_file(run: Store) -> Path:
    """Where a run's driver writes its log: beside the run where its storage is local, else in this node's cache."""
    if run.is_local:
        return Path(run.path(LOG_FILE))
    return node_cache() / "logs" / f"{Path(run.root).name}.log"


def check_is_run(folder: Store) -> None:
    """Raise DataError where the folder is none of a run."""
    if not folder.exists(RUN_FILE):
        raise DataError(f"{folder.uri} is not a run folder: it has no {RUN_FILE}; give the folder <storage>/<name>")


def rounds_begun(run: Store) -> list[int]:
    """Numbers of the rounds that have a folder, ascending."""
    return sorted(int(name) for name in run.folders("rounds") if re.fullmatch(r"[0-9]+", name))
