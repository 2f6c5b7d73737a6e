"""What the five public sets share: local files where `task.path` or $TAILOR_RAY_DATA says so, else the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tailor_ray.config.task import TaskConfig
from tailor_ray.records import AnswerKind, Question
from tailor_ray.tasks.base import TaskData
from tailor_ray.tasks.sources import HubRows, Row, Source, local_files
from tailor_ray.tasks.splits import assemble


@dataclass(frozen=True)
class HubSet:
    """A data set on the hub and how its rows become ours."""

    dataset: str
    convert: Callable[[Row, str], Row]  # (hub row, "<split>-<index>") -> {"id", "question", "answer", …}
    subset: str | None = None
    test: str = "test"  # the split that serves as test

    def sources(self) -> tuple[HubRows, HubRows]:
        """The rows of train and test."""
        return self.rows("train"), self.rows(self.test)

    def rows(self, split: str) -> HubRows:
        """The rows of one split of the hub's, converted."""
        return HubRows(self.dataset, self.subset, split, self.convert)


def load_public(
    config: TaskConfig, seed: int, kind: AnswerKind, demos: tuple[Question, ...], hub_set: HubSet
) -> TaskData:
    """Splits of one of the five public sets.

    Local files go before the hub. `kind` and `demos` hold where the configuration gives none. Raises DataError as
    `assemble` does.
    """
    sources: tuple[Source, Source] = local_files(config) or hub_set.sources()
    return assemble(config, seed, config.answer_kind or kind, config.own_demos() or demos, *sources)
