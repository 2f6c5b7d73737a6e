"""TensorBoard, MLflow and Weights & Biases: each committed stage's figures and training's curves, by config.

In: the run folder's manifests. Out: scalars named `stage/figure` at the round, and `train/loss` and the like at the
step counted over all rounds. Settings go where the tracker keeps such. What was sent is written to trackers/sent.json
of the run folder. So a restart sends what is missing, and a tracker that was out of reach gets it later. A tracker that
fails is warned about and never stops a run. Keys come from each library's own environment variables.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tailor_ray import layout
from tailor_ray.config.run import ObserveConfig
from tailor_ray.errors import CorruptionError
from tailor_ray.observe.summary import STAGES, RunRecord, flat_settings, load_run
from tailor_ray.storage import Store
from tailor_ray.storage.store import node_cache

log = logging.getLogger(__name__)

SENT = f"{layout.TRACKERS}/sent.json"
Scalars = dict[str, float]


class Tracker(Protocol):
    """One library. `axis` is "round" or "train/step"."""

    @staticmethod
    def failures() -> tuple[type[Exception], ...]:
        """What it raises when its disk or server is out of reach."""

    def log(self, rows: Sequence[tuple[int, Scalars]], axis: str) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """All trackers of one run. `sync` sends every committed stage that was not sent yet; call it after each commit."""

    def __init__(self, config: ObserveConfig, store: Store) -> None:
        self._store = store
        self._config = config
        self._folder = _folder(config, store)
        self._open: dict[str, Tracker] = {}

    def sync(self) -> None:
        if not self._config.trackers:
            return
        record = load_run(self._store)
        sent = _sent(self._store)
        for name in self._config.trackers:
            done = sent.setdefault(name, [])
            for key, rows, axis in _unsent(record, done):
                if not self._send(name, record, rows, axis):
                    break
                done.append(key)
        self._store.write_json(SENT, sent)

    def close(self) -> None:
        for name, tracker in self._open.items():
            try:
                tracker.close()
            except tracker.failures() as error:
                log.warning("the tracker %s did not close well: %s", name, error)
        self._open.clear()

    def _send(self, name: str, record: RunRecord, rows: list[tuple[int, Scalars]], axis: str) -> bool:
        kind = KINDS[name]
        try:
            if name not in self._open:
                self._open[name] = kind(self._config, record, self._folder)
            self._open[name].log(rows, axis)
        except kind.failures() as error:
            log.warning("the tracker %s failed: %s; it gets these figures with the next stage", name, error)
            return False
        return True


def _folder(config: ObserveConfig, store: Store) -> Path:
    """Trackers write to local disks only: the run folder where it is one, else this node's cache."""
    if config.tracker_folder is not None:
        return Path(config.tracker_folder).expanduser().resolve()
    return (
        Path(store.path(layout.TRACKERS)) if store.is_local else node_cache() / layout.TRACKERS / Path(store.root).name
    )


def _sent(store: Store) -> dict[str, list[str]]:
    """What each tracker has; nothing when the file is damaged, for to send a figure again changes nothing."""
    if not store.exists(SENT):
        return {}
    try:
        sent = store.read_json(SENT)
        return {name: [str(key) for key in keys] for name, keys in sent.items()}
    except (ValueError, AttributeError, TypeError):
        log.warning("%s/%s is damaged; all figures are sent to the trackers again", store.uri, SENT)
        return {}


def _unsent(record: RunRecord, done: Sequence[str]) -> Iterator[tuple[str, list[tuple[int, Scalars]], str]]:
    """(key, rows, axis) of each committed stage's figures and of each training's curve that `done` does not name."""
    offset = 0
    for (number, stage), manifest in sorted(record.stages.items()):
        key = f"{number} {stage}"
        if key not in done:
            yield key, [(number, {f"{stage}/{name}": value for name, value in scalars(manifest.metrics)})], "round"
        if stage == "train":
            steps = []
            try:  # a file that is missing or damaged stops no run
                steps = record.steps(number) if f"{key} curve" not in done else []
            except CorruptionError as error:
                log.warning("%s; the trackers do not get the curve of round %d", error, number)
            if steps:
                figures = [{f"train/{name}": value for name, value in scalars(step)} for step in steps]
                yield f"{key} curve", list(enumerate(figures, start=offset + 1)), "train/step"
            offset += manifest.metrics.get("steps", 0)


def scalars(metrics: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of nested `metrics`, as pairs of name and value.

    A name is the way to its number, as `test/accuracy`, below `path`.
    """
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{path}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{path}{name}", float(value)


class TensorBoard:
    """Event files, one a driver process, which TensorBoard shows as one run."""

    @staticmethod
    def failures() -> tuple[type[Exception], ...]:
        return (OSError,)

    def __init__(self, config: ObserveConfig, record: RunRecord, folder: Path) -> None:  # noqa: ARG002 (one shape for all)
        from tensorboard.summary import Writer

        self._writer = Writer(str(folder / "tensorboard"))

    def log(self, rows: Sequence[tuple[int, Scalars]], axis: str) -> None:  # noqa: ARG002
        for x, values in rows:
            for name, value in values.items():
                self._writer.add_scalar(name, value, x)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """One MLflow run, found again by a tag; the tracking server of MLFLOW_TRACKING_URI, else a local SQLite file."""

    @staticmethod
    def failures() -> tuple[type[Exception], ...]:
        from mlflow.exceptions import MlflowException

        return (MlflowException, OSError)

    def __init__(self, config: ObserveConfig, record: RunRecord, folder: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        folder.mkdir(parents=True, exist_ok=True)
        # Its own defaults retry for minutes, and the run waits; what failed is sent again with the next stage anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        uri = config.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(config.tracker_project)
        experiment = found.experiment_id if found else self._client.create_experiment(config.tracker_project)
        tag = record.store.uri.replace("'", "")
        runs = self._client.search_runs([experiment], f"tags.tailor_run = '{tag}'")
        if runs:
            self._run = runs[0].info.run_id
            return
        self._run = self._client.create_run(experiment, tags={"tailor_run": tag}, run_name=record.name).info.run_id
        params = [Param(name, str(value)[:500]) for name, value in flat_settings(record.settings)]
        for at in range(0, len(params), 100):  # MLflow's limit of one batch
            self._client.log_batch(self._run, params=params[at : at + 100])

    def log(self, rows: Sequence[tuple[int, Scalars]], axis: str) -> None:  # noqa: ARG002
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, x) for x, values in rows for name, value in values.items()]
        for at in range(0, len(metrics), 1000):  # MLflow's limit of one batch
            self._client.log_batch(self._run, metrics=metrics[at : at + 1000])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class WeightsAndBiases:
    """One W&B run, continued by a restart under the same id; offline it lies below the folder, for `wandb sync`."""

    @staticmethod
    def failures() -> tuple[type[Exception], ...]:
        import wandb

        return (wandb.errors.Error, OSError)

    def __init__(self, config: ObserveConfig, record: RunRecord, folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.tracker_project,
            name=record.name,
            id=hashlib.sha256(record.store.uri.encode()).hexdigest()[:16],
            resume="allow",
            mode=config.wandb_mode,
            dir=str(folder),
            config=dict(flat_settings(record.settings)),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        for stage in STAGES:
            self._run.define_metric(f"{stage}/*", step_metric="round")
        for name in ("loss", "mle", "reflection", "learning_rate", "tokens", "seconds"):
            self._run.define_metric(f"train/{name}", step_metric="train/step")

    def log(self, rows: Sequence[tuple[int, Scalars]], axis: str) -> None:
        for x, values in rows:
            self._run.log({**values, axis: x})

    def close(self) -> None:
        self._run.finish()


KINDS: dict[str, type[TensorBoard] | type[MLflow] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
