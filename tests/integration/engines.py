"""A small random student on disk and the engine pool over it, shared by every test that needs real generations."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailor_ray.answers import Grader
from tailor_ray.config.student import StudentConfig
from tailor_ray.models import ModelRef, identify
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import QUESTION_SCHEMA, AnswerKind, Attempt, Question, from_table, to_table
from tailor_ray.storage import Manifest, PartsDigest, Store, commit_manifest, commit_part, committed_parts, read_part
from tailor_ray.student.exam import ExamJob
from tailor_ray.student.pool import EnginePool

ALPHABET = sorted(set(string.printable) - set("\x0b\x0c"))
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]


def make_student(
    folder: Path,
    seed: int = 0,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 2,  # vLLM on CPU has no attention kernel for heads narrower than 32
    max_position_embeddings: int = 2048,
    unknown_token: str | None = None,
) -> Path:
    """Write a random Llama with a tokenizer of one token a character; `seed` alone decides the weights.

    `unknown_token` goes into the tokenizer and has no embedding, as in a folder whose files don't belong together:
    a prompt with it makes the model's forward pass fail.
    """
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if unknown_token is not None:  # behind what vLLM pads the embedding to, a multiple of 64
        tokenizer.add_special_tokens([f"<{number}>" for number in range(64)] + [unknown_token])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        tie_word_embeddings=True,  # vLLM keeps a packed copy of a tied head, which a swap must renew
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_position_embeddings,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,  # large enough that two seeds disagree on nearly every token
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two students that differ in their weights alone."""
    folder = tmp_path_factory.mktemp("students")
    return make_student(folder / "first", seed=0), make_student(folder / "second", seed=1)


@pytest.fixture(scope="session")
def engine_pool(ray_cluster: None, students: tuple[Path, Path]) -> Iterator[EnginePool]:
    """Two engines for the whole session; a test loads the student that it wants first."""
    pool = EnginePool(StudentConfig(engines=2, kv_cache_gib=0.125, max_model_len=512), seed=7)
    pool.serve(ref(students[0]))
    yield pool
    pool.stop()


def ref(folder: Path) -> ModelRef:
    """The reference of a local model folder."""
    return identify(str(folder))


def write_questions(store: Store, questions: Sequence[Question], size: int) -> None:
    """Training questions as the questions stage leaves them: parts, then the manifest."""
    parts = [
        commit_part(store, "train", index, to_table(questions[start : start + size], QUESTION_SCHEMA))
        for index, start in enumerate(range(0, len(questions), size))
    ]
    commit_manifest(
        store, Manifest("questions", 0, "", {}, {"train": PartsDigest.of(parts)}, 0.0, {"train": len(questions)})
    )


def exam_job(**changes: Any) -> ExamJob:
    """A short exam of two samples a question."""
    job = ExamJob(
        prefix="attempts",
        split="train",
        prompt=StudentPrompt("plain", AnswerKind.NUMBER),
        grader=Grader(AnswerKind.NUMBER),
        samples=2,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=16,
        seed=7,
        round=1,
    )
    return replace(job, **changes)


def attempts(store: Store, prefix: str = "attempts") -> list[Attempt]:
    return [row for part in committed_parts(store, prefix) for row in from_table(read_part(store, part), Attempt)]
