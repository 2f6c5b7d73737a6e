"""The chat template of a model's tokenizer, as a picklable function from messages to text."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from tailor_ray.errors import ModelError
from tailor_ray.models.ref import ModelRef, resolve

_LOADING = threading.Lock()  # transformers' lazy modules cannot be imported by several threads at once (5.19)


@dataclass(frozen=True)
class ChatTemplate:
    """Reads the tokenizer at first use, once a process, from this node's copy of the model."""

    model: ModelRef
    thinking: bool = False  # what a template is told that can think before it answers
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, messages: list[dict[str, str]], open_turn: bool) -> str:
        """The messages as the model was trained to read them. Raises ModelError when there is no template."""
        return self._tokenizer().apply_chat_template(
            messages, tokenize=False, add_generation_prompt=open_turn, enable_thinking=self.thinking
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatTemplate, (self.model, self.thinking)

    def _tokenizer(self) -> Any:
        with _LOADING:
            if "tokenizer" not in self._loaded:
                from transformers import AutoTokenizer  # takes seconds

                tokenizer = AutoTokenizer.from_pretrained(resolve(self.model))
                if not tokenizer.chat_template:
                    raise ModelError(
                        f"the tokenizer of {self.model} has no chat template; set student.prompt_style to plain"
                    )
                self._loaded["tokenizer"] = tokenizer
            return self._loaded["tokenizer"]
