"""Texts as a model's tokenizer reads them, the same in the engines and in training.

Always holds. A prompt holds no end token that a tokenizer appends by itself. A chat's answer ends with the token that
ends a turn in the template. `ChatTemplate` is a picklable function from messages to text. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from tailor_ray.errors import ModelError
from tailor_ray.models.ref import ModelRef, resolve
from tailor_ray.once import once

CHUNK = 1024  # texts per call of the tokenizer
DAY = date(2025, 1, 1)  # told to templates that write today's date: a run's prompts must not change at midnight


def text_ids(tokenizer: Any, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
    """The token ids of texts that are to be gone on with.

    With `special_tokens` the tokenizer begins them as it would, with a beginning of sequence for one. Returns one list
    for each text.
    """
    rows: list[list[int]] = []
    for start in range(0, len(texts), CHUNK):
        rows += _ids(tokenizer, list(texts[start : start + CHUNK]), special_tokens)
    if not special_tokens or not rows:
        return rows
    # how many it puts behind every text: an end of sequence, with add_eos_token
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    begin = next((place for place in range(len(whole)) if whole[place : place + len(bare)] == bare), len(whole))
    appended = max(0, len(whole) - begin - len(bare))
    return [row[:-appended] for row in rows] if appended else rows


def _ids(tokenizer: Any, texts: list[str], special_tokens: bool) -> list[list[int]]:
    """What the tokenizer makes of the texts, without their tokens' places, which take a third of its time."""
    first = tokenizer(texts[:1], add_special_tokens=special_tokens)["input_ids"]  # it neither cuts nor pads hereafter
    if tokenizer.is_fast:
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=special_tokens)
        if encoded[0].ids == first[0]:  # else it prepares texts in its own way
            return [one.ids for one in encoded]
    return tokenizer(texts, add_special_tokens=special_tokens)["input_ids"]


def turn_end(tokenizer: Any) -> int | None:
    """The token that ends an answer in the chat template.

    Returns None without a template, or where it writes no such token.
    """
    if not tokenizer.chat_template:
        return None
    from jinja2 import TemplateError

    mark = "4711"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, strftime_now=DAY.strftime)
    except TemplateError:  # it knows no such turn
        return None
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    behind = tokenizer(text.rpartition(mark)[2], add_special_tokens=False)["input_ids"]
    return next((token for token in behind if token in added), None)


def end_tokens(tokenizer: Any, *more: int | Sequence[int] | None) -> list[int]:
    """Every token that ends an answer: the tokenizer's, the template's and `more`.

    Returns each id once, the turn's end first.
    """
    found = [turn_end(tokenizer), tokenizer.eos_token_id]
    for ids in more:
        found += [ids] if ids is None or isinstance(ids, int) else ids
    return list(dict.fromkeys(token for token in found if token is not None))


@dataclass(frozen=True)
class ChatTemplate:
    """Reads the tokenizer at first use, once a process, from this node's copy of the model."""

    model: ModelRef
    day: date = DAY
    thinking: bool = False  # what a template is told that can think before it answers

    def __call__(self, messages: list[dict[str, str]], open_turn: bool) -> str:
        """The messages as the model was trained to read them.

        `messages` have the keys role and content. `open_turn` adds the beginning of the answer's turn. Raises
        ModelError when the tokenizer has no template.
        """
        return _tokenizer(self.model).apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=open_turn,
            enable_thinking=self.thinking,
            strftime_now=self.day.strftime,
        )


@once
def _tokenizer(model: ModelRef) -> Any:
    from transformers import AutoTokenizer  # takes seconds

    tokenizer = AutoTokenizer.from_pretrained(resolve(model))
    if not tokenizer.chat_template:
        raise ModelError(f"the tokenizer of {model} has no chat template; set student.prompt_style to plain")
    tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)  # the template is compiled here
    return tokenizer
