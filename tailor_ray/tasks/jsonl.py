"""A user's own questions: JSONL, parquet or CSV, columns mapped by `task.columns`, answers of any kind."""

from __future__ import annotations

from tailor_ray.config.task import TaskConfig
from tailor_ray.errors import ConfigError
from tailor_ray.records import AnswerKind, Question
from tailor_ray.tasks.base import TaskData
from tailor_ray.tasks.sources import local_files
from tailor_ray.tasks.splits import assemble

ANSWER_KIND = AnswerKind.NUMBER
DEMOS: tuple[Question, ...] = ()  # task.demos takes the user's own


def load(config: TaskConfig, seed: int) -> TaskData:
    files = local_files(config)
    if files is None:
        raise ConfigError("task.name: jsonl needs task.path, the folder with train.jsonl and test.jsonl")
    return assemble(config, seed, config.answer_kind or ANSWER_KIND, config.own_demos() or DEMOS, *files)
