"""The tiny student, for machines without weights: a small Llama made from scratch and schooled on simpler problems.

In: its sizes and a seed. Out: a model folder in Hugging Face form (safetensors, tokenizer, generation config), which
transformers and vLLM load without remote code.

Always holds. Any text tokenizes and comes back unchanged, for bytes are the last resort. Digits are tokens of their
own. On one machine the same seed, settings and thread count give the same weights, for schooling runs a number of steps
and not a time.

Axes: B problems of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tailor_ray.config.student import TinyConfig
from tailor_ray.demo import arithmetic
from tailor_ray.prompts.student import StudentPrompt

Progress = Callable[[int, int, float], None]  # steps done, steps in all, loss of the last
SchoolRow = tuple[list[int], list[int]]  # token ids of prompt and completion, the latter with its end of sequence

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CONTEXT = 2048  # tokens; a few-shot prompt fits
WARMUP_STEPS = 20
POOL = 8  # batches that are sorted by length together
THREADS = 1  # fixed: the order of float additions depends on it; more than one and a busy machine starves them all
# A digit is a token of its own, with its leading space if it has one: " 27" is " 2", "7".
_PIECES = Regex(r"\n| ?[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+")


def make_tiny_student(
    config: TinyConfig, prompt: StudentPrompt, seed: int, folder: Path, progress: Progress | None = None
) -> dict[str, float]:
    """Make the student, school it and write it to `folder`.

    `prompt` is the form in which it will be asked. `progress` is called after each step. Returns the number of
    parameters, of steps, the first and the last loss, and the seconds taken.
    """
    started = time.monotonic()
    school = arithmetic.school_questions(config.school_questions, seed)
    prompt = replace(prompt, demos=())  # one problem a row: schooling on demos over and over would teach nothing
    texts = [(prompt.render(q), prompt.completion(q.rationale or "", q.answer)) for q in school]
    # The words of the task are in the vocabulary, though schooling does not teach what they mean.
    words = (f"{q.text}\n{q.rationale}" for q in arithmetic.sample_questions(1000, seed))
    tokenizer = make_tokenizer([*("".join(text) for text in texts), *words], config.vocabulary)
    before = tokenizer([text for text, _ in texts])["input_ids"]
    after = tokenizer([text for _, text in texts])["input_ids"]
    lessons = [(ids, [*then, tokenizer.eos_token_id]) for ids, then in zip(before, after, strict=True)]
    model = make_model(config, tokenizer, seed)
    losses = teach_school(model, lessons, config, seed, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": model.num_parameters(),
        "steps": len(losses),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "seconds": time.monotonic() - started,
    }


def make_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer made from `texts`.

    It has at most `vocabulary` tokens, and adds no token by itself.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(text, special=True) for text in (PAD, BOS, EOS)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(config: TinyConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The student before schooling: random float32 weights drawn from `seed`."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=3 * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=CONTEXT,
            initializer_range=config.hidden_size**-0.5 / 2,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # Sampling stops by this file wherever the student is loaded later.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def teach_school(
    model: LlamaForCausalLM, lessons: Sequence[SchoolRow], config: TinyConfig, seed: int, progress: Progress | None
) -> list[float]:
    """Train `model` in place on the school's lessons, for `config.school_steps` steps.

    `progress` is called after each step. Returns each step's loss, the mean over a batch's completion tokens.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    batches = _batches(lessons, config.school_batch, Random(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.school_learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(  # a linear warm-up, then a cosine to zero
        optimizer,
        lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / config.school_steps)),
    )
    model.train()
    losses: list[float] = []
    for step, batch in enumerate(islice(batches, config.school_steps)):
        loss = _batch_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, config.school_steps, losses[-1])
    torch.set_num_threads(threads)
    return losses


def _batches(lessons: Sequence[SchoolRow], size: int, rng: Random) -> Iterator[list[SchoolRow]]:
    """Batches without end, each lesson once a pass; lessons of like length go together, for padding costs as much."""
    while True:
        order = rng.sample(lessons, len(lessons))
        batches: list[list[SchoolRow]] = []
        for start in range(0, len(order), POOL * size):
            pool = sorted(order[start : start + POOL * size], key=lambda lesson: len(lesson[0]) + len(lesson[1]))
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        rng.shuffle(batches)
        yield from batches


def _batch_loss(model: LlamaForCausalLM, batch: Sequence[SchoolRow]) -> torch.Tensor:
    """Mean cross-entropy of the completions' tokens; padding is on the right.

    Prompts are not learnt: their names and numbers are chance, which nobody can predict.
    """
    longest = max(len(before) + len(after) for before, after in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    asked_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, (before, after) in enumerate(batch):
        ids_BT[row, : len(before) + len(after)] = torch.tensor(before + after)
        asked_BT[row, len(before) : len(before) + len(after)] = True
    logits_BTV = model(ids_BT).logits  # causal attention: what stands before the padding never sees it
    return cross_entropy(logits_BTV[:, :-1][asked_BT[:, 1:]], ids_BT[:, 1:][asked_BT[:, 1:]])
