"""What training is on one GPU: exact in half precision, faster than packed rows, and what a step costs besides.

    python jobs/benchmarks/training.py --gpu [--only exact speed …] [--student 1.5b …] [--seconds 520] [--out FOLDER]

It needs torch, transformers and pyarrow; neither ray, vllm, deepspeed nor pydantic. Sections, in this order:
  env        what it runs on
  exact      families of models against float64 on the CPU: float32 is exact, bfloat16 no further than separate rows
  speed      1.5 B, 0.5 B and 8 B in bfloat16, random weights, the 8 B with gradient checkpointing; forward and backward
             of passes that are laid out already, by turns:
               naive     the reference's procedure
               floor     P + 3R tokens in plain rows
               packed    every sequence by itself in rows without padding, as packed FlashAttention trainers compute it
               separate  every sequence by itself in padded rows, by torch's own attention
               masks     the tree by masks over copied keys
               ours      the tree; by torch's FlashAttention kernels on a GPU
  trial      what it takes to try a student's layouts on the device
  head       the output layer and its loss by slice size; the product's choice is marked
  optimizer  AdamW in float32 on the device
  compile    training.compile, beside eager
  offload    AdamW on the CPU, fused and not, by threads
  disk       writing and hashing, and what an 8 B checkpoint would take of one writer
Each finding is a line of JSON, printed and appended to FOLDER/training.jsonl; the last line sums up. --tiny runs all of
it on a CPU with the smallest student.
"""

from __future__ import annotations

import argparse
import copy
import gc
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from training_rivals import SETTINGS, TRIPLET_MARGIN, floor, learn, make_model, measure, naive, pack_packed

from tailor_ray.training.exactness import switch_noise_off, try_layouts
from tailor_ray.training.forward import StudentLoss, decoder_of, logits_at_once
from tailor_ray.training.packing import Pack, pack_separate, pack_tree, target_count
from tailor_ray.training.tokens import TokenExample
from tailor_ray.training.tree import Tree, TreeAttention

PEAK = 989e12  # bfloat16 operations a second of an H100 and an H200, dense
SHAPES = {  # tokens of prompt and of each rationale, of the prompt's demos, examples per pass
    "few-shot": (506, 118, 400, 16),
    "zero-shot": (130, 118, 0, 16),
    "zero-shot, full pass": (130, 118, 0, 48),
    "long rationales": (130, 400, 0, 10),
}


class Bench:
    """Where it runs, and what was found."""

    def __init__(self, args: argparse.Namespace) -> None:
        if not args.tiny and not torch.cuda.is_available():
            sys.exit("torch sees no GPU here: --tiny runs all of it on a CPU")
        self.tiny, self.seconds = args.tiny, args.seconds
        self.device = torch.device("cpu" if args.tiny else "cuda")
        self.students = ["tiny"] if args.tiny else args.student or ["1.5b", "0.5b", "8b"]
        self.repeats = 1 if args.tiny else 5
        self.begun = time.monotonic()
        self.summary: dict[str, Any] = {}
        self.file = Path(args.out, "training.jsonl") if args.out else None
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)

    def say(self, section: str, **found: Any) -> None:
        line = json.dumps({"section": section, **found, "at_s": round(time.monotonic() - self.begun, 1)})
        print(line, flush=True)
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def worst(self, name: str, value: float, best: Callable[..., float] = min) -> None:
        self.summary[name] = best(value, self.summary.get(name, value))

    def seconds_of(self, work: Callable[[], Any], repeats: int | None = None) -> float:
        """The median, after a warm-up."""
        return statistics.median(measure({"": work}, repeats or self.repeats, self.device)[""])

    def model(self, size: str) -> Any:
        return make_model("tiny" if self.tiny else size, self.device, torch.bfloat16)

    def peak_gib(self) -> float:
        return round(torch.cuda.max_memory_allocated() / 2**30, 1) if self.device.type == "cuda" else 0.0

    def clean(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def examples(shape: tuple[int, int, int, int], vocabulary: int, scale: int = 1) -> list[TokenExample]:
    """Random ids, lengths within 30 % of the shape's."""
    prompt, rationale, demos, count = (value // scale for value in shape)
    rng = random.Random(0)

    def some(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, vocabulary) for _ in range(max(2, int(length * rng.uniform(0.7, 1.3)))))

    start = tuple(rng.randrange(2, vocabulary) for _ in range(demos))
    return [
        TokenExample(f"q{n}", start + some(prompt - demos), some(rationale), some(rationale), some(rationale))
        for n in range(max(2, count))
    ]


def env(bench: Bench) -> None:
    import transformers

    on_gpu = bench.device.type == "cuda"
    bench.say(
        "env", torch=torch.__version__, transformers=transformers.__version__, cores=os.cpu_count(),
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        memory_gib=round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if on_gpu else 0,
    )  # fmt: skip


def exact(bench: Bench) -> None:
    """Families of the tests, with weights so large that attention matters."""
    from families import FAMILIES, TREE, family_model  # beside this script
    from naive import naive_loss

    torch.backends.cuda.matmul.allow_tf32 = False
    batch = examples((60, 40, 30, 4), 90)
    batch[0] = replace(batch[0], rationale=batch[0].rationale[:1])
    kinds = {name: one for name, one in FAMILIES.items() if one[2] == TREE}
    for name in list(kinds)[:3] if bench.tiny else kinds:
        model = family_model(kinds[name][0], **kinds[name][1])
        reference = copy.deepcopy(model).double().eval()
        reference.config._experts_implementation = "eager"
        expected = naive_loss(reference, batch)
        expected.backward()
        truth = [p.grad for p in reference.parameters()]
        switch_noise_off(model)
        found: dict[str, Any] = {}
        for layout, dtype in (("tree", torch.float32), ("tree", torch.bfloat16), ("separate", torch.bfloat16)):
            key = f"{layout} {str(dtype)[6:]}"
            try:
                found[key] = _errors(copy.deepcopy(model).to(bench.device, dtype), layout, batch, expected, truth)
            except (RuntimeError, NotImplementedError, TypeError) as error:
                found[key] = f"{type(error).__name__}: {str(error)[:120]}"
        full, half, rival = found.values()
        is_exact = isinstance(full, tuple) and full[0] < 1e-4 and full[1] < 2e-3
        as_good = isinstance(half, tuple) and isinstance(rival, tuple) and half[1] <= 1.5 * rival[1] + 1e-3
        bench.say(
            "exact", family=name, float32="exact" if is_exact else "WRONG",
            bfloat16="as separate" if as_good else "WORSE", errors_of_loss_and_gradient=found,
        )  # fmt: skip
        bench.worst("exact_in_float32", is_exact)
        bench.worst("as_separate_in_bfloat16", as_good)


def _errors(
    model: Any, layout: str, batch: list[TokenExample], expected: torch.Tensor, truth: list[torch.Tensor | None]
) -> tuple[float, float]:
    """Of the loss, and of the worst gradient relative to its own length, or to a hundredth of the largest."""
    attention = TreeAttention() if layout == "tree" else None
    if attention is not None:
        attention.install(model)
    pack = pack_tree(batch, SETTINGS) if attention is not None else pack_separate(batch, SETTINGS, pad=0)
    loss = learn(StudentLoss(model.train(), attention, TRIPLET_MARGIN), batch, pack)
    least = 1e-2 * max(float(one.norm()) for one in truth if one is not None)
    apart = [
        ((0.0 if p.grad is None else p.grad.double().cpu()) - theirs).norm().item() / max(theirs.norm().item(), least)
        for p, theirs in zip(model.parameters(), truth, strict=True)
        if theirs is not None
    ]
    return float(f"{abs(loss - expected.item()):.1e}"), float(f"{max(apart):.1e}")


def speed(bench: Bench) -> None:
    for size in bench.students:
        model = bench.model(size)
        if size == "8b":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for label, shape in SHAPES.items():
            _compare(bench, model, size, label, shape)
        if size == "1.5b" and not bench.tiny:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            _compare(bench, model, f"{size}, checkpointing", "few-shot", SHAPES["few-shot"])
        del model
        bench.clean()


def _compare(bench: Bench, model: Any, size: str, label: str, shape: tuple[int, int, int, int]) -> None:
    """One pass by every way that fits; what does not is said, and left out."""
    vocabulary = model.config.vocab_size
    batch = examples(shape, min(vocabulary, 5000), scale=8 if bench.tiny else 1)
    # shares the weights, and keeps the model's own attention
    plain = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    attention = TreeAttention()
    with attention.installed(model):
        ways = _ways(model, attention, plain, batch, with_cache="checkpointing" not in size and size != "8b")
        losses, peaks = {}, {}
        for name, (work, _) in list(ways.items()):
            bench.clean()
            model.zero_grad(set_to_none=True)
            try:
                losses[name], peaks[name] = work(), bench.peak_gib()
            except (RuntimeError, NotImplementedError, TypeError) as error:
                del ways[name]
                said = f"{type(error).__name__}: {str(error)[:200]}"
                bench.say("speed", student=size, shape=label, way=name, error=said)
        bench.clean()
        took = measure({name: work for name, (work, _) in ways.items()}, bench.repeats, bench.device)

    def ratio(rival: str, name: str) -> float:
        return statistics.median(a / b for a, b in zip(took[rival], took[name], strict=True))

    def share(name: str) -> float:
        return _operations(model, ways[name][1], batch) / statistics.median(took[name]) / PEAK

    for name, seconds in took.items():
        at, tokens = statistics.median(seconds), ways[name][1]
        bench.say(
            "speed", student=size, shape=label, way=name, ms=round(at * 1e3, 1), examples=len(batch),
            spread_ms=[round(min(seconds) * 1e3, 1), round(max(seconds) * 1e3, 1)], row_tokens=tokens,
            tokens_per_s=round(tokens / at), share_of_peak=round(share(name), 3),
            times_packed=round(ratio("packed", name), 2) if "packed" in took else None,
            peak_gib=peaks[name], loss=round(losses[name], 4),
        )  # fmt: skip
    if "ours" not in took:
        return
    kind = "few_shot" if label == "few-shot" else "zero_shot"
    for rival in ("packed", "naive", "floor"):
        if rival in took:
            bench.worst(f"ratio_to_{rival}_{kind}", ratio(rival, "ours"))
    bench.worst("share_of_peak", share("ours"), max)
    if "packed" in took:
        bench.worst("max_loss_difference", abs(losses["packed"] - losses["ours"]), max)


def _ways(
    model: Any, attention: TreeAttention, plain: Any, batch: list[TokenExample], with_cache: bool
) -> dict[str, tuple[Callable[[], float], int]]:
    """What each way does with the batch, and how many tokens it computes."""
    tree, rows = StudentLoss(model, attention, TRIPLET_MARGIN), StudentLoss(plain, None, TRIPLET_MARGIN)
    packs: dict[str, tuple[StudentLoss, Pack]] = {
        "packed": (tree, pack_packed(batch)),
        "separate": (rows, pack_separate(batch, SETTINGS, pad=0)),
        "ours": (tree, pack_tree(batch, SETTINGS)),
    }
    packs = {name: (loss, pack.to(model.device)) for name, (loss, pack) in packs.items()}

    def over(loss: StudentLoss, pack: Pack) -> Callable[[], float]:
        return lambda: learn(loss, batch, pack)

    def by_masks() -> float:
        with (
            mock.patch("tailor_ray.training.tree.takes", return_value=False),
            mock.patch.object(Tree, "attend", Tree.attend_masked),
        ):
            return learn(tree, batch, packs["ours"][1])

    ways = {name: (over(loss, pack), pack.tokens) for name, (loss, pack) in packs.items()}
    ways["masks"] = by_masks, packs["ours"][1].tokens
    ways["floor"] = lambda: floor(plain, batch), sum(example.tokens for example in batch)
    if with_cache:  # which gradient checkpointing does without
        tokens = sum(4 * len(e.prompt) + 2 * len(e.rationale) + len(e.positive) + len(e.negative) for e in batch)
        ways["naive"] = lambda: naive(plain, batch), tokens
    return ways


def _operations(model: Any, tokens: int, batch: list[TokenExample]) -> float:
    """6 a weight and token, the layers' over all tokens, the output layer's over targets alone; attention left out."""
    head, table = (one.weight for one in (model.get_output_embeddings(), model.get_input_embeddings()))
    layers = sum(p.numel() for p in model.parameters()) - head.numel() - (0 if head is table else table.numel())
    return 6.0 * (layers * tokens + head.numel() * sum(map(target_count, batch)))


def trial(bench: Bench) -> None:
    model = bench.model("1.5b")
    begun = time.perf_counter()
    said = try_layouts(model, 4096, tree=True)
    seconds = round(time.perf_counter() - begun, 2)
    bench.say("trial", seconds=seconds, found=said or "the tree", peak_gib=bench.peak_gib())


def head(bench: Bench) -> None:
    model = bench.model("1.5b")
    vocabulary, size, count = model.config.vocab_size, model.config.hidden_size, 64 if bench.tiny else 8192
    hidden = torch.randn(count, size, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    chosen = logits_at_once(bench.device)
    pack = Pack(
        *(torch.zeros(0),) * 2, None, None, torch.arange(count, device=bench.device),
        torch.randint(0, vocabulary, (count,), device=bench.device), torch.ones(count, device=bench.device),
        *(torch.zeros(0),) * 4, pairs=0, tokens=0, padding=0,
    )  # fmt: skip
    loss = StudentLoss(model, None, TRIPLET_MARGIN)

    def work() -> None:
        model.zero_grad(set_to_none=True)
        hidden.grad = None
        loss._mle(hidden, pack).backward()

    for logits in sorted({*(1 << bits for bits in range(12 if bench.tiny else 25, 15 if bench.tiny else 31)), chosen}):
        bench.clean()
        with mock.patch("tailor_ray.training.forward.logits_at_once", return_value=logits):
            seconds = bench.seconds_of(work)
        bench.say(
            "head", logits=logits, chosen=logits == chosen, slices=-(-count // max(1, logits // vocabulary)),
            ms=round(seconds * 1e3, 1), share_of_peak=round(6 * count * vocabulary * size / seconds / PEAK, 3),
            peak_gib=bench.peak_gib(),
        )  # fmt: skip


def optimizer(bench: Bench) -> None:
    count = 10**6 if bench.tiny else 1_543_714_304
    step = _adamw(count, bench.device, fused=True)
    bench.say("optimizer", parameters=count, ms=round(bench.seconds_of(step, 3) * 1e3, 1), peak_gib=bench.peak_gib())


def offload(bench: Bench) -> None:
    count = 10**6 if bench.tiny else 10**8
    before = torch.get_num_threads()
    for threads in (1, os.cpu_count() or 1):
        for fused in (False, True):
            torch.set_num_threads(threads)
            seconds = bench.seconds_of(_adamw(count, torch.device("cpu"), fused), 1) * 1e9 / count
            bench.say("offload", threads=threads, fused=fused, seconds_per_billion=round(seconds, 2))
    torch.set_num_threads(before)


def _adamw(count: int, device: torch.device, fused: bool) -> Callable[[], Any]:
    p = torch.nn.Parameter(torch.zeros(count, device=device))
    p.grad = torch.full_like(p, 1e-3)
    return torch.optim.AdamW([p], lr=1e-5, fused=fused).step


def compiled(bench: Bench) -> None:
    model = bench.model("1.5b")
    batch = examples(SHAPES["zero-shot"], 1000, scale=8 if bench.tiny else 1)
    attention = TreeAttention()
    attention.install(model)
    loss = StudentLoss(model, attention, TRIPLET_MARGIN)
    pack = pack_tree(batch, SETTINGS).to(bench.device)
    eager = bench.seconds_of(lambda: learn(loss, batch, pack), 3)
    begun = time.perf_counter()
    decoder_of(model).compile(dynamic=True)
    seconds = bench.seconds_of(lambda: learn(loss, batch, pack), 3)
    took = time.perf_counter() - begun - 3 * seconds
    bench.say("compile", eager_ms=round(eager * 1e3, 1), ms=round(seconds * 1e3, 1), compiling_s=round(took, 1))


def disk(bench: Bench) -> None:
    size = 1 << (24 if bench.tiny else 32)
    with tempfile.TemporaryDirectory() as folder:
        tensor, path = torch.rand(size // 4), Path(folder, "tensor.pt")
        begun = time.perf_counter()
        torch.save(tensor, path)
        os.sync()
        write = time.perf_counter() - begun
        begun = time.perf_counter()
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
        read = time.perf_counter() - begun
    bench.say(
        "disk", write_gb_per_s=round(size / write / 1e9, 2), sha256_gb_per_s=round(size / read / 1e9, 2),
        seconds_of_8b_by_one_writer=round(8e9 * 12 * (write + read) / size),
    )  # fmt: skip


SECTIONS = {
    "env": env, "exact": exact, "speed": speed, "trial": trial, "head": head, "optimizer": optimizer,
    "compile": compiled, "offload": offload, "disk": disk,
}  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """All sections, or those of `--only`; one that fails is said, and the next is gone on with."""
    bench = Bench(args)
    for name in args.only or SECTIONS:
        if time.monotonic() - bench.begun > bench.seconds:
            bench.say(name, skipped="no time left")
            continue
        try:
            SECTIONS[name](bench)
        except Exception as error:  # noqa: BLE001 — what comes after it is still to be measured
            bench.say(name, error=f"{type(error).__name__}: {str(error)[:300]}")
            bench.summary.setdefault("failed", []).append(name)
        bench.clean()
    shown = {
        name: float(f"{found:.4g}") if isinstance(found, float) else found for name, found in bench.summary.items()
    }
    print(json.dumps(shown))
