"""THE loop: find the first stage without a valid manifest, do it, commit it; stop when nothing is gained.

In: a RunConfig. Out: a run folder whose manifests tell what was done. Called again it goes on; a stage whose
manifest is there is never done again, and one whose files were damaged stops the run with the file's name.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import yaml

from tailor_ray.config import RunConfig
from tailor_ray.config.run import parse_config
from tailor_ray.errors import CorruptionError, RunFolderError
from tailor_ray.observe import live
from tailor_ray.observe.report import write_report
from tailor_ray.observe.trackers import Trackers
from tailor_ray.rounds import stages
from tailor_ray.rounds.session import Session
from tailor_ray.rounds.spec import StageId, StageSpec, changed_settings, stages_of
from tailor_ray.rounds.stages import Outcome
from tailor_ray.storage import Manifest, Store, commit_manifest, read_manifest, verify_files

log = logging.getLogger(__name__)
RUN_FILE = "run.yaml"


class Runner:
    """One run's manifests, and what is missing among them."""

    def __init__(self, config: RunConfig, store: Store) -> None:
        self._config = config
        self._store = store
        self._done: dict[StageId, Manifest] = {}
        self._started: dict[StageId, float] = {}
        self._trackers = Trackers(config.observe, store)

    def run(self, session: Session) -> None:
        try:
            while (group := self.next_group()) is not None:
                self._do(session, group)
                if group[-1].id.name == "evaluate":
                    write_report(self._store)
        finally:
            self._trackers.close()

    def examine(self, session: Session) -> None:
        """Round 0 and then the first exam, without its teaching."""
        rounds = [*stages_of(self._config, 0), stages_of(self._config, 1)[0]]
        for spec in rounds:
            if spec.id.name != "evaluate" and not self._is_done(spec):
                self._do(session, (spec,))

    def metrics(self, stage: StageId) -> dict[str, Any]:
        """What a finished stage's manifest says."""
        return self._done[stage].metrics

    def next_group(self) -> tuple[StageSpec, ...] | None:
        """The first stages without a valid manifest, None when the run is finished.

        Exam and teaching form one group, for they run at the same time. Raises CorruptionError for damaged files and
        RunFolderError for stages that were made from other settings or inputs.
        """
        for number in range(self._config.rounds.max_rounds + 1):
            for group in _groups(stages_of(self._config, number)):
                if any([not self._is_done(spec) for spec in group]):  # noqa: C419  each one's manifest is checked
                    return group
            if self._gained_nothing(number):
                log.info("round %d: validation gained less than rounds.min_gain; the run ends here", number)
                return None
        return None

    def _do(self, session: Session, group: tuple[StageSpec, ...]) -> None:
        missing = [spec for spec in group if spec.id not in self._done]
        for spec in missing:
            self._started[spec.id] = time.monotonic()
            log.info("%s starts", spec.id)
        if len(missing) == 2:
            exam, teach = missing
            stages.mine(session, exam.id, teach.id, lambda stage, made: self._commit(_spec(group, stage), made))
        else:
            self._commit(missing[0], stages.WORK[missing[0].id.name](session, missing[0].id))

    def _commit(self, spec: StageSpec, outcome: Outcome) -> None:
        seconds = time.monotonic() - self._started[spec.id]
        stage = spec.id
        manifest = Manifest(
            stage.name,
            stage.round,
            spec.digest(),
            self._inputs(spec),
            outcome.files,
            round(seconds, 3),
            outcome.metrics,
        )
        folder = self._store.child(*stage.folder)
        commit_manifest(folder, manifest)
        self._done[stage] = manifest
        live.committed(manifest)
        self._trackers.sync()
        if stage.name == "train":
            folder.delete("checkpoints")
        log.info("%s done in %.1f s", stage, seconds)

    def _inputs(self, spec: StageSpec) -> dict[str, str]:
        return {str(stage): self._done[stage].digest() for stage in spec.after}

    def _is_done(self, spec: StageSpec) -> bool:
        if spec.id in self._done:
            return True
        folder = self._store.child(*spec.id.folder)
        manifest = read_manifest(folder)
        if manifest is None:
            return False
        if manifest.spec != spec.digest() or any(
            stage not in self._done or manifest.inputs.get(str(stage)) != self._done[stage].digest()
            for stage in spec.after
        ):
            raise RunFolderError(
                f"{folder.uri} was made from other settings or other inputs than this run's; give this run another "
                f"name (--name), or delete that folder and the later rounds to make them again"
            )
        verify_files(folder, manifest)
        self._done[spec.id] = manifest
        return True

    def _gained_nothing(self, number: int) -> bool:
        """True when validation gained less than `min_gain` for `patience` rounds in a row."""
        rules = self._config.rounds
        scores = [
            self._done[StageId(round_, "evaluate")].metrics["validation"]["accuracy"] for round_ in range(number + 1)
        ]
        gains = [score - max(scores[:index]) for index, score in enumerate(scores) if index > 0]
        return len(gains) >= rules.patience and all(gain < rules.min_gain for gain in gains[-rules.patience :])


def claim_folder(store: Store, config: RunConfig) -> None:
    """Write run.yaml, or check that the one there gives the same results; raises RunFolderError naming what differs."""
    if store.exists(RUN_FILE):
        try:
            data = yaml.safe_load(store.read_bytes(RUN_FILE))
        except yaml.YAMLError as error:
            raise CorruptionError(f"{store.uri}/{RUN_FILE} is damaged: {error}") from None
        old = parse_config(data, f"{store.uri}/{RUN_FILE}")
        changed = changed_settings(old.results(), config.results())
        if changed:
            raise RunFolderError(
                f"the run folder {store.uri} belongs to another configuration; these settings change results:\n  "
                + "\n  ".join(changed)
                + "\nset them back, or give this run another name (--name)"
            )
    store.write_bytes(RUN_FILE, config.to_yaml().encode())


def _groups(specs: tuple[StageSpec, ...]) -> list[tuple[StageSpec, ...]]:
    """Exam and teaching go together, every other stage by itself."""
    together = tuple(spec for spec in specs if spec.id.name in ("exam", "teach"))
    alone: list[tuple[StageSpec, ...]] = [(spec,) for spec in specs if spec not in together]
    return [together, *alone] if together else alone


def _spec(group: tuple[StageSpec, ...], stage: StageId) -> StageSpec:
    return next(spec for spec in group if spec.id == stage)
