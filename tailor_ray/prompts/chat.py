"""The chat template of a tokenizer, as a picklable function from messages to text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tailor_ray.errors import ModelError


@dataclass(frozen=True)
class ChatTemplate:
    """Reads the tokenizer at first use, once a process; `model` is a local folder or a hub id."""

    model: str
    revision: str | None = None
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, messages: list[dict[str, str]], open_turn: bool) -> str:
        """The messages as the model was trained to read them. Raises ModelError when there is no template."""
        # Templates that can think before they answer are told not to: the rationale is the thinking.
        return self._tokenizer().apply_chat_template(
            messages, tokenize=False, add_generation_prompt=open_turn, enable_thinking=False
        )

    def __getstate__(self) -> tuple[str, str | None]:
        return self.model, self.revision

    def __setstate__(self, state: tuple[str, str | None]) -> None:
        object.__setattr__(self, "model", state[0])
        object.__setattr__(self, "revision", state[1])
        object.__setattr__(self, "_loaded", {})

    def _tokenizer(self) -> Any:
        if "tokenizer" not in self._loaded:
            from transformers import AutoTokenizer  # takes seconds

            tokenizer = AutoTokenizer.from_pretrained(self.model, revision=self.revision)
            if not tokenizer.chat_template:
                raise ModelError(
                    f"the tokenizer of {self.model!r} has no chat template; set student.prompt_style to plain"
                )
            self._loaded["tokenizer"] = tokenizer
        return self._loaded["tokenizer"]
