"""What is costly to start: each is made when it is first asked for, and closed once, by who opened it.

A stage asks for engines, training workers, the teacher or the ledger. Nothing here knows what it does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from itertools import islice
from typing import Any

from tailor_ray.config import RunConfig
from tailor_ray.config.teacher import TeacherConfig
from tailor_ray.demo.mock_server import open_teacher
from tailor_ray.layout import ledger_folder
from tailor_ray.models import ModelRef, identify, publish
from tailor_ray.observe.logs import adopt_ray_output
from tailor_ray.observe.progress import Progress
from tailor_ray.rounds.cluster import Nodes, connected
from tailor_ray.serving.served import hosted_teachers
from tailor_ray.storage import Store
from tailor_ray.student.pool import EnginePool
from tailor_ray.tasks import grader_for, load_task
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.preflight import check_access
from tailor_ray.teacher.teach import open_pool
from tailor_ray.training.launch import Trainers


def reachable_teacher(config: RunConfig) -> AbstractContextManager[TeacherConfig]:
    """The teachers that a run asks; while the context lasts, a mock one is served."""
    return open_teacher(config.asked_teacher())


class WorkerPools:
    """The student's engines and its training workers; several runs of like students may share them."""

    def __init__(self, config: RunConfig, nodes: Nodes | None = None) -> None:
        self.engines = EnginePool(config.student, config.seed, nodes)
        self.trainers = Trainers(nodes)

    def close(self) -> None:
        self.trainers.close()
        self.engines.stop()


class Services:
    """A context manager; leaving it ends whatever was started, but for worker pools that were given."""

    def __init__(self, config: RunConfig, run: Store, progress: Progress, pools: WorkerPools | None = None) -> None:
        self.progress = progress
        self.open_pool = open_pool
        self._config, self._run = config, run
        self._pools = pools
        self._opened = ExitStack()
        self._connected = False

    def __enter__(self) -> Services:
        """Find what is wrong with student and teacher before anything is started or spent."""
        try:
            if self._config.student.is_given:
                identify(self._config.student.model, self._config.student.revision)
            if self._config.rounds.max_rounds:  # 0 teaches nothing, so no teacher need be there
                self._served = self._served_teachers()
                self._teacher = self._opened.enter_context(reachable_teacher(self._config))
                first = list(islice(load_task(self._config.task, self._config.seed).train, 2))
                check_access(self._teacher, grader_for(self._config.task), self.ledger, first)
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)  # a clean-up that fails keeps the first error as what it came from

    def connect(self) -> None:
        """Be connected to the Ray cluster from now on.

        Stages call it once they have read their inputs, so a wrong data file is found before this costs anything.
        """
        if not self._connected:
            started_here = self._opened.enter_context(connected(self._config.cluster))
            adopt_ray_output()
            if self._pools is None:
                self._pools = WorkerPools(
                    self._config, Nodes(0.0 if started_here else self._config.cluster.wait_for_nodes_s)
                )
                self._opened.callback(self._pools.close)
            self._connected = True

    @property
    def engines(self) -> EnginePool:
        """The student's engines, which may not be started yet; see `serve`."""
        self.connect()
        assert self._pools is not None
        return self._pools.engines

    def serve(self, model: ModelRef) -> EnginePool:
        """The engines, answering from `model`: started where they are not, else with its weights in place."""
        engines = self.engines
        if engines.is_started:
            engines.serve(model)
        else:
            with self.progress.stage("engines start", unit="engines") as bar:
                engines.serve(model)
                bar.update(done=engines.engines)
        return engines

    @property
    def trainers(self) -> Trainers:
        self.connect()
        assert self._pools is not None
        return self._pools.trainers

    @cached_property
    def teacher(self) -> TeacherConfig:
        """The teachers with their addresses; open-weight ones are served from now on."""
        self.connect()
        return self._opened.enter_context(hosted_teachers(self._teacher, self._config.name, self._served))

    @cached_property
    def ledger(self) -> Ledger:
        ledger = Ledger(ledger_folder(self._run), keep_batches=self._config.teacher.mode == "batch")
        self._opened.callback(ledger.close)
        return ledger

    def _served_teachers(self) -> Mapping[str, ModelRef]:
        """The models of `teacher.serve`, where every node finds them."""
        found = {}
        for endpoint in self._config.teacher.teachers:
            if endpoint.serve is not None:
                model = identify(endpoint.serve, endpoint.serving.revision, "teacher.serve")
                found[endpoint.serve] = publish(model, ledger_folder(self._run), f"models/{model.sha256[:16]}")
        return found
