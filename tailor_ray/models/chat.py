"""The chat template of a model's tokenizer, as a picklable function from messages to text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from tailor_ray.errors import ModelError
from tailor_ray.models.ref import ModelRef, resolve
from tailor_ray.models.texts import on_day
from tailor_ray.once import once


@dataclass(frozen=True)
class ChatTemplate:
    """Reads the tokenizer at first use, once a process, from this node's copy of the model."""

    model: ModelRef
    day: date = date(2025, 1, 1)  # what a template that writes the date is told, all through a run
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
            strftime_now=on_day(self.day),
        )


@once
def _tokenizer(model: ModelRef) -> Any:
    from transformers import AutoTokenizer  # takes seconds

    tokenizer = AutoTokenizer.from_pretrained(resolve(model))
    if not tokenizer.chat_template:
        raise ModelError(f"the tokenizer of {model} has no chat template; set student.prompt_style to plain")
    tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)  # the template is compiled here
    return tokenizer
