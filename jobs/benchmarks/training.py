"""Training speed: ours, the naive reference procedure and the floor, side by side on the same examples.

    python jobs/benchmarks/training.py [--data FOLDER] [--repeats 7] [--micro-batch 2]
    python jobs/benchmarks/training.py --gpu [--only exact speed …] [--student 1.5b …] [--seconds 520] [--out FOLDER]

Per micro-batch, forward and backward of both terms are timed, the optimizer left out, for it is the same for all:
  naive   the reference: a padded MLE pass over prompt and rationale; the prompt without gradient into a key/value
          cache; three passes on that cache; what it computes is 4P + 12R in forward-token units
  ours    the tree: prompt once for the three rationales; few-shot also with the demos once a batch
  floor   one forward and backward of P + 3R tokens in plain causal rows without padding: 3P + 9R
The variants take turns within each repeat, so that a busy machine slows all alike; ratios are medians over repeats.
`ours, demos once` is what training does: a pass holds as many of a batch's examples as training.micro_batch_tokens
allows, here --wide (several are compared), and computes their common demos once.
Then the demo's student is trained by Ray Train in rounds (--rounds; 0 leaves it out), for what does not show in a
micro-batch: the time from giving the job to its first step, when the workers are started and when they are kept, and
the share of the time that is spent between steps, on figures, progress and asking whether to stop.
With --gpu it is another benchmark, training_gpu.py beside this file; --tiny runs that on a CPU, to be tried.
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
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_rivals import (  # beside this script
    SETTINGS,
    SIZES,
    TRIPLET_MARGIN,
    floor,
    make_model,
    masked,
    measure,
    naive,
    ours,
)

from tailor_ray.training.forward import StudentLoss
from tailor_ray.training.packing import pack_tree
from tailor_ray.training.tokens import TokenExample
from tailor_ray.training.tree import TreeAttention


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
    wider = {number: f"ours, demos once, {number} a pass" for number in args.wide}
    for number, name in wider.items():
        variants[name] = over(lambda part: ours(loss, part, share_root=True), _parts(examples, number), name)
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
    return {
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

    from tailor_ray.config.run import ClusterConfig
    from tailor_ray.config.student import TinyConfig
    from tailor_ray.config.training import TrainingConfig
    from tailor_ray.demo.arithmetic import sample_questions
    from tailor_ray.demo.tiny import make_tiny_student
    from tailor_ray.layout import EXAMPLES
    from tailor_ray.models import identify
    from tailor_ray.prompts.student import StudentPrompt
    from tailor_ray.records import AnswerKind, TrainExample
    from tailor_ray.rounds.cluster import connected
    from tailor_ray.storage import Manifest, PartsDigest, Store, commit_manifest
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
    parser.add_argument("--gpu", action="store_true", help="training_gpu.py, in bfloat16 on the first GPU")
    parser.add_argument("--tiny", action="store_true", help="training_gpu.py on a CPU with the tiny student")
    parser.add_argument("--only", nargs="+", help="of --gpu: these sections")
    parser.add_argument("--student", nargs="+", choices=sorted(SIZES), help="of --gpu: whose speed is measured")
    parser.add_argument("--seconds", type=float, default=520, help="of --gpu: no section begins later than this")
    parser.add_argument("--out", help="of --gpu: a folder for training.jsonl, a line per finding")
    args = parser.parse_args()
    if args.gpu or args.tiny:
        import training_gpu  # beside this script

        training_gpu.run(args)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    few, zero = make_examples(args.data, args.examples)
    results = {}
    for label, examples in (("few-shot", few), ("zero-shot", zero)):
        model, plain = (make_model("3m", torch.device("cpu"), torch.float32) for _ in range(2))
        results[label] = compare(model, plain, examples, args, label)
        del model, plain
        gc.collect()
    keys = ("ratio_to_naive", "ratio_to_floor")
    summary = {key: min(result[key] for result in results.values()) for key in keys}
    demos = ("ratio_to_naive_shared_demos", "ratio_to_naive_shared_demos_batch")
    summary |= {key: results["few-shot"][key] for key in demos}
    summary |= {key: max(r[key] for r in results.values()) for key in ("padding_share", "max_loss_difference")}
    if args.rounds:
        summary |= in_rounds(args.rounds)
    print(json.dumps({key: float(f"{value:.4g}") for key, value in summary.items()}))


if __name__ == "__main__":
    main()
