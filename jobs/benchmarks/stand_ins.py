"""Stand-ins: a random student, and engines and a teacher that answer at once, or take a set time, about apple trees.

They look like what the stages ask for (`student.exam.Engines`, the teacher's pool, `rounds.services.Services`), and
everything between them is real.
"""

from __future__ import annotations

import asyncio
import logging
import os
import string
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tailor_ray.config import RunConfig
from tailor_ray.config.teacher import TeacherConfig
from tailor_ray.layout import ledger_folder
from tailor_ray.models import ModelRef
from tailor_ray.storage import Store
from tailor_ray.student.sampling import Completions
from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.client import TeacherRequest
from tailor_ray.teacher.dispatch import Settled
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import LedgerRow
from tailor_ray.teacher.teach import TeachJob
from tailor_ray.training.launch import Trainers

SPEED = 40.0  # samples a second of a stand-in engine of set speed
LOOK_S = 0.1  # between two looks at the driver's memory
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


def answer_of(number: int) -> int:
    return 12 * number - number % 7


def solution(number: int, off: int = 0) -> str:
    """Right, or wrong by `off`."""
    return f"{number} rows of 12 trees are {12 * number} trees, less {number % 7} that are {answer_of(number) + off}."


class InstantEngines:
    """Answers at once: four in five right, one in five wrong."""

    engines = 2
    max_num_seqs = 512

    def begin_stage(self, max_restarts: int, room: int = 0) -> None:
        """Nothing restarts here."""

    def enter_part(self, index: int) -> None:
        """The driver is never slower than these."""

    def leave_part(self, index: int) -> None:
        """Nobody waits for it."""

    def restarts(self) -> int:
        return 0

    def answered(self) -> int:
        return 0

    def release(self, gpus: int = 0) -> None:
        """They hold no memory."""

    def answer(self, ids: list[str], prompts: list[str], seeds: list[list[int]], _: object) -> Completions:
        texts = []
        for name, group in zip(ids, seeds, strict=True):
            number = int(name[1:])
            for sample in range(len(group)):
                off = int((number + sample) % 5 == 0)
                texts.append(f" {solution(number, off)}\nAnswer: {answer_of(number) + off}")
        n = len(texts)
        return Completions(texts, ["stop"] * n, [100] * n, [40] * n, [None] * n)


class Turnstile:
    """An actor that lets through as many at a time as there are engines."""

    def __init__(self, engines: int) -> None:
        self._free = asyncio.Semaphore(engines)

    async def work(self, seconds: float) -> None:
        async with self._free:
            await asyncio.sleep(seconds)


class PacedEngines(InstantEngines):
    """Engines that take a set time for each sample; a batch keeps one of them busy."""

    max_num_seqs = 128

    def __init__(self, engines: int) -> None:
        import ray

        turnstile: Any = ray.remote(Turnstile)
        self.engines = engines
        self._turnstile = turnstile.options(num_cpus=0, max_concurrency=10_000).remote(engines)

    def answer(self, ids: list[str], prompts: list[str], seeds: list[list[int]], _: object) -> Completions:
        import ray

        ray.get(self._turnstile.work.remote(sum(map(len, seeds)) / SPEED))
        return super().answer(ids, prompts, seeds, _)


class InstantTeacher:
    """A pool that answers each request at once, through the real ledger."""

    def __init__(self, ledger: Ledger, on_settled: Callable[[list[Settled]], None]) -> None:
        self._ledger, self._on_settled = ledger, on_settled

    def submit(self, requests: list[TeacherRequest]) -> None:
        settled = []
        for request in requests:
            number, now = int(request.question_id[1:]), time.time()
            text = f"<rationale>{solution(number)}</rationale>\n<answer>{answer_of(number)}</answer>"
            row = LedgerRow(
                request.key,
                "answered",
                request.model,
                request.question_id,
                request.round,
                request.body,
                reply=text,
                finish_reason="stop",
                input_tokens=200,
                output_tokens=40,
                attempts=1,
                sent=now,
                settled=now,
            )
            settled.append(Settled(request, row, from_ledger=False))
        self._ledger.stage(one.row for one in settled)
        self._ledger.commit()
        self._on_settled(settled)

    def hold(self) -> None:
        """It has no budget."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""

    def lasts(self, _: Spend) -> bool:
        return True


class Meter:
    """The driver's memory over a stage's progress; it looks like `observe.progress.Progress`."""

    def __init__(self) -> None:
        self._me = psutil.Process()
        self.growth: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Meter]:
        self._marks: list[tuple[int, int]] = []
        self.done, self._looked = 0, 0.0
        yield self
        self._mark()
        tenth = [memory for done, memory in self._marks if done <= self.done / 10] or [self._marks[0][1]]
        self.growth[name] = (max(memory for _, memory in self._marks) - max(tenth)) / 2**20

    def advance(self, n: int = 1) -> None:
        self.update(done=self.done + n)

    def found(self, n: int) -> None:
        self.advance(n)

    def update(self, *, done: int | None = None, total: int | None = None, note: str | None = None) -> None:
        self.done = self.done if done is None else done
        if time.monotonic() - self._looked > LOOK_S:
            self._mark()

    def _mark(self) -> None:
        self._looked = time.monotonic()
        self._marks.append((self.done, self._me.memory_info().rss))


class StandIns:
    """What the stages ask services for, without engines and teacher."""

    def __init__(self, config: RunConfig, run: Store) -> None:
        self.progress = Meter()
        self.engines = InstantEngines()
        self.trainers = Trainers()
        self.teacher: TeacherConfig = config.teacher
        self.ledger = Ledger(ledger_folder(run))

    def connect(self) -> None:
        """The benchmark's driver is connected."""

    def serve(self, _: ModelRef) -> InstantEngines:
        return self.engines

    def open_pool(self, job: TeachJob, ledger: Ledger, tell: Callable[[list[Settled]], None]) -> InstantTeacher:
        return InstantTeacher(ledger, tell)


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine's cores."""
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the rivals' processes have; on a shared machine it counts
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 1),
        object_store_memory=500_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()
