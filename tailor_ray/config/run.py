"""The whole run's configuration: the sections joined, the small ones among them, YAML and `--set` read.

Conflicts between sections are refused.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from tailor_ray.config.base import CONSTANTS, OPERATIONAL, Section, explain, result_settings
from tailor_ray.config.student import EvaluationConfig, ExamConfig, StudentConfig
from tailor_ray.config.task import TaskConfig
from tailor_ray.config.teacher import TeacherConfig, one_form
from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import ConfigError, masked

log = logging.getLogger(__name__)

# Which settings have other defaults by `method`: "section.setting" and its value.
METHODS: dict[str, dict[str, Any]] = {
    "paper": {},
    "plain": {"training.feedback": False, "training.reflection": "none"},
    "tailored": {"training.reflection": "none"},
}


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


class RunConfig(Section):
    """One distillation run."""

    name: Annotated[str, OPERATIONAL] = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    """The run's folder below `storage`."""
    storage: Annotated[str, OPERATIONAL] = "runs"
    """A local folder or any pyarrow filesystem URI (file://, s3://, gs://)."""
    seed: int = Field(default=42, ge=0, lt=2**31)
    """Every other seed is derived from this one."""
    method: Literal["paper", "plain", "tailored"] = "paper"
    """What the student learns from, as defaults of other settings: see the table of methods. What is set itself wins.
    `paper` is the paper's method, `plain` learns from the teacher's rationales alone, `tailored` from feedback on
    mistakes too, without the self-reflection term: what did best in jobs/benchmarks/ablation.md."""
    task: TaskConfig = TaskConfig()
    """What is asked: the questions and how their answers are graded."""
    student: StudentConfig = StudentConfig()
    """Who is asked: the model that learns."""
    exam: ExamConfig = ExamConfig()
    """How the student's mistakes are mined."""
    teacher: TeacherConfig = TeacherConfig()
    """Who teaches, at which limits and price."""
    training: TrainingConfig = TrainingConfig()
    """How the student learns from lessons and from its own mistakes."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How progress is measured."""
    rounds: RoundsConfig = RoundsConfig()
    """How many rounds, and when to stop."""
    cluster: Annotated[ClusterConfig, OPERATIONAL] = ClusterConfig()
    """The Ray cluster that carries the run."""
    observe: Annotated[ObserveConfig, OPERATIONAL] = ObserveConfig()
    """Progress, trackers and logs."""

    @model_validator(mode="before")
    @classmethod
    def _by_method(cls, data: Any) -> Any:
        """The method's defaults, below what is set."""
        method = data.get("method") if isinstance(data, dict) else None
        for name, value in METHODS[method].items() if isinstance(method, str) and method in METHODS else ():
            section, _, setting = name.partition(".")
            given = data.get(section, {})
            if isinstance(given, Section):
                given = given.model_dump(exclude_unset=True)
            if isinstance(given, dict):
                data = {**data, section: {setting: value, **given}}
        return data

    @field_validator("storage")
    @classmethod
    def _no_credentials(cls, uri: str) -> str:
        if re.match(r"^\w+://[^/]*@", uri):
            raise ValueError("a storage URI must not carry user info; give the key by the environment")
        if masked(uri) != uri:
            raise ValueError("a storage URI must not carry a key in its query; give it by the environment")
        return uri

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.evaluation.max_new_tokens < self.exam.max_new_tokens // 4:
            raise ValueError(
                f"evaluation.max_new_tokens={self.evaluation.max_new_tokens} is under a quarter of "
                f"exam.max_new_tokens={self.exam.max_new_tokens}: most answers would be cut off; raise the former"
            )
        if self.teacher.correction == "continue" and self.student.thinking:
            raise ValueError(
                "teacher.correction=continue goes on from the student's words, and those of a student that thinks are "
                "thoughts: set student.thinking=false or correction to rewrite"
            )
        if self.student.engines == "auto" and any(teacher.serve for teacher in self.teacher.teachers):
            raise ValueError(
                "teacher.serve shares the cluster with the student's engines, and student.engines=auto takes every "
                "GPU: set it to a number"
            )
        return self

    def asked_teacher(self) -> TeacherConfig:
        """The section `teacher` with the words that a rationale may have for this run's student, and without feedback
        where none is learnt from."""
        changes: dict[str, Any] = {}
        if self.teacher.max_words == "auto":
            tokens = min(self.exam.max_new_tokens, self.evaluation.max_new_tokens)
            changes["max_words"] = max(10, tokens // 2)
        if not self.training.feedback:
            changes["max_mistakes"] = 0
        return self.teacher.model_copy(update=changes)

    def results(self) -> dict[str, Any]:
        """The settings that change results, as plain data by section.

        Two runs with the same ones may share a run folder.
        """
        return result_settings(self)

    def to_yaml(self) -> str:
        """The resolved configuration; it holds no key, for keys are never read into it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read one YAML file and those that it extends, apply `a.b=c` overrides in order, validate.

    `extends: other.yaml` takes the other file's settings, by a path from this file's folder. This file's own settings
    go before them, and so on by section; a list takes the place of a list. Without a `path` there are the defaults.
    Raises ConfigError naming the setting, the value and the rule.
    """
    data = {} if path is None else _read_settings(Path(path), ())
    for override in overrides:
        _apply(data, override)
    return parse_config(data, source=str(path) if path is not None else "the configuration")


def parse_config(data: dict[str, Any], source: str) -> RunConfig:
    """The configuration of plain `data`: sections of settings, as YAML gives them.

    Raises ConfigError that begins with `source` and names each setting, its value and the rule.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise explain(error, RunConfig, source) from None


def parse_run_file(data: dict[str, Any], source: str) -> RunConfig:
    """As `parse_config`, of a run folder's own run.yaml.

    An earlier version wrote settings there that are constants now: they are taken out of `data`.
    """
    for name in CONSTANTS:
        section, _, setting = name.partition(".")
        if isinstance(data.get(section), dict):
            data[section].pop(setting, None)
    return parse_config(data, source)


def _read_settings(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """A file's settings over those of the file that it extends; `extended_by` are the files that led here."""
    if any(path.resolve() == other.resolve() for other in extended_by):
        way = " → ".join(one.name for one in (*extended_by, path))
        raise ConfigError(f"{extended_by[0]} extends itself, by {way}; remove one `extends`")
    data = _read_yaml(path, f", which {extended_by[-1]} extends" if extended_by else "")
    if isinstance(data.get("teacher"), dict):
        data["teacher"], hints = one_form(data["teacher"])
        for hint in hints:
            log.warning("%s: %s; the old spelling is read until 0.3", path, hint)
    if "extends" not in data:
        return data
    base = data.pop("extends")
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: extends must be the path of one YAML file, not {base!r}")
    return _over(_read_settings(path.parent / base, (*extended_by, path)), data)


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The settings of both, section by section; where both have one, `own`."""
    merged = {**base, **own}
    for name in base.keys() & own.keys():
        if isinstance(base[name], dict) and isinstance(own[name], dict):
            merged[name] = _over(base[name], own[name])
    return merged


class _Settings(yaml.SafeLoader):
    """YAML's safe types; refuses a key that a section has twice, of which PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is set twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path, role: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}{role}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    try:
        data = yaml.load(text, _Settings)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError of a date or a number that is none
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid YAML: it is nested too deeply") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not a {type(data).__name__}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r} must have the form section.setting=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    *parents, last = key.strip().split(".")
    node: Any = data
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, override: str) -> Any:
    """The section of this name, or of this number in a list; one just behind a list's end is new."""
    if isinstance(node, list):
        if not part.isdecimal() or int(part) > len(node):
            raise ConfigError(f"--set {override!r}: {part!r} is no number from 0 to {len(node)}")
        if int(part) == len(node):
            node.append({})
        return node[int(part)]
    child = node.setdefault(part, [] if part == "teachers" else {})
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    return child
