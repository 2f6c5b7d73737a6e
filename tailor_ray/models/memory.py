"""What a student takes of a GPU's memory while it is trained and while it answers, by arithmetic.

In: a model's configuration and the run's. Out: gibibytes by what they are for, on the fullest GPU.

Always holds: nothing is loaded, so a run that cannot fit is found before anything is spent. The sums are those of
jobs/benchmarks/RESULTS.md. Kernels and fragments take some 8 % besides, which `ROOM` leaves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor_ray.config.student import StudentConfig
from tailor_ray.config.training import TrainingConfig

GIB = 2**30
ROOM = 0.92  # of a GPU's memory that may be planned with
BUCKET = 2 * 500_000_000  # gradients that DeepSpeed sums up at a time, twice, in half precision
CONTEXT = 1.0 * GIB  # of CUDA and its libraries


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a decoder: `parameters` in all, of which `head` are the output layer's."""

    parameters: int
    head: int
    hidden: int
    intermediate: int
    layers: int
    key_value_size: int  # key/value heads times their size

    @classmethod
    def of(cls, folder: Path, config: Any) -> Shape:
        """Of transformers' configuration `config`.

        The parameters are counted in the weights in `folder`, where it has any, and else estimated from the shape.
        """
        text = config.get_text_config(decoder=True)
        hidden, layers = text.hidden_size, text.num_hidden_layers
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or hidden // heads
        keys = (getattr(text, "num_key_value_heads", None) or heads) * size
        inner = getattr(text, "intermediate_size", None) or 4 * hidden
        head = text.vocab_size * hidden
        counted = _counted(folder)
        layer = 2 * hidden * (heads * size + keys) + 3 * hidden * inner
        tied = getattr(text, "tie_word_embeddings", True)
        return cls(counted or layers * layer + head * (1 if tied else 2), head, hidden, inner, layers, keys)


def _counted(folder: Path) -> int:
    """Parameters by the headers of the folder's safetensors files; 0 without any."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            count = 1
            for size in entry["shape"] if name != "__metadata__" else [0]:
                count *= size
            total += count
    return total


def training_memory(shape: Shape, config: TrainingConfig, gpu_gib: float, half: bool = True) -> dict[str, float]:
    """What training takes of each GPU.

    `gpu_gib` is the GPU's memory in GiB, and `half` says whether bfloat16 or float16 is trained in. Returns GiB on the
    fullest GPU by what they are for: weights, gradients, optimizer, activations, logits, context.
    """
    width, workers = (2 if half else 4), config.workers
    stage = max(1, config.zero_stage) if half else config.zero_stage
    trained = shape.parameters if config.lora is None else _adapters(shape, config.lora.rank)
    weights = width * shape.parameters / (workers if stage == 3 else 1)
    if config.offload_parameters:
        weights = 0.0
    if stage == 3:
        weights += width * max(shape.parameters / shape.layers, shape.head)  # what is gathered at a time
    states = (12 if half or stage else 8) * trained / (workers if stage else 1)
    sums = {
        "weights": weights,
        "gradients": width * trained / (workers if stage >= 2 else 1) + (BUCKET if stage and workers > 1 else 0),
        "optimizer": 0.0 if config.offload_optimizer else states,
        "activations": _activations(shape, config, width),
        "logits": gpu_gib * GIB / 30 + 4 * (shape.head if config.lora is None else 0),
        "context": CONTEXT,
    }
    return {name: value / GIB for name, value in sums.items()}


def _adapters(shape: Shape, rank: int) -> int:
    """Parameters of low-rank adapters of all linear layers."""
    layer = 4 * shape.hidden + 2 * (shape.hidden + shape.key_value_size) + 3 * (shape.hidden + shape.intermediate)
    return rank * shape.layers * layer


def _activations(shape: Shape, config: TrainingConfig, width: int) -> float:
    """What the fullest pass keeps: a layer's inputs with checkpointing, else also what lies inside each layer."""
    layer = width * (9 * shape.hidden + 2 * shape.key_value_size + 4 * shape.intermediate)
    kept = width * shape.hidden
    each = shape.layers * kept + layer if config.gradient_checkpointing else shape.layers * layer
    return float(config.micro_batch_tokens * each)


def engine_memory(shape: Shape, config: StudentConfig, gpu_gib: float) -> dict[str, float]:
    """What an engine takes of each of its GPUs, of `gpu_gib` GiB.

    Returns GiB: the weights in half precision, what is left of its claim for keys and values, and what one sequence of
    full length takes of that.
    """
    claimed = config.gpu_memory_utilization * gpu_gib
    weights = 2 * shape.parameters / config.tensor_parallel / GIB
    cache = claimed - weights - 2.0  # of which activations of a prefill take some
    one = 4 * shape.layers * shape.key_value_size * config.max_model_len / config.tensor_parallel / GIB
    return {"weights": weights, "cache": cache, "one sequence": one}
