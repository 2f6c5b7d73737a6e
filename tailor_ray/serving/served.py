"""What is served: a run's student as a round left it, found by the run's manifests, or any model. No Ray in here."""

from __future__ import annotations

from dataclasses import dataclass, field

from tailor_ray.config import RunConfig
from tailor_ray.config.run import parse_run_file
from tailor_ray.config.student import StudentConfig
from tailor_ray.errors import DataError
from tailor_ray.layout import RUN_FILE, check_is_run, rounds_begun, stage_folder, student_after
from tailor_ray.models import ModelRef, read_model
from tailor_ray.storage import Store, read_manifest
from tailor_ray.storage.settings import read_settings


def config_of(run: Store) -> RunConfig:
    """The run's own configuration; raises DataError when the folder is no run, CorruptionError when it is damaged."""
    check_is_run(run)
    return parse_run_file(read_settings(run, RUN_FILE), f"{run.uri}/{RUN_FILE}")


def newest_round(run: Store) -> int:
    """The last round whose training is committed; 0 is the student as given. Raises DataError before there is one."""
    for number in reversed(rounds_begun(run)):
        if read_manifest(stage_folder(run, student_after(number))) is not None:
            return number
    raise DataError(f"{run.uri} has no student yet: wait until its round 0 is committed (tailor-ray status)")


def student_of(run: Store, round_: int) -> ModelRef:
    """The student after a round. Raises DataError when that round has none."""
    folder = stage_folder(run, student_after(round_))
    if read_manifest(folder) is None:
        raise DataError(f"{run.uri} has no student of round {round_}; its newest is round {newest_round(run)}")
    return read_model(folder)


@dataclass(frozen=True, slots=True)
class Served:
    """What is served: a run's student, or any model. `name` is what clients ask for."""

    name: str
    run: str | None = None  # URI of a run folder
    round: int | None = None  # None takes the newest when a replica starts
    reload: bool = False  # go on to each newer round
    model: ModelRef | None = None  # instead of a run
    engine: StudentConfig = field(default_factory=StudentConfig)
    replicas: int = 1
    gpu: bool | None = None  # None looks at what the cluster has by now
    sentinel: str | None = None  # an actor's name: the application ends with it
    application: str = "student"

    def find(self) -> tuple[int, ModelRef]:
        """The round to answer from and its student."""
        if self.model is not None:
            return 0, self.model
        run = Store.open(self.run or "")
        number = newest_round(run) if self.round is None else self.round
        return number, student_of(run, number)
