"""`rounds`, `cluster` and `observe`: how often, where, and what is shown."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tailor_ray.config.base import OPERATIONAL, Section


class RoundsConfig(Section):
    """How many rounds, and when to stop."""

    max_rounds: Annotated[int, OPERATIONAL] = Field(default=3, ge=0, le=99)
    """Upper bound; raising it goes on with a finished run, 0 only scores the student as given."""
    min_gain: float = 0.0
    """Stop when validation accuracy gains less than this (a share, 0.01 is one point) for `patience` rounds."""
    patience: int = Field(default=99, ge=1)
    """Rounds without gain before stopping."""


class ClusterConfig(Section):
    """The Ray cluster that carries the run."""

    address: str | None = None
    """Ray address; None takes RAY_ADDRESS or a running cluster, and starts a local one where there is none."""
    num_cpus: int | None = Field(default=None, ge=1)
    """CPUs of a cluster started locally; None takes the machine's."""
    object_store_gib: float = Field(default=1.0, gt=0)
    """Object store of a cluster started locally."""
    dashboard: bool = True
    """Start the dashboard with a cluster started locally, on loopback."""
    max_restarts: int = Field(default=3, ge=0)
    """How often a cluster started locally is started anew when it is lost; the run goes on from what is committed."""
    wait_for_nodes_s: float = Field(default=600.0, ge=0)
    """How long a stage waits for nodes that an autoscaler brings, or that take a lost one's place."""


class ObserveConfig(Section):
    """What is shown while a run goes on."""

    log_every_s: float = Field(default=10.0, gt=0)
    """Seconds between progress lines where there is no terminal."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Experiment trackers that get each committed stage's figures and training's curves."""
    tracker_folder: str | None = None
    """Where TensorBoard, local MLflow and W&B write; None takes `trackers` in the run folder, or the node's cache."""
    tracker_project: str = "tailor_ray"
    """Name of the MLflow experiment and of the W&B project."""
    mlflow_uri: str | None = None
    """MLflow tracking server; None takes MLFLOW_TRACKING_URI, or a SQLite file in the tracker folder."""
    wandb_mode: Literal["online", "offline"] | None = None
    """None takes WANDB_MODE, which is online unless set; keys come from the library's own environment variables."""

    @field_validator("trackers")
    @classmethod
    def _installed(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        missing = [name for name in trackers if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"not installed here: {', '.join(missing)}; pip install 'tailor-ray[trackers]'")
        return trackers

    @field_validator("mlflow_uri")
    @classmethod
    def _no_user_info(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password:
            raise ValueError("must not carry a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        return uri
