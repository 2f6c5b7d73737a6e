"""What held-out questions decide: which student of a round is kept, and whether the engines say what transformers does.

`Selection` keeps the last student, or the best of several. In: the job and its worker's engine. Out: candidates below
`<out>/candidates/`, each a whole Hugging Face folder with a score, and at the end `<out>/student/`.

Always holds. A candidate's step depends on the settings alone. So training that was resumed finds the candidates that
it made before, or makes the same again. The test split is never asked. Of equal scores the later student is kept.

`greedy_answers` is what transformers answers greedily, on the worker that exported the student. `check_agreement`
compares it with the engines' greedy answers, in the driver, before the round is committed. Two answers may part only
where transformers itself was undecided, by less than `TIES` between its two best tokens. The order of float additions
decides there, and each engine has its own.

Nothing here imports torch before it is used, for the driver reads answers too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tailor_ray.errors import ConfigError, StageError
from tailor_ray.layout import GREEDY, LOG, STUDENT
from tailor_ray.models import ModelRef
from tailor_ray.models.folder import is_model_file
from tailor_ray.models.texts import text_ids
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import Question, TrainExample
from tailor_ray.storage import FileEntry, Store, commit_part, committed_parts, read_part
from tailor_ray.training.plan import common_prefix
from tailor_ray.training.tokens import TokenExample, tokenize_examples

if TYPE_CHECKING:
    import torch

    from tailor_ray.training.steps import History, Stepper

ANSWER_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("dtype", pa.string()),
        ("ends", pa.list_(pa.int32())),
        ("leads", pa.list_(pa.float64())),
    ]
)
AT_ONCE = 32  # prompts a batch
TIES = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}  # difference of two logits, of about 10, that is noise


@dataclass(frozen=True)
class HeldOut:
    """Validation questions, and how the engines will be asked them. Picklable."""

    questions: tuple[Question, ...]
    prompt: StudentPrompt
    max_new_tokens: int
    dtype: str  # of the engines: "auto" is float32 on CPU, bfloat16 on GPUs


@dataclass(frozen=True)
class GreedyAnswer:
    """`ends[i]` is where token i ends in the text, `leads[i]` by how much its logit was above the second best."""

    question_id: str
    prompt: str
    text: str
    finish_reason: str  # "stop" or "length"
    dtype: str
    ends: list[int]
    leads: list[float]


def greedy_answers(
    folder: Path, asked: HeldOut, count: int, max_new_tokens: int, device: Any, at_once: int = AT_ONCE
) -> list[GreedyAnswer]:
    """Load the folder as anybody would, and answer the first `count` questions whose prompts leave room for it.

    At most `max_new_tokens` tokens are written of each, with `at_once` prompts in a batch on `device`. Returns one
    answer for each question that fits.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    on_gpu = torch.device(device).type == "cuda"
    dtype = asked.dtype if asked.dtype != "auto" else "bfloat16" if on_gpu else "float32"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    # replaced, for what a student prefers (a repetition penalty) the engines are not told
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=ends[0]
    )
    room = getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30) - max_new_tokens
    prompts = [asked.prompt.render(question) for question in asked.questions[:count]]
    ids = text_ids(tokenizer, prompts, asked.prompt.style == "plain")
    fitting = [index for index, row in enumerate(ids) if 0 < len(row) <= room]
    answers = []
    for start in range(0, len(fitting), at_once):
        batch = fitting[start : start + at_once]
        tokens, leads = _generate(model, [ids[index] for index in batch], ends[0])
        for index, said, lead in zip(batch, tokens, leads, strict=True):
            end = next((place + 1 for place, token in enumerate(said) if token in ends), len(said))
            text, reason, places = _read(tokenizer, said[:end], ends, asked.prompt.stop)
            name = asked.questions[index].id
            answers.append(GreedyAnswer(name, prompts[index], text, reason, dtype, places, lead[: len(places)]))
    return answers


def _generate(model: Any, rows: list[list[int]], pad: int) -> tuple[list[list[int]], list[list[float]]]:
    """New tokens of each row, and the lead of each over the second best."""
    import torch

    leads: list[Any] = []

    def watch(_: Any, scores_BV: Any) -> Any:
        two_B2 = scores_BV.float().topk(2).values
        leads.append((two_B2[:, 0] - two_B2[:, 1]).cpu())
        return scores_BV

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, logits_processor=[watch])
    return out[:, width:].tolist(), torch.stack(leads, dim=1).tolist()


def _read(tokenizer: Any, tokens: list[int], ends: list[int], stop: tuple[str, ...]) -> tuple[str, str, list[int]]:
    """The text before any stop string, why it ended, and where each token ends in it."""
    texts = [tokenizer.decode(tokens[: place + 1], skip_special_tokens=True) for place in range(len(tokens))]
    text = texts[-1] if texts else ""
    cut = min((text.find(word) for word in stop if word in text), default=len(text))
    stopped = cut < len(text) or (tokens and tokens[-1] in ends)
    return text[:cut], "stop" if stopped else "length", [len(one) for one in texts]


def write_answers(log: Store, answers: Sequence[GreedyAnswer], max_new_tokens: int) -> None:
    """Write the answers into `log`, a stage's folder of figures, with the bound on their tokens."""
    table = pa.Table.from_pylist([asdict(answer) for answer in answers], schema=ANSWER_SCHEMA)
    commit_part(log, GREEDY, 0, table, {"max_new_tokens": max_new_tokens})


def read_answers(log: Store) -> tuple[list[GreedyAnswer], int]:
    """Read what `write_answers` wrote into `log`.

    Returns the answers and the bound on their tokens; ([], 0) when the check was left out.
    """
    for part in committed_parts(log, GREEDY, verify=False):
        rows = read_part(log, part).to_pylist()
        return [GreedyAnswer(**row) for row in rows], part.info["max_new_tokens"]
    return [], 0


def check_agreement(answers: Sequence[GreedyAnswer], texts: Sequence[str]) -> dict[str, int]:
    """Compare transformers' answers with the engines' `texts`, in the same order.

    Returns counts of `prompts` and `ties`. Raises StageError where two differ for no tie.
    """
    ties = 0
    for answer, text in zip(answers, texts, strict=True):
        said, heard = (one.rstrip("\ufffd") for one in (answer.text, text))  # a character cut off by the cap
        if said == heard:
            continue
        place = common_prefix([said, heard])
        # of the token that covers the character, or of the one before it if less: tokens may part a bit earlier
        token = next((index for index, end in enumerate(answer.ends) if end > place), len(answer.ends) - 1)
        lead = min(answer.leads[max(0, token - 1) : token + 1], default=0.0)
        if lead > TIES[answer.dtype]:
            raise StageError(
                f"the trained student answers otherwise in the engines than in transformers: after {said[:place]!r} "
                f"one says {heard[place : place + 20]!r}, the other {said[place : place + 20]!r}, by {lead:.2g} and no "
                f"tie, to the prompt {answer.prompt[-200:]!r}; the round is not committed. Look whether the engines "
                "support this architecture in student.dtype; training.greedy_check=0 goes on without this check"
            )
        ties += 1
    return {"prompts": len(answers), "ties": ties}


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
        """Write the candidate after `done` steps, on all workers. Returns its score, higher is better."""
        weights = self.stepper.engine.state_dict()
        name = _name(done)
        if self.stepper.rank == 0:
            self._export(weights, name)
        return -self.stepper.held_out_loss(self.examples)

    def keep(self, weights: Mapping[str, torch.Tensor], history: History) -> tuple[int, ModelRef]:
        """Make the chosen student `student/`, with what it says greedily in `log/`.

        `weights` are the last student's, and `history` has the candidates' scores. Returns the chosen step and the
        model.
        """
        from tailor_ray.training.export import MASTERS

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
        from tailor_ray.training.export import export_student  # which imports torch

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
