"""Training speed: ours, the naive reference procedure and the floor, side by side on the same examples.

    python jobs/benchmarks/training.py [--data FOLDER] [--repeats 7] [--micro-batch 2] [--gpu | --tiny] [--student 0.5b]

Per micro-batch, forward and backward of both terms are timed, the optimizer left out, for it is the same for all:
  naive   the reference: a padded MLE pass over prompt and rationale; the prompt without gradient into a key/value
          cache; three passes on that cache; what it computes is 4P + 12R in forward-token units
  ours    the tree: prompt once for the three rationales; few-shot also with the demos once a batch
  floor   one forward and backward of P + 3R tokens in plain causal rows without padding: 3P + 9R
On a GPU (--gpu), where there is the kernel for it, also
  packed  every sequence by itself in rows without padding, as packed FlashAttention trainers compute it
and the share of an H100's peak that ours makes; --tiny runs the same on a CPU with the smallest student, to be tried.
The variants take turns within each repeat, so that a busy machine slows all alike; ratios are medians over repeats.
`ours, demos once` is what training does: a pass holds as many of a batch's examples as training.micro_batch_tokens
allows, here --wide (several are compared), and computes their common demos once.
Then the demo's student is trained by Ray Train in rounds (--rounds; 0 leaves it out), for what does not show in a
micro-batch: the time from giving the job to its first step, when the workers are started and when they are kept, and
the share of the time that is spent between steps, on figures, progress and asking whether to stop.
Examples are GSM8K's (FOLDER/gsm8k/train.jsonl, or $TAILOR_RAY_DATA) with the rationales of other questions standing
in for positives and negatives; without that folder, random words of like lengths.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from training_rivals import SETTINGS, TRIPLET_MARGIN, TRIPLET_WEIGHT, floor, naive, packed  # beside this script

from tailor_ray.training.forward import StudentLoss
from tailor_ray.training.packing import pack_tree, target_count
from tailor_ray.training.tokens import TokenExample
from tailor_ray.training.tree import Tree, TreeAttention

SIZES = {  # hidden, intermediate, layers, heads, key/value heads, vocabulary
    "tiny": (64, 128, 2, 4, 2, 2048),
    "3m": (256, 512, 4, 8, 8, 2048),
    "0.5b": (896, 4864, 24, 14, 2, 151936),
    "1.5b": (1536, 8960, 28, 12, 2, 151936),
    "8b": (4096, 12288, 36, 32, 8, 151936),
}
H100_BF16_FLOPS = 989e12


def texts(folder: str | None) -> tuple[list[str], list[str]]:
    """Questions and rationales."""
    path = Path(folder or "") / "gsm8k" / "train.jsonl"
    if folder and path.exists():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row["question"] for row in rows], [row["rationale"] for row in rows]
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(2, 8))) for _ in range(1500)]

    def some() -> list[str]:
        return [" ".join(rng.choice(words) for _ in range(rng.randrange(60, 160))) for _ in range(2000)]

    return some(), some()


def make_examples(folder: str | None, count: int) -> tuple[list[TokenExample], list[TokenExample]]:
    """Few-shot (P ≈ 512) and zero-shot (P ≈ 128) examples with R ≈ 128, over a vocabulary of 2,048."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    questions, rationales = texts(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        questions[:2000] + rationales[:2000], trainers.BpeTrainer(vocab_size=2048, show_progress=False)
    )

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text).ids)

    prompts = [ids(f"Question: {text}\nReasoning:") for text in questions]
    answers = [ids(f" {text}\nAnswer: 1") for text in rationales]
    fitting = [i for i in range(len(prompts)) if 80 <= len(prompts[i]) <= 176 and 80 <= len(answers[i]) <= 176]
    demos: tuple[int, ...] = ()
    while len(demos) < 380:
        index = fitting.pop()
        demos += prompts[index] + answers[index]
    demos = demos[:400]
    rng = random.Random(0)
    chosen = [rng.choice(fitting) for _ in range(3 * count)]
    zero = [
        TokenExample(f"q{n}", prompts[a], answers[a], answers[b], answers[c])
        for n, (a, b, c) in enumerate(zip(chosen[::3], chosen[1::3], chosen[2::3], strict=True))
    ]
    few = [TokenExample(e.question_id, demos + e.prompt, e.rationale, e.positive, e.negative) for e in zero]
    return few, zero


def make_model(size: str, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    hidden, inner, layers, heads, kv_heads, vocabulary = SIZES[size]
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
    }
    kind, config = (LlamaForCausalLM, LlamaConfig) if size == "3m" else (Qwen2ForCausalLM, Qwen2Config)
    with torch.device(device):
        model: Any = kind(config(**shape))
    return model.to(dtype=dtype).train()


def ours(loss: StudentLoss, batch: Sequence[TokenExample], share_root: bool) -> float:
    student = loss.student
    targets = sum(target_count(e) for e in batch)
    pack = pack_tree(batch, SETTINGS, share_root).to(student.device, student.dtype)
    sums = loss(pack)
    total = sums.mle / targets + TRIPLET_WEIGHT * sums.reflection / len(batch)
    total.backward()
    return float(total.detach())


def masked(loss: StudentLoss, batch: Sequence[TokenExample]) -> float:
    """Ours by the kernel of other devices: masks over copied keys."""
    with mock.patch.object(Tree, "attend", Tree.attend_masked):
        return ours(loss, batch, share_root=False)


def measure(variants: dict[str, Callable[[], float]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each repeat; the variants take turns, after a warm-up of each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, work in variants.items():
            begun = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


class Activations:
    """What a forward pass keeps for its backward pass: bytes of distinct storages, at the most crowded moment."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._held: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda held: held.tensor)

    def __enter__(self) -> Activations:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _keep(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        self._held[place] = self._held.get(place, 0) + 1
        if self._held[place] == 1:
            self.now += size
            self.most = max(self.most, self.now)

        def release() -> None:
            self._held[place] -= 1
            if self._held[place] == 0:
                self.now -= size

        held = _Held(tensor)
        weakref.finalize(held, release)
        return held


class _Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def compare(
    model: Any, plain: Any, examples: list[TokenExample], args: argparse.Namespace, label: str
) -> dict[str, Any]:
    """Time all variants over the examples in micro-batches; print a row each."""
    attention = TreeAttention()
    attention.install(model)
    loss = StudentLoss(model, attention, TRIPLET_MARGIN)
    size = args.micro_batch
    batches = _parts(examples, size)
    values: dict[str, float] = {}
    peaks: dict[str, float] = {}

    def over(work: Callable[[Any], float], parts: list[list[TokenExample]], name: str) -> Callable[[], float]:
        def run() -> float:
            for net in (model, plain):
                net.zero_grad(set_to_none=True)
            values[name] = statistics.mean(work(part) for part in parts)
            return values[name]

        with Activations() as kept:
            work(parts[0])
        peaks[name] = kept.most / 2**20

        return run

    variants = {
        "naive": over(lambda part: naive(plain, part), batches, "naive"),
        "ours": over(lambda part: ours(loss, part, share_root=False), batches, "ours"),
        "ours, demos once": over(lambda part: ours(loss, part, share_root=True), batches, "ours, demos once"),
        "floor": over(lambda part: floor(plain, part), batches, "floor"),
    }
    if args.gpu or args.tiny:
        variants["packed"] = over(lambda part: packed(loss, part), batches, "packed")
        wide = _parts(examples, args.wide[0])
        variants["packed, wide"] = over(lambda part: packed(loss, part), wide, "packed, wide")
    wider = {number: f"ours, demos once, {number} a pass" for number in args.wide}
    for number, name in wider.items():
        variants[name] = over(lambda part: ours(loss, part, share_root=True), _parts(examples, number), name)
    if model.device.type == "cpu":
        name = "ours, masks instead of blocks"
        variants[name] = over(lambda part: masked(loss, part), batches, name)
    seconds = measure(variants, args.repeats, model.device)
    prompt, rationale = (statistics.mean(len(getattr(e, name)) for e in examples) for name in ("prompt", "rationale"))
    print(f"\n{label}: P = {prompt:.0f}, R = {rationale:.0f}, micro-batch {size}, {len(examples)} examples")
    print(f"{'variant':34} {'examples/s':>11} {'spread':>15} {'vs naive':>9} {'vs floor':>9} {'kept MiB':>9}")
    for name, times in seconds.items():
        rates = sorted(len(examples) / t for t in times)
        print(
            f"{name:34} {statistics.median(rates):11.2f} {rates[0]:7.2f}–{rates[-1]:<7.2f} "
            f"{ratio(seconds['naive'], times):9.2f} {ratio(seconds['floor'], times):9.2f} {peaks[name]:9.1f}"
        )
    against = {}
    if "packed" in seconds:
        best = min((times for name, times in seconds.items() if "ours" in name), key=statistics.median)
        rival = min((seconds[name] for name in ("packed", "packed, wide")), key=statistics.median)
        against = {"ratio_to_packed": ratio(rival, best)}
    return against | {
        "examples_per_s": len(examples) / min(statistics.median(t) for name, t in seconds.items() if "ours" in name),
        "ratio_to_naive": ratio(seconds["naive"], seconds["ours"]),
        "ratio_to_floor": ratio(seconds["floor"], seconds["ours"]),
        "ratio_to_naive_shared_demos_batch": ratio(seconds["naive"], seconds[wider[args.wide[0]]]),
        "ratio_to_naive_shared_demos": ratio(seconds["naive"], seconds["ours, demos once"]),
        "max_loss_difference": max(abs(values["naive"] - values[name]) for name in ("ours", "ours, demos once")),
        "padding_share": max(_padding(part) for number in (size, *args.wide) for part in _parts(examples, number)),
    }


def in_rounds(rounds: int) -> dict[str, float]:
    """Train the demo's student for some rounds of 100 steps, by the workers of the first."""
    from transformers import AutoTokenizer

    from tailor_ray.config.rounds import ClusterConfig
    from tailor_ray.config.student import TinyConfig
    from tailor_ray.config.training import TrainingConfig
    from tailor_ray.layout import EXAMPLES
    from tailor_ray.models import identify
    from tailor_ray.prompts.student import StudentPrompt
    from tailor_ray.records import AnswerKind, TrainExample
    from tailor_ray.rounds.cluster import connected
    from tailor_ray.storage import Manifest, PartsDigest, Store, commit_manifest
    from tailor_ray.student.tiny import make_tiny_student
    from tailor_ray.tasks.arithmetic import sample_questions
    from tailor_ray.training.example_parts import commit_examples
    from tailor_ray.training.launch import Trainers, TrainJob

    config = TrainingConfig(steps=100, batch_size=32, checkpoint_every_steps=1000, workers=2, threads=1)
    prompt = StudentPrompt("plain", AnswerKind.NUMBER)
    with tempfile.TemporaryDirectory(prefix="tailor-bench-") as scratch, connected(ClusterConfig(dashboard=False)):
        make_tiny_student(TinyConfig(school_steps=1), prompt, 0, Path(scratch, "student"))
        student = identify(f"{scratch}/student")
        said = [(q, prompt.completion(q.rationale or "", q.answer)) for q in sample_questions(1000, seed=0)]
        examples = [
            TrainExample(q.id, prompt.render(q), right, right, said[n - 1][1]) for n, (q, right) in enumerate(said)
        ]
        parts = Store.open(f"{scratch}/examples")
        made = [commit_examples(parts, 0, examples, AutoTokenizer.from_pretrained(student.uri), 1024, config)]
        commit_manifest(parts, Manifest("examples", 1, "", {}, {EXAMPLES: PartsDigest.of(made)}, 0.0))
        with Trainers() as trainers:
            metrics = [
                trainers.train(
                    TrainJob(config, student, parts, Store.open(f"{scratch}/{number}"), 0, number + 1)
                ).metrics
                for number in range(rounds)
            ]
    first, *later = [one["seconds_to_first_step"] for one in metrics]
    between = [one["seconds_between_steps"] / one["seconds_in_steps"] for one in metrics]
    figures = {"seconds_to_first_step": first, "share_between_steps": statistics.median(between)}
    if later:
        figures["seconds_to_first_step_later"] = statistics.median(later)
    print(f"\n{rounds} rounds of {config.steps} steps of {config.batch_size}, 2 workers, the demo's student")
    for name, value in figures.items():
        print(f"{name:34} {value:11.4f}")
    return figures


def share_of_peak(model: Any, examples: list[TokenExample], rate: float) -> float:
    """6 operations a weight and token, the layers' over all tokens, the output layer's over targets alone."""
    head = model.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for p in model.parameters()) - head
    tokens, targets = (sum(map(count, examples)) / len(examples) for count in (lambda e: e.tokens, target_count))
    return 6 * (layers * tokens + head * targets) * rate / H100_BF16_FLOPS


def _parts(examples: list[TokenExample], size: int) -> list[list[TokenExample]]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def _padding(part: list[TokenExample]) -> float:
    pack = pack_tree(part, SETTINGS)
    return pack.padding / (pack.tokens + pack.padding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("TAILOR_RAY_DATA"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--wide", type=int, nargs="+", default=[8], help="examples a pass; the first is the summary's")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--student", choices=sorted(SIZES), default="3m")
    parser.add_argument("--gpu", action="store_true", help="in bfloat16 on the first GPU")
    parser.add_argument("--tiny", action="store_true", help="what --gpu does, on a CPU with the tiny student")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, for the large students")
    args = parser.parse_args()
    if args.tiny:
        args.student, args.rounds, args.repeats = "tiny", 0, 1
    if args.threads:
        torch.set_num_threads(args.threads)
    device, dtype = torch.device("cuda" if args.gpu else "cpu"), torch.bfloat16 if args.gpu else torch.float32
    few, zero = make_examples(args.data, args.examples)
    results = {}
    for label, examples in (("few-shot", few), ("zero-shot", zero)):
        model, plain = (make_model(args.student, device, dtype) for _ in range(2))
        if args.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # the naive procedure needs its cache
        results[label] = compare(model, plain, examples, args, label)
        if args.gpu or args.tiny:
            results[label]["share_of_peak"] = share_of_peak(plain, examples, results[label]["examples_per_s"])
            print(f"share of an H100's bfloat16 peak: {results[label]['share_of_peak']:.1%}")
        del model, plain
        gc.collect()
    keys = ("ratio_to_naive", "ratio_to_floor")
    summary = {key: min(result[key] for result in results.values()) for key in keys}
    demos = ("ratio_to_naive_shared_demos", "ratio_to_naive_shared_demos_batch")
    summary |= {key: results["few-shot"][key] for key in demos}
    summary |= {key: max(r[key] for r in results.values()) for key in ("padding_share", "max_loss_difference")}
    more = ("ratio_to_packed", "share_of_peak")
    summary |= {key: min(r[key] for r in results.values()) for key in more if key in results["few-shot"]}
    if args.rounds:
        summary |= in_rounds(args.rounds)
    print(json.dumps({key: float(f"{value:.4g}") for key, value in summary.items()}))


if __name__ == "__main__":
    main()
