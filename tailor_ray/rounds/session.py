"""What the stages of one run share: the guarded store, the task, the prompt, the engines, the progress display.

Everything costly is made when it is first needed and kept to the end of the run: engines start once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor_ray.config import RunConfig
from tailor_ray.errors import DataError, RunFolderError
from tailor_ray.observe import live, metrics
from tailor_ray.observe.logs import adopt_ray_output
from tailor_ray.observe.progress import Progress
from tailor_ray.prompts.chat import ChatTemplate
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import Question, from_table
from tailor_ray.rounds.cluster import connected
from tailor_ray.rounds.hosting import hosted_teachers
from tailor_ray.rounds.spec import BASE_STUDENT, QUESTIONS, StageId, student_after
from tailor_ray.statistics import accuracy
from tailor_ray.storage import FileEntry, Part, Store, committed_parts, read_manifest, read_part
from tailor_ray.student.model import find_student, folder_sha256
from tailor_ray.tasks import answer_kind, demos_for, grader_for, load_task
from tailor_ray.tasks.base import TaskData
from tailor_ray.teacher.access import check_access
from tailor_ray.teacher.sandbox_process import open_teacher

if TYPE_CHECKING:
    from tailor_ray.config.teacher import TeacherConfig
    from tailor_ray.student.pool import EnginePool
    from tailor_ray.teacher.teach import TeachJob
    from tailor_ray.training.agreement import HeldOut
    from tailor_ray.training.launch import OnProgress, Trainers, TrainJob, TrainResult


@dataclass
class Staff:
    """What is costly to start: the student's engines and its training workers."""

    engines: EnginePool | None = None
    trainers: Trainers | None = None

    def dismiss(self) -> None:
        if self.trainers is not None:
            self.trainers.close()
        if self.engines is not None:
            self.engines.stop()


class Session:
    """A context manager; leaving it ends the engines and whatever else was started."""

    def __init__(self, config: RunConfig, store: Store, progress: Progress) -> None:
        self.config = config
        self.store = store
        self.progress = progress
        self._opened = ExitStack()
        self._connected = False
        self._hosted: TeacherConfig | None = None
        self._staff = Staff()
        self._serving: StageId | None = None
        self._checksum = ""

    def __enter__(self) -> Session:
        """Find what is wrong with student and teacher before anything is started or spent."""
        if self.config.student.model != "tiny":
            self._check_given_student()
        if self.config.rounds.max_rounds:  # 0 teaches nothing, so no teacher need be there
            for endpoint in self.config.teacher.endpoints:
                if endpoint.serve is not None:
                    find_student(endpoint.serve, setting="teacher.serve")
            self.teacher = self._opened.enter_context(open_teacher(self.config.teacher))
            check_access(self.teacher)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def connect(self) -> None:
        """Be connected to the Ray cluster from now on; a wrong data file is found before this costs anything."""
        if not self._connected:
            self._opened.enter_context(connected(self.config.cluster))
            self._opened.callback(self._dismiss)
            adopt_ray_output()
            self._connected = True

    def folder(self, stage: StageId) -> Store:
        return self.store.child(*stage.folder)

    # What is asked

    @cached_property
    def task(self) -> TaskData:
        return load_task(self.config.task, self.config.seed)

    @cached_property
    def prompt(self) -> StudentPrompt:
        student = self.config.student
        chat = ChatTemplate(str(self.student_folder(BASE_STUDENT))) if student.prompt_style == "chat" else None
        demos = demos_for(self.config.task) if student.few_shot else ()
        return StudentPrompt(student.prompt_style, answer_kind(self.config.task), demos, chat)

    def check_splits(self, counts: dict[str, int]) -> None:
        """Raise DataError when a split is empty, before anything is spent."""
        for split, rows in counts.items():
            if rows == 0:
                raise DataError(
                    f"task {self.config.task.name!r} has no {split} questions; give more data, "
                    "or change task.validation_share or task.limit_train"
                )

    # The student

    def student_folder(self, stage: StageId) -> Path:
        """The student as a stage left it, as a local folder in Hugging Face form."""
        if stage != BASE_STUDENT:
            return self.folder(stage).local_folder("student")
        if self.config.student.model == "tiny":
            return self.folder(BASE_STUDENT).local_folder("student")
        return self.given_student

    @cached_property
    def given_student(self) -> Path:
        return find_student(self.config.student.model, self.config.student.revision)

    def _check_given_student(self) -> None:
        manifest = read_manifest(self.folder(BASE_STUDENT))
        if manifest is not None and manifest.metrics["sha256"] != folder_sha256(self.given_student):
            raise RunFolderError(
                f"the student {self.config.student.model} is not the one that {self.store.uri} was begun with: "
                "its files changed; put them back, or give this run another name (--name)"
            )

    def make_tiny_student(self, out: Store) -> tuple[tuple[FileEntry, ...], dict[str, Any]]:
        from tailor_ray.student.school import school_tiny_student

        self.connect()
        if self._staff.trainers is not None:  # taken over; on a small machine they hold the core that schooling needs
            self._staff.trainers.close()
        config = self.config.student.tiny
        with self.progress.stage("round 0 schooling", total=config.school_steps, unit="steps") as bar:
            entries, metrics = school_tiny_student(
                config, self.prompt, self.config.seed, out, "student", lambda done: bar.update(done=done)
            )
        return tuple(entries), metrics

    def serve_student(self, stage: StageId) -> str:
        """Have the engines serve the student of a stage; returns the checksum of the weights that they hold."""
        from tailor_ray.student.pool import EnginePool

        self.connect()
        folder = str(self.student_folder(stage))
        if self._staff.engines is None:
            pool = self._staff.engines = EnginePool(self.config.student, folder, self.config.seed)
            with self.progress.stage("engines start", unit="engines") as bar:
                pool.start()
                bar.update(done=pool.engines)
        if self._serving != stage:
            started = time.monotonic()
            self._checksum = self._staff.engines.load(folder)
            metrics.gauge("weight_swap_seconds", time.monotonic() - started)
            self._serving = stage
        return self._checksum

    def part_with_staff(self) -> Staff:
        """Engines and training workers, running on, for `take_staff` of another session of like students."""
        staff, self._staff, self._serving = self._staff, Staff(), None
        return staff

    def take_staff(self, staff: Staff) -> None:
        """Work with what another session started; it is dismissed at the end of this one, unless parted with."""
        self.connect()
        self._staff = staff

    def _dismiss(self) -> None:
        self._staff.dismiss()

    def release_engines(self) -> None:
        """Free the engines' accelerator memory for training; the next `serve_student` takes it back."""
        if self._staff.engines is not None:
            self._staff.engines.release()
            self._serving = None

    # The stages' jobs

    def examine(
        self, out: Store, prefix: str, split: str, stage: StageId, on_part: Callable[[Part], None]
    ) -> dict[str, Any]:
        """Ask the served student a split: sampled for the exam, greedily for an evaluation."""
        from tailor_ray.student.exam import ExamJob, run_exam

        exam, sampled = self.config.exam, stage.name == "exam"
        job = ExamJob(
            prefix=prefix,
            split=split,
            prompt=self.prompt,
            grader=grader_for(self.config.task),
            samples=exam.samples if sampled else 1,
            temperature=exam.temperature if sampled else 0.0,
            top_p=exam.top_p if sampled else 1.0,
            max_new_tokens=exam.max_new_tokens if sampled else self.config.evaluation.max_new_tokens,
            seed=self.config.seed,
            round=stage.round,
            max_engine_restarts=exam.max_engine_restarts,
        )
        assert self._staff.engines is not None
        asked = self.rows(QUESTIONS, split) * job.samples
        with self.progress.stage(f"{stage} {split}", total=asked, unit="samples") as bar:

            def part_done(part: Part) -> None:
                bar.advance(part.entry.rows or 0)
                live.answered(part)
                on_part(part)

            return run_exam(self._staff.engines, job, self.folder(QUESTIONS), out, part_done)

    def score(self, out: Store, split: str, stage: StageId) -> dict[str, Any]:
        """Greedy accuracy on a split with its Wilson interval; undecided answers count as not correct."""
        counts = self.examine(out, split, split, stage, lambda _: None)
        return {**counts, **accuracy(counts["correct"], counts["attempts"])}

    def rows(self, stage: StageId, split: str) -> int:
        manifest = read_manifest(self.folder(stage))
        return manifest.metrics[split] if manifest is not None else 0

    def teach_job(
        self, stage: StageId, taught: frozenset[str], questions: int, on_progress: Callable[[dict[str, int]], None]
    ) -> TeachJob:
        from tailor_ray.teacher.teach import TeachJob

        if self._hosted is None:
            self._hosted = self._opened.enter_context(hosted_teachers(self.teacher, self.config.name))
        return TeachJob(self._hosted, stage.round, grader_for(self.config.task), taught, questions, on_progress)

    def train(self, stage: StageId, on_progress: OnProgress) -> TrainResult:
        """Train on the stage's examples, by workers that are kept for the next round."""
        from tailor_ray.training.launch import Trainers

        self.connect()
        if self._staff.trainers is None:
            self._staff.trainers = Trainers()
        return self._staff.trainers.train(self.train_job(stage), on_progress)

    def train_job(self, stage: StageId) -> TrainJob:
        from tailor_ray.training.launch import TrainJob

        config, out = self.config.training, self.folder(stage)
        start = BASE_STUDENT if config.start == "base" else student_after(stage.round - 1)
        return TrainJob(
            config=config,
            student_in=self.student_uri(start),
            examples=out,
            out=out,
            seed=self.config.seed,
            round=stage.round,
            special_tokens=self.config.student.prompt_style == "plain",
            held_out=self._held_out(),
        )

    def _held_out(self) -> HeldOut:
        from tailor_ray.training.agreement import HeldOut

        folder = self.folder(QUESTIONS)
        parts = committed_parts(folder, "validation")
        return HeldOut(
            questions=tuple(row for part in parts for row in from_table(read_part(folder, part), Question)),
            prompt=self.prompt,
            grader=grader_for(self.config.task),
            max_new_tokens=self.config.evaluation.max_new_tokens,
            dtype=self.config.student.dtype,
        )

    def check_agreement(self, stage: StageId) -> dict[str, int]:
        """Compare the engines, which serve the stage's student, with what transformers said when it was exported.

        Raises StageError where they differ; {} when training was told to leave the comparison out.
        """
        from tailor_ray.student.sampling import Sampling
        from tailor_ray.training.agreement import check_agreement, read_answers

        assert self._staff.engines is not None
        answers, tokens = read_answers(self.folder(stage))
        if not answers:
            return {}
        sampling = Sampling(0.0, 1.0, tokens, self.prompt.stop, self.prompt.style == "plain")
        names, prompts = ([getattr(answer, key) for answer in answers] for key in ("question_id", "prompt"))
        said = self._staff.engines.answer(names, prompts, [[0]] * len(answers), sampling)
        return check_agreement(answers, said.texts)

    def student_uri(self, stage: StageId) -> str:
        """Where workers on any node find a stage's student."""
        if stage == BASE_STUDENT and self.config.student.model != "tiny":
            return str(self.given_student)
        return self.folder(stage).child("student").uri
