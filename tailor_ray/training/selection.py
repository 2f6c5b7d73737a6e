"""Which student of a round is kept: the last one, or the best of several by what held-out questions say.

In: the job and its worker's engine. Out: candidates below `<out>/candidates/`, each a whole Hugging Face folder with
a score, and at the end `<out>/student/`. What always holds: a candidate's step depends on the settings alone, so
training that was resumed finds the candidates that it made before, or makes the same again; the test split is never
asked; of equal scores the later student is kept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from tailor_ray.errors import ConfigError
from tailor_ray.layout import LOG, STUDENT
from tailor_ray.models import ModelRef
from tailor_ray.models.folder import is_model_file
from tailor_ray.records import TrainExample
from tailor_ray.storage import FileEntry, Store
from tailor_ray.training.agreement import AT_ONCE, HeldOut, greedy_answers, write_answers
from tailor_ray.training.export import MASTERS, export_student
from tailor_ray.training.steps import History, Stepper
from tailor_ray.training.tokens import TokenExample, tokenize_examples

log = logging.getLogger(__name__)

GREEDY_TOKENS = 64  # of the comparison with the engines; long enough to part, short enough to cost little


class Selection:
    """One worker's view of it: all workers call `consider`, worker 0 alone `keep`."""

    def __init__(self, stepper: Stepper, held_out: HeldOut | None, out: Store, scratch: Path) -> None:
        self.stepper, self.config, self.student = stepper, stepper.config, stepper.student
        self.held_out, self.out, self.scratch = held_out, out, scratch
        self.examples = self._examples() if self.config.select == "validation_loss" else []

    def due(self, done: int) -> bool:
        """Whether the student after `done` steps is a candidate: they lie evenly, and the last is one."""
        if self.config.select == "last":
            return False
        steps, count = self.stepper.plan.steps, self.config.candidates
        return done in {max(1, round(steps * number / count)) for number in range(1, count + 1)}

    def consider(self, done: int) -> float:
        """Write the candidate and return its score, higher is better."""
        weights = self.stepper.engine.state_dict()
        name = _name(done)
        if self.stepper.rank == 0:
            self._export(weights, name)
        return -self.stepper.held_out_loss(self.examples)

    def keep(self, weights: Mapping[str, torch.Tensor], history: History) -> tuple[int, ModelRef]:
        """Make the chosen student `student/`, with what it says greedily in `log/`; its step, and the model."""
        scored = zip(history.column("validation").tolist(), history.column("step").tolist(), strict=True)
        scores = [(score, step + 1) for score, step in scored if not math.isnan(score)]
        step = max(scores)[1] if scores else len(history)
        if scores:
            log.info("of the students after these steps, with these scores, %d is kept: %s", step, scores)
            folder = self.out.local_folder(_name(step))
            for kind in (MASTERS, ""):
                self.out.delete(f"{STUDENT}{kind}")  # of an attempt that was cut off
                if self.out.files(f"{_name(step)}{kind}"):
                    kept = self.out.local_folder(f"{_name(step)}{kind}")
                    files = self.out.upload_folder(kept, f"{STUDENT}{kind}")
        else:
            folder = self.scratch / STUDENT
            files = self._export(weights, STUDENT)
        self._answer(folder)
        self.out.delete("candidates")
        entries = [replace(entry, path=entry.path.removeprefix(f"{STUDENT}/")) for entry in files]
        model = tuple(entry for entry in entries if is_model_file(entry.path))
        return step, ModelRef(self.out.child(STUDENT).uri, model)

    def _export(self, weights: Mapping[str, torch.Tensor], name: str) -> list[FileEntry]:
        return export_student(self.student, weights, self.out, self.scratch, name=name)

    def _answer(self, folder: Path) -> None:
        """Write what the student says to some questions, for the comparison with the engines."""
        count, held_out = self.config.greedy_check, self.held_out
        if held_out is None or not count:
            return
        tokens = min(GREEDY_TOKENS, held_out.max_new_tokens)
        # a recurrent student would read the padding that a batch's shorter prompts begin with
        at_once = 1 if self.student.attention is None else AT_ONCE
        answers = greedy_answers(folder, held_out, count, tokens, self.stepper.device, at_once)
        write_answers(self.out.child(LOG), answers, tokens)

    def _examples(self) -> list[TokenExample]:
        """Held-out questions with the task's own rationales."""
        held_out = self.held_out
        rows = [q for q in held_out.questions if q.rationale] if held_out is not None else []
        if held_out is None or not rows:
            raise ConfigError(
                "training.select=validation_loss needs rationales of the validation questions, and the task has none; "
                "set it to last"
            )
        prompt = held_out.prompt
        examples = [
            TrainExample(q.id, prompt.render(q), prompt.completion(q.rationale or "", q.answer), None, None)
            for q in rows
        ]
        student = self.student
        special = prompt.style == "plain"
        return tokenize_examples(
            examples, student.tokenizer, student.max_length, self.config.rationale_cap, "none", special
        ).examples


def _name(step: int) -> str:
    return f"candidates/step-{step:08d}"
