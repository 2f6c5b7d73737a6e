"""Does the exported student say the same in transformers and in the engines?

In: validation questions. Out: on the worker that exported the student, what transformers answers greedily; in the
driver, before the round is committed, a comparison with the engines' greedy answers. What always holds: two answers
may part only where transformers itself was undecided, by less than `TIES` between its two best tokens: the order of
float additions decides there, and each engine has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tailor_ray.errors import StageError
from tailor_ray.layout import GREEDY
from tailor_ray.models.texts import text_ids
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import Question
from tailor_ray.storage import Store, commit_part, committed_parts, read_part
from tailor_ray.training.schedule import common_prefix

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
    """Load the folder as anybody would and answer the first `count` questions whose prompts leave room for it."""
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
            text, reason, places = _read(tokenizer, _until(said, ends), ends, asked.prompt.stop)
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


def _until(tokens: list[int], stops: list[int]) -> list[int]:
    """Up to and with the first end token."""
    end = next((place + 1 for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


def _read(tokenizer: Any, tokens: list[int], ends: list[int], stop: tuple[str, ...]) -> tuple[str, str, list[int]]:
    """The text before any stop string, why it ended, and where each token ends in it."""
    texts = [tokenizer.decode(tokens[: place + 1], skip_special_tokens=True) for place in range(len(tokens))]
    text = texts[-1] if texts else ""
    cut = min((text.find(word) for word in stop if word in text), default=len(text))
    stopped = cut < len(text) or (tokens and tokens[-1] in ends)
    return text[:cut], "stop" if stopped else "length", [len(one) for one in texts]


def write_answers(log: Store, answers: Sequence[GreedyAnswer], max_new_tokens: int) -> None:
    """Into a stage's `log/`."""
    table = pa.Table.from_pylist([asdict(answer) for answer in answers], schema=ANSWER_SCHEMA)
    commit_part(log, GREEDY, 0, table, {"max_new_tokens": max_new_tokens})


def read_answers(log: Store) -> tuple[list[GreedyAnswer], int]:
    """What `write_answers` wrote, and the bound on their tokens; nothing when the check was left out."""
    for part in committed_parts(log, GREEDY, verify=False):
        rows = read_part(log, part).to_pylist()
        return [GreedyAnswer(**row) for row in rows], part.info["max_new_tokens"]
    return [], 0


def check_agreement(answers: Sequence[GreedyAnswer], texts: Sequence[str]) -> dict[str, int]:
    """Compare with the engines' texts; counts `prompts` and `ties`. Raises StageError where they differ for no tie."""
    ties = 0
    for answer, text in zip(answers, texts, strict=True):
        said, heard = (one.rstrip("\ufffd") for one in (answer.text, text))  # a character cut off by the cap
        if said == heard:
            continue
        place = common_prefix([said, heard])
        lead = _lead_at(answer, place)
        if lead > TIES[answer.dtype]:
            raise StageError(
                f"the trained student answers otherwise in the engines than in transformers: after {said[:place]!r} "
                f"one says {heard[place : place + 20]!r}, the other {said[place : place + 20]!r}, by {lead:.2g} and no "
                f"tie, to the prompt {answer.prompt[-200:]!r}; the round is not committed. Look whether the engines "
                "support this architecture in student.dtype; training.greedy_check=0 goes on without this check"
            )
        ties += 1
    return {"prompts": len(answers), "ties": ties}


def _lead_at(answer: GreedyAnswer, place: int) -> float:
    """The lead of the token that covers a character, or of the one before it if less: tokens may part a bit earlier."""
    token = next((index for index, end in enumerate(answer.ends) if end > place), len(answer.ends) - 1)
    return min(answer.leads[max(0, token - 1) : token + 1], default=0.0)
