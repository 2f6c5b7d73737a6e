"""How well texts fit a student: by how it would have written them itself.

In: a student, and prompts with completions. Out: a number for each, the less the better: the mean negative log-
likelihood of the completion's tokens in nats, or their mean rank in the student's predictions, 1 for the likeliest.
Each row is a forward pass by itself, so a number depends on its row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch

from tailor_ray.models import ModelRef, resolve
from tailor_ray.records import TrainExample
from tailor_ray.training.forward import decoder_of
from tailor_ray.training.losses import token_nll
from tailor_ray.training.tokens import TokenExample, tokenize_examples

UNFIT = float("inf")  # of a row whose prompt leaves no room


def fit_scores(
    student: Any,
    tokenizer: Any,
    rows: Sequence[tuple[str, str]],
    max_length: int,
    special_tokens: bool,
    by: Literal["nll", "rank"],
) -> list[float]:
    """Of each (prompt, completion), tokenized as it would be trained on."""
    examples = [TrainExample(str(number), *row, None, None) for number, row in enumerate(rows)]
    data = tokenize_examples(examples, tokenizer, max_length, max_length, "none", special_tokens)
    scores = [UNFIT] * len(rows)
    for place, example in zip(data.kept.tolist(), data.examples, strict=True):
        scores[place] = _score(student, example, by)
    return scores


@torch.no_grad()
def _score(student: Any, example: TokenExample, by: str) -> float:
    ids = torch.tensor([example.prompt + example.rationale])
    hidden_TH = decoder_of(student)(input_ids=ids, use_cache=False).last_hidden_state[0]
    begin = len(example.prompt)
    logits_KV, targets_K = student.get_output_embeddings()(hidden_TH[begin - 1 : -1]).float(), ids[0, begin:]
    if by == "nll":
        return token_nll(logits_KV, targets_K).mean().item()
    above_K = (logits_KV > logits_KV.gather(1, targets_K[:, None])).sum(dim=1)
    return (1 + above_K.double()).mean().item()


@lru_cache(maxsize=1)
def student_on_cpu(student: ModelRef) -> Any:
    """Once per process, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(resolve(student), dtype=torch.float32).eval()
