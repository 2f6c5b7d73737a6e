"""THE loop: find the first stage without a valid manifest, do it, commit it; stop when nothing is gained.

In: a RunConfig and its run folder. Out: a folder whose manifests tell what was done. Called again it goes on. A stage
whose manifest is there is never done again. Folder, lease, log and services are opened in this order, and closed in
reverse. One stage alone is a run without rounds, so it commits and resumes like one. No teacher need be there for it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tailor_ray.config import RunConfig
from tailor_ray.config.run import parse_run_file
from tailor_ray.errors import LeaseLost, RunFolderError
from tailor_ray.layout import PROGRESS_FILE, REPORT_PAGE, RUN_FILE, StageId, log_file, stage_folder
from tailor_ray.observe import metrics
from tailor_ray.observe.advice import about_settings
from tailor_ray.observe.logs import last_warning, native_output_to_log, setup_logging
from tailor_ray.observe.progress import Progress
from tailor_ray.observe.report import rounds_table, write_report
from tailor_ray.observe.trackers import Trackers
from tailor_ray.rounds import stages, watch
from tailor_ray.rounds.services import Services, WorkerPools
from tailor_ray.rounds.spec import StageSpec, changed_settings, plain, stages_of
from tailor_ray.rounds.stages import Inputs, StageResult
from tailor_ray.storage import Lease, Manifest, Store, commit_manifest, committed_parts, read_manifest, stage_parts
from tailor_ray.storage.commits import read_settings, write_settings
from tailor_ray.tasks import grader_for
from tailor_ray.teacher.parts import Intake

log = logging.getLogger(__name__)


def run(config: RunConfig, pools: WorkerPools | None = None) -> str:
    """Do what the run folder lacks; returns the summary that the command prints.

    Engines and training workers come from `pools` where they are given, and outlive the run then.
    Raises UserError for wrong input, Stopped when the run can go on later, StageError and CorruptionError otherwise.
    """
    with open_run(config, pools) as (folder, services):
        if Commits(config, folder).missing():
            with services:
                run_rounds(config, folder, services)
        document = write_report(folder)
    return f"{rounds_table(document)}\nreport: {folder.uri}/{REPORT_PAGE}"


@contextmanager
def open_run(config: RunConfig, pools: WorkerPools | None = None) -> Iterator[tuple[Store, Services]]:
    """The run folder, claimed and leased, with services that start nothing before they are entered.

    The folder that is yielded refuses to be written to once another driver has the lease. Raises RunFolderError for a
    folder that was made with other settings, and for one that another driver holds.
    """
    store = Store.open(config.storage).child(config.name)
    metrics.set_run(config.name)
    setup_logging(log_file(store), secrets=_secrets(config))
    if watch.process_is_ours:
        native_output_to_log()
    in_main = threading.current_thread() is threading.main_thread()
    on_lost = (lambda text: watch.stop_run(LeaseLost(text))) if in_main else log.error
    try:
        with Lease.acquire(store, on_lost=on_lost) as lease:
            for text in about_settings(config):
                log.warning("%s", text)
            guarded = store.guarded(lease.fence)
            claim_folder(guarded, config)

            def write_down(bars: list[dict[str, Any]]) -> None:  # for `tailor-ray status`
                found = {"written": time.time(), "stages": bars, "warning": last_warning()}
                guarded.write_json(PROGRESS_FILE, found)

            with Progress(config.observe.log_every_s, record=write_down) as progress:
                yield guarded, Services(config, guarded, progress, pools)
    except KeyboardInterrupt:
        if (error := watch.reason()) is not None:
            raise error from None
        raise


def _secrets(config: RunConfig) -> tuple[str, ...]:
    """Values that must never reach a log; the logging redacts them."""
    found = []
    for endpoint in config.teacher.teachers:
        variables = [endpoint.api_key_env, *endpoint.extra_headers_env.values()]
        found += [os.environ.get(variable, "").strip() for variable in variables if variable]
        if endpoint.api_key_file is not None:
            with suppress(OSError, UnicodeDecodeError):  # it need be on the nodes of the actors alone
                found.append(Path(endpoint.api_key_file).expanduser().read_text(encoding="utf-8").strip())
    return tuple(secret for secret in found if len(secret) >= 8)


def run_rounds(config: RunConfig, run: Store, services: Services) -> None:
    """Do all that `run` lacks of what `config` asks for, one stage after the other.

    After each one the trackers are told; after each evaluation the report is written. Raises what `Commits.missing` and
    the stages do: what is committed by then stays.
    """
    commits, trackers = Commits(config, run), Trackers(config.observe, run)
    try:
        while todo := commits.missing():
            log.info("%s starts", " and ".join(str(spec.id) for spec in todo))
            started = time.monotonic()
            if todo[-1].id.name == "teach":
                exam_and_teach(commits, todo, services, started)
            else:
                do_stage(commits, todo[0], services, started)
            trackers.sync()
            if todo[-1].id.name == "evaluate":
                write_report(run)
    finally:
        trackers.close()


def do_stage(commits: Commits, spec: StageSpec, services: Services, started: float) -> None:
    work = stages.ALONE[spec.id.name]
    result = work(commits.inputs(spec), commits.folder(spec), commits.config, services)
    commits.commit(spec, result, time.monotonic() - started)


def exam_and_teach(commits: Commits, group: tuple[StageSpec, ...], services: Services, started: float) -> None:
    """Do the two stages of `group` at the same time: the teacher starts with the first committed part.

    `started` is the monotonic clock's time from which their seconds count. An exam that was committed earlier hands its
    parts on all the same.
    """
    exam, teach = group
    services.connect()  # before there are two threads that would, as is what grading loads at first use
    grader_for(commits.config.task).check()
    intake = Intake()
    inputs, out = commits.inputs(teach), commits.folder(teach)
    with intake.teaching(lambda: stages.teach(inputs, out, commits.config, services, intake)) as teaching:
        if commits.is_done(exam):
            for part in stage_parts(commits.folder(exam), stages.ATTEMPTS):
                intake.put(part)
        else:
            made = stages.exam(commits.inputs(exam), commits.folder(exam), commits.config, services, intake.put)
            commits.commit(exam, made, time.monotonic() - started)
        intake.end()
        result = teaching.result()
    commits.commit(teach, result, time.monotonic() - started)


class Commits:
    """One run's manifests, and what is missing among them."""

    def __init__(self, config: RunConfig, run: Store) -> None:
        self.config = config
        self._run = run
        self._done: dict[StageId, Manifest] = {}

    def missing(self) -> tuple[StageSpec, ...]:
        """The first stages without a valid manifest, () when the run is finished.

        Exam and teaching form one group, for they run at the same time. Raises CorruptionError for a damaged manifest
        and RunFolderError for stages that were made from other settings or inputs.
        """
        for number in range(self.config.rounds.max_rounds + 1):
            specs = stages_of(self.config, number)
            together = tuple(spec for spec in specs if spec.id.name in ("exam", "teach"))
            groups = [(spec,) for spec in specs if spec not in together]
            for group in [together, *groups] if together else groups:
                if not all([self.is_done(spec) for spec in group]):  # noqa: C419  each one's manifest is checked
                    return group
            if self._gained_nothing(number):
                log.info("round %d: validation gained less than rounds.min_gain; the run ends here", number)
                break
        return ()

    def is_done(self, spec: StageSpec) -> bool:
        """Whether the stage's manifest is there. The parts that it counts are checked when they are read.

        Raises RunFolderError where it names other settings or inputs than this run's.
        """
        if spec.id in self._done:
            return True
        folder = self.folder(spec)
        manifest = read_manifest(folder)
        if manifest is None:
            return False
        others = [
            str(stage)
            for stage in spec.after
            if stage not in self._done or manifest.inputs.get(str(stage)) != self._done[stage].digest()
        ]
        if manifest.spec != spec.digest() or others:
            raise RunFolderError(
                f"{folder.uri} was made from other settings or other inputs than this run's"
                + "".join(f"\n  {line}" for line in changed_settings(manifest.settings, plain(spec.settings)))
                + "".join(f"\n  {stage} was made again since" for stage in others)
                + "\ngive this run another name (--name), or delete that folder and the later rounds to make them again"
            )
        self._done[spec.id] = manifest
        return True

    def commit(self, spec: StageSpec, result: StageResult, seconds: float) -> None:
        manifest = Manifest(
            stage=spec.id.name,
            round=spec.id.round,
            spec=spec.digest(),
            settings=plain(spec.settings),
            inputs={str(stage): self._done[stage].digest() for stage in spec.after},
            parts=result.parts,
            seconds=round(seconds, 3),
            metrics=result.metrics,
            model=None if result.model is None else result.model.sha256,
        )
        commit_manifest(self.folder(spec), manifest)
        self._done[spec.id] = manifest
        metrics.stage_committed(manifest)
        if spec.id.name == "train":
            self.folder(spec).delete("checkpoints")
        log.info("%s done in %.1f s", spec.id, seconds)

    def folder(self, spec: StageSpec) -> Store:
        return stage_folder(self._run, spec.id)

    def inputs(self, spec: StageSpec) -> Inputs:
        """The folders that the stage may read, and no other."""
        return Inputs(spec.id.round, {stage: stage_folder(self._run, stage) for stage in spec.after})

    def manifest(self, stage: StageId) -> Manifest:
        """The manifest of a stage that was found done, or was committed. Raises KeyError for another."""
        return self._done[stage]

    def _gained_nothing(self, number: int) -> bool:
        """True when validation gained less than `min_gain` for `patience` rounds in a row."""
        rules = self.config.rounds
        found = [self.manifest(StageId(round_, "evaluate")).metrics for round_ in range(number + 1)]
        scores = [metrics["validation"]["accuracy"] for metrics in found]
        gains = [score - max(scores[:index]) for index, score in enumerate(scores) if index > 0]
        return len(gains) >= rules.patience and all(gain < rules.min_gain for gain in gains[-rules.patience :])


def claim_folder(run: Store, config: RunConfig) -> None:
    """Write run.yaml into the folder `run`, or check that the one there gives the same results.

    The teacher's settings may differ until a lesson is committed. Raises RunFolderError naming what differs.
    """
    if run.exists(RUN_FILE):
        where = f"{run.uri}/{RUN_FILE}"
        changed = changed_settings(parse_run_file(read_settings(run, RUN_FILE), where).results(), config.results())
        if changed and all(line.startswith("teacher.") for line in changed) and not has_lessons(run):
            log.info("the teacher is asked otherwise than before: %s", "; ".join(changed))
            changed = []
        if changed:
            raise RunFolderError(
                f"the run folder {run.uri} belongs to another configuration; these settings change results:\n  "
                + "\n  ".join(changed)
                + "\nset them back, or give this run another name (--name)"
            )
    write_settings(run, RUN_FILE, config.to_yaml())


def has_lessons(run: Store) -> bool:
    """Whether any lesson is committed: until then a teacher may be asked otherwise."""
    for number in range(1, 100):
        folder = stage_folder(run, StageId(number, "teach"))
        if read_manifest(folder) is not None:
            return True
        if not folder.files():
            return False
        if any(part.rows for part in committed_parts(folder, stages.LESSONS, verify=False)):
            return True
    return False


def evaluate_alone(config: RunConfig) -> str:
    """Ask the student greedily, and no more; returns its accuracy on validation and test as JSON."""
    alone = _without_rounds(config)
    with open_run(alone) as (run, services), services:
        run_rounds(alone, run, services)
        manifest = read_manifest(stage_folder(run, StageId(0, "evaluate")))
        assert manifest is not None
        return json.dumps(manifest.metrics, indent=1)


def exam_alone(config: RunConfig) -> str:
    """Sample the student on the training questions, and no more: round 0 without its evaluation, then the first exam.

    Returns the counts of verdicts as JSON; the attempts lie in the run folder.
    """
    alone = _without_rounds(config)
    with open_run(alone) as (run, services), services:
        commits = Commits(alone, run)
        questions, student, _ = stages_of(alone, 0)
        exam = stages_of(alone, 1)[0]
        for spec in (questions, student, exam):
            if not commits.is_done(spec):
                do_stage(commits, spec, services, time.monotonic())
        return json.dumps(commits.manifest(exam.id).metrics, indent=1)


def _without_rounds(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"rounds": config.rounds.model_copy(update={"max_rounds": 0})})
