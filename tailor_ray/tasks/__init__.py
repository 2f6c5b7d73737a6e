"""Tasks: where questions come from. `load_task` finds one by the name in the configuration.

The built-in one lies in `demo/`.

A task module offers `ANSWER_KIND`, `DEMOS` and `load(config, seed) -> TaskData`. The demos are 3 to 5 worked questions,
right by the task's own grader. To add a task, add such a module and its name to `TaskConfig.name`. The five public sets
are alike and share `public.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from tailor_ray.answers import Grader
from tailor_ray.config.task import TaskConfig
from tailor_ray.errors import ConfigError
from tailor_ray.records import AnswerKind, Question
from tailor_ray.tasks.base import Findings, TaskData
from tailor_ray.tasks.public import SETS, PublicSet

__all__ = ["Findings", "TaskData", "answer_kind", "demos_for", "grader_for", "load_task"]


def load_task(config: TaskConfig, seed: int) -> TaskData:
    """The task's questions, checked: splits, demos, findings.

    `seed` is the run's; it decides which questions are held out for validation. Raises DataError with the file, line
    and rule, and ConfigError for settings that do not fit the task.
    """
    return _task(config).load(config, seed)


def answer_kind(config: TaskConfig) -> AnswerKind:
    """How the task's answers are graded; reads no data."""
    return config.answer_kind or _task(config).answer_kind


def demos_for(config: TaskConfig) -> tuple[Question, ...]:
    """The task's few-shot demos; reads no data.

    Raises ConfigError when there are none to show.
    """
    demos = config.own_demos() or _task(config).demos
    if not demos:
        raise ConfigError("student.few_shot needs demos: give some in task.demos, or set it to false")
    return demos


def grader_for(config: TaskConfig) -> Grader:
    """The task's grader; reads no data."""
    return Grader(answer_kind(config), config.answer_function)


@dataclass(frozen=True)
class _Task:
    answer_kind: AnswerKind
    demos: tuple[Question, ...]
    load: Callable[[TaskConfig, int], TaskData]


def _task(config: TaskConfig) -> PublicSet | _Task:
    if config.name in SETS:
        return SETS[config.name]
    room = "demo" if config.name == "arithmetic" else "tasks"
    module = importlib.import_module(f"tailor_ray.{room}.{config.name}")
    return _Task(module.ANSWER_KIND, module.DEMOS, module.load)
