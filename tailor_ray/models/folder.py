"""A model's files in a local folder: which they are, whether they make a student, its shape and the memory it takes.

Nothing here imports torch. A wrong folder is refused within a second. No weights are loaded, so a run that cannot fit a
GPU is found before anything is spent.

Memory is computed from a model's configuration and the run's. Out: gibibytes by what they are for, on the fullest GPU.
The sums are those of jobs/benchmarks/training.md. Kernels and fragments take some 8 % besides, which `ROOM` leaves.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor_ray.errors import ModelError
from tailor_ray.storage.store import file_sha256

if TYPE_CHECKING:
    from tailor_ray.config.student import StudentConfig
    from tailor_ray.config.training import TrainingConfig

# Optimizer states, logs and foreign weight formats do not change what a model answers.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "pytorch_model*.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
IGNORED_CONFIG = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures"}
# Ends and habits of sampling, which configurations of old hold as well; the engines are told them otherwise.
GENERATION = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "min_length", "do_sample", "num_beams", "top_k"),
    *("temperature", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
    *("bad_words_ids", "num_return_sequences", "early_stopping", "task_specific_params", "id2label", "label2id"),
}


def is_model_file(name: str) -> bool:
    """Whether a file directly below a model's folder belongs to the model."""
    return any(fnmatch(name, pattern) for pattern in MODEL_FILES)


def model_files(folder: Path) -> list[Path]:
    """The model's files, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_model_file(path.name))


def content_sha256(files: Mapping[str, str]) -> str:
    """One hash of a model's content.

    `files` maps the names of its files to the sha256 of each.
    """
    digest = hashlib.sha256()
    for name, sha256 in sorted(files.items()):
        digest.update(f"{name}\0{sha256}\0".encode())
    return digest.hexdigest()


def check_model(folder: Path, setting: str) -> None:
    """Check that `folder` holds a causal language model with weights and a tokenizer.

    Raises ModelError naming `setting` where it does not.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"the model folder {folder} has no config.json; {setting} must name a Hugging Face model")
    try:
        architectures = json.loads(config.read_text()).get("architectures") or []
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{config} is not a model configuration: {error}; set {setting} to another folder") from None
    if architectures and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise ModelError(f"the model {folder} is a {architectures[0]}; {setting} must be a decoder-only causal LM")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise ModelError(f"the model folder {folder} has no weights (*.safetensors); set {setting} to another folder")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"the model folder {folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); "
            f"save one there with tokenizer.save_pretrained(), or set {setting} to a folder that has one"
        )


def architecture(folder: Path) -> dict[str, Any]:
    """What must stay the same for weights to be swapped in place: the model's shape, and which token has which id.

    It is what the libraries make of the files, not how they are written: transformers 5 writes rope_theta as
    rope_parameters, and layer_types where there were none.
    """
    from transformers import AutoConfig, AutoTokenizer  # takes a second

    try:
        config = AutoConfig.from_pretrained(folder).to_dict()
    except (ValueError, KeyError, OSError):  # a family of its own code
        config = json.loads((folder / "config.json").read_text())
    try:
        vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    except (ValueError, KeyError, OSError):  # a tokenizer of its own code, or none
        vocabulary = {name: file_sha256(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    listed = json.dumps(vocabulary, sort_keys=True).encode()
    return {**_shape(config), "vocabulary": hashlib.sha256(listed).hexdigest()}


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """What is left of a configuration, and of those in it, without precision, noise and habits of generation."""
    ignored = IGNORED_CONFIG | GENERATION | {name for name in config if re.search("drop|jitter|noise", name)}
    kept = {name: value for name, value in config.items() if name not in ignored}
    return {name: _shape(value) if isinstance(value, dict) else value for name, value in kept.items()}


def context_length(folder: Path, wanted: int) -> int:
    """The context to serve a model with.

    Returns `wanted` tokens, or fewer where the model itself has fewer positions.
    """
    config = json.loads((folder / "config.json").read_text())
    return min(wanted, int(config.get("max_position_embeddings") or wanted))


# Memory, by arithmetic.

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
        """The shape of a model with transformers' configuration `config`.

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
    trained = shape.parameters
    if config.lora is not None:  # adapters of all linear layers
        linear = 4 * shape.hidden + 2 * (shape.hidden + shape.key_value_size) + 3 * (shape.hidden + shape.intermediate)
        trained = config.lora.rank * shape.layers * linear
    weights = width * shape.parameters / (workers if stage == 3 else 1)
    if config.offload_parameters:
        weights = 0.0
    if stage == 3:
        weights += width * max(shape.parameters / shape.layers, shape.head)  # what is gathered at a time
    states = (12 if half or stage else 8) * trained / (workers if stage else 1)
    # the fullest pass keeps a layer's inputs with checkpointing, else also what lies inside each layer
    inside = width * (9 * shape.hidden + 2 * shape.key_value_size + 4 * shape.intermediate)
    kept = shape.layers * width * shape.hidden + inside if config.gradient_checkpointing else shape.layers * inside
    sums = {
        "weights": weights,
        "gradients": width * trained / (workers if stage >= 2 else 1) + (BUCKET if stage and workers > 1 else 0),
        "optimizer": 0.0 if config.offload_optimizer else states,
        "activations": config.micro_batch_tokens * kept,
        "logits": gpu_gib * GIB / 30 + 4 * (shape.head if config.lora is None else 0),
        "context": CONTEXT,
    }
    return {name: value / GIB for name, value in sums.items()}


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
