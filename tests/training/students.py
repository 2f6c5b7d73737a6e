"""Tiny random students of several architectures, made on the spot, and examples to train them on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tailor_ray.records import TrainExample

KINDS = ("llama", "gpt2", "gptj", "qwen3", "gemma", "phi")
WORDS = "zero one two three four five six seven eight nine has gives buys apples pens and more so in all left".split()  # noqa: SIM905


def make_tokenizer(folder: Path) -> Any:
    """Words and digits apart; has an end token and, as many models, no pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["Question:", "Reasoning:", "Answer:", "\n", " ", ".", "?", "+", "-", "=", ":"]
    vocabulary = ["<unk>", "</s>", *map(str, range(10)), *WORDS, *marks]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Digits(True)]
    )
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return fast


def make_model(kind: str, vocab_size: int = 96, seed: int = 0, **more: Any) -> Any:
    """A random causal LM of 2 layers and width 32, without dropout where it has any."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    common = {"vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 1}
    if kind in ("gpt2", "gptj"):
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 64}
        shape |= {"rotary_dim": 4} if kind == "gptj" else {}
    else:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        shape |= {"num_key_value_heads": 4 if kind == "phi" else 2, "max_position_embeddings": 256, "pad_token_id": 0}
        shape |= {"head_dim": 8} if kind in ("qwen3", "gemma") else {}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(common | shape | more)))


def make_student(folder: Path, kind: str = "llama", **more: Any) -> Path:
    """A whole student folder."""
    tokenizer = make_tokenizer(folder)
    make_model(kind, vocab_size=len(tokenizer), **more).save_pretrained(folder)
    return folder


def make_examples(count: int, seed: int = 0, questions: int | None = None) -> list[TrainExample]:
    """Sums in words; two of three have a pair, and several examples may share a question."""
    rng = random.Random(seed)
    examples = []
    for index in range(count):
        number = index if questions is None else index % questions
        a, b = number % 10, (number * 7 + 3) % 10
        extra = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(6)))
        examples.append(
            TrainExample(
                question_id=f"q{number}",
                prompt=f"Question: {a} apples and {b} more {extra}\nReasoning:",
                rationale=f" {a} + {b} = {a + b}\nAnswer: {a + b}",
                positive=f" {b} and {a} gives {a + b} {extra}\nAnswer: {a + b}" if index % 3 else None,
                negative=f" {a} - {b} = {abs(a - b)}\nAnswer: {abs(a - b)}" if index % 3 else None,
            )
        )
    return examples
