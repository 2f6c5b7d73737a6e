"""The student's forward pass: as sums of both loss terms, or as how well texts fit it.

In: a `Pack`. Out: `Sums`, to be divided by the step's global counts. The decoder runs once. Logits are made only at
targets, in slices whose memory is bounded whatever the vocabulary.

Of texts: prompts with completions in, one number for each out, the less the better. It is the mean negative log-
likelihood of the completion's tokens in nats. Or it is their mean rank in the student's predictions, 1 for the
likeliest. Each row is a forward pass by itself, so a number depends on its row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tailor_ray.models import ModelRef, resolve
from tailor_ray.records import TrainExample
from tailor_ray.training.losses import mle_sum, orpo_sum, redi_sum, token_nll, triplet_sum
from tailor_ray.training.packing import Pack
from tailor_ray.training.tokens import TokenExample, tokenize_examples
from tailor_ray.training.tree import TreeAttention

LOGITS_AT_ONCE = 1 << 25  # logits kept for the backward pass: 128 MiB in float32, as much again for their gradient


class Sums(NamedTuple):
    """Unnormalized terms of one pass; a tuple, for DeepSpeed looks for the tensors in it."""

    mle: Tensor
    reflection: Tensor


class StudentLoss(nn.Module):
    """A student with its two loss terms; this is what DeepSpeed wraps, so that one forward call is one pass."""

    def __init__(
        self,
        student: Any,
        attention: TreeAttention | None,
        margin: float,
        reflection: str = "triplet",
        floor: float = 2.0,
    ) -> None:
        """`reflection` is `training.reflection`, `margin` the triplet term's, `floor` that of `redi`."""
        super().__init__()
        self.student = student
        self.attention = attention
        self.margin, self.reflection, self.floor = margin, reflection, floor

    def forward(self, pack: Pack) -> Sums:
        hidden_TH = hidden_states(self.student, self.attention, pack)
        if pack.likelihood:
            return self._likelihoods(hidden_TH, pack)
        mle = self._mle(hidden_TH, pack)
        reps = hidden_TH.new_zeros((3 * pack.pairs, hidden_TH.shape[1]), dtype=torch.float32)
        weighted = hidden_TH.index_select(0, pack.rep_token).float() * pack.rep_weight[:, None]
        reps = reps.index_add(0, pack.rep_row, weighted)
        rationale, positive, negative = reps.view(3, pack.pairs, hidden_TH.shape[1])
        return Sums(mle, triplet_sum(rationale, positive, negative, self.margin, pack.pair_weight))

    def _likelihoods(self, hidden_TH: Tensor, pack: Pack) -> Sums:
        """Both terms from each target's likelihood; what a mean is worth is known when all its tokens are."""
        nll_K = self._token_nll(hidden_TH, pack)
        means = nll_K.new_zeros(2 * pack.pairs)
        means = means.index_add(0, pack.rep_row, nll_K.index_select(0, pack.rep_token) * pack.rep_weight)
        rationale, negative = means.view(2, pack.pairs)
        if self.reflection == "orpo":
            reflection = orpo_sum(rationale, negative, pack.pair_weight)
        else:
            reflection = redi_sum(negative, self.floor, pack.pair_weight)
        return Sums((nll_K * pack.weight).sum(), reflection)

    def _token_nll(self, hidden_TH: Tensor, pack: Pack) -> Tensor:
        """(K); of more targets than a slice holds, logits are made again in the backward pass."""
        head, size = self.student.get_output_embeddings(), self._slice(hidden_TH.device)
        hidden_KH = hidden_TH.index_select(0, pack.source)
        if len(pack.source) <= size:
            return token_nll(head(hidden_KH), pack.target)
        parts = zip(hidden_KH.split(size), pack.target.split(size), strict=True)
        return torch.cat(
            [
                checkpoint(lambda some, target: token_nll(head(some), target), *part, use_reentrant=False)
                for part in parts
            ]
        )

    def _slice(self, device: torch.device) -> int:
        """Targets whose logits are made at once."""
        return max(1, logits_at_once(device) // self.student.config.get_text_config().vocab_size)

    def _mle(self, hidden_TH: Tensor, pack: Pack) -> Tensor:
        head, size = self.student.get_output_embeddings(), self._slice(hidden_TH.device)
        hidden_KH = hidden_TH.index_select(0, pack.source)
        if len(pack.source) > size and type(head) is nn.Linear and head.bias is None:
            return _SlicedHead.apply(hidden_KH, head.weight, pack.target, pack.weight, size)
        total = hidden_TH.new_zeros((), dtype=torch.float32)
        for start in range(0, len(pack.source), size):
            taken = slice(start, start + size)
            arguments = (head, hidden_KH[taken], pack.target[taken], pack.weight[taken])
            whole = len(pack.source) <= size
            total = total + (_part(*arguments) if whole else checkpoint(_part, *arguments, use_reentrant=False))
        return total


def logits_at_once(device: torch.device) -> int:
    """Logits of a slice: 2^25 on CPU, on a GPU as many as take a thirtieth of its memory at 10 bytes each."""
    if device.type != "cuda":
        return LOGITS_AT_ONCE
    return max(LOGITS_AT_ONCE, torch.cuda.get_device_properties(device).total_memory // 300)


def _part(head: Callable[[Tensor], Tensor], hidden_KH: Tensor, target_K: Tensor, weight_K: Tensor) -> Tensor:
    return mle_sum(head(hidden_KH), target_K, weight_K)


class _SlicedHead(torch.autograd.Function):
    """The output layer and its loss, slice by slice, with the gradient made on the way.

    A slice's logits are made once, and the layer's weights are asked for once: under ZeRO-3 each time gathers them.
    """

    @staticmethod
    def forward(ctx: Any, hidden_KH: Tensor, head_VH: Tensor, target_K: Tensor, weight_K: Tensor, size: int) -> Tensor:
        total = hidden_KH.new_zeros((), dtype=torch.float32)
        wanted, of_head = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        grad_KH = torch.empty_like(hidden_KH) if wanted else None
        grad_VH = torch.zeros_like(head_VH, dtype=torch.float32) if of_head else None
        for start in range(0, len(hidden_KH), size):
            taken = slice(start, start + size)
            logits_KV = (hidden_KH[taken] @ head_VH.T).requires_grad_(wanted)
            with torch.enable_grad():
                loss = mle_sum(logits_KV, target_K[taken], weight_K[taken])
            total += loss.detach()
            if grad_KH is not None:
                (grad_KV,) = torch.autograd.grad(loss, logits_KV)
                grad_KH[taken] = grad_KV @ head_VH
                if grad_VH is not None:
                    grad_VH += grad_KV.T @ hidden_KH[taken]
        ctx.save_for_backward(grad_KH, None if grad_VH is None else grad_VH.to(head_VH.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_KH, grad_VH = ctx.saved_tensors
        of_head = None if grad_VH is None else (grad_VH * grad.to(grad_VH.dtype))
        return grad_KH * grad.to(grad_KH.dtype), of_head, None, None, None


def hidden_states(student: Any, attention: TreeAttention | None, pack: Pack) -> Tensor:
    """The last hidden states of a pass, after the final norm.

    `attention` is the student's where `pack` is a tree. Returns (T, H) over all rows of the pack.
    """
    if pack.tree is not None:
        assert attention is not None, "a tree needs the tree's attention"
        attention.tree = pack.tree
    # rows of their own begin at position 0, as models take it by themselves; not all take it from outside
    where = {"attention_mask": pack.attention_mask} if pack.tree is None else {"position_ids": pack.positions}
    output = decoder_of(student)(input_ids=pack.ids, use_cache=False, **where)
    return output.last_hidden_state.flatten(0, 1)


def decoder_of(student: Any) -> Any:
    """What makes the hidden states: the model less its output layer. Of some (Llama 4) `base_model` is the whole."""
    inside = (student.base_model, student.get_decoder(), getattr(student, "model", None))
    return next((part for part in inside if part is not None and part is not student), student)


UNFIT = float("inf")  # of a row whose prompt leaves no room


def fit_scores(
    student: Any,
    tokenizer: Any,
    rows: Sequence[tuple[str, str]],
    max_length: int,
    special_tokens: bool,
    by: Literal["nll", "rank"],
) -> list[float]:
    """How well completions fit the student, tokenized as they would be trained on.

    `rows` are pairs of prompt and completion, cut at `max_length` tokens together. `by` says what is measured, and
    `special_tokens` whether the tokenizer adds its own to a prompt. Returns one number for each row, the less the
    better, and UNFIT where the prompt leaves no room.
    """
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
    """The model of `student` in float32, loaded once per process."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(resolve(student), dtype=torch.float32).eval()
