"""The student of a run as a round left it: found by the run's manifests, as a folder of this node. No Ray in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tailor_ray.config import RunConfig
from tailor_ray.config.run import parse_config
from tailor_ray.config.student import StudentConfig
from tailor_ray.errors import DataError
from tailor_ray.storage import Store, read_manifest
from tailor_ray.student.model import find_student


def config_of(run: Store) -> RunConfig:
    """The run's own configuration; raises DataError when the folder is no run."""
    if not run.exists("run.yaml"):
        raise DataError(f"{run.uri} is not a run folder: it has no run.yaml; give the folder <storage>/<name>")
    return parse_config(yaml.safe_load(run.read_bytes("run.yaml")), f"{run.uri}/run.yaml")


def newest_round(run: Store) -> int:
    """The last round whose training is committed; 0 is the student as given. Raises DataError before there is one."""
    for folder in sorted(run.folders("rounds"), reverse=True):
        stage = "train" if int(folder) else "student"
        if read_manifest(run.child("rounds", folder, stage)) is not None:
            return int(folder)
    raise DataError(f"{run.uri} has no student yet: wait until its round 0 is committed (tailor-ray status)")


def student_folder(run: Store, round_: int) -> Path:
    """The student after a round; copied to this node's cache where the run's storage is remote."""
    if round_ == 0:
        student = config_of(run).student
        if student.model != "tiny":
            return find_student(student.model, student.revision)
    stage = run.child("rounds", f"{round_:02d}", "train" if round_ else "student")
    if read_manifest(stage) is None:
        raise DataError(f"{run.uri} has no student of round {round_}; its newest is round {newest_round(run)}")
    return stage.local_folder("student")


@dataclass(frozen=True, slots=True)
class Served:
    """What is served: a run's student, or any model. `name` is what clients ask for."""

    name: str
    run: str | None = None  # URI of a run folder
    round: int | None = None  # None takes the newest when a replica starts
    reload: bool = False  # go on to each newer round
    model: str | None = None  # instead of a run: a local folder or hub id
    engine: StudentConfig = field(default_factory=StudentConfig)
    replicas: int = 1
    gpu: bool | None = None  # None looks at what the cluster has by now
    keeper: str | None = None  # an actor without which this application ends
    application: str = "student"

    def find(self) -> tuple[int, Path]:
        """The round to answer from and its folder on this node."""
        if self.run is None:
            return 0, find_student(self.model or "")
        run = Store.open(self.run)
        number = newest_round(run) if self.round is None else self.round
        return number, student_folder(run, number)
