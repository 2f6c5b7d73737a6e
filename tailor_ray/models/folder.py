"""A model's files in a local folder: which they are, whether they make a student, what shape they have.

Nothing here imports torch. A wrong folder is refused within a second.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tailor_ray.errors import ModelError

# Optimizer states, logs and foreign weight formats do not change what a model answers.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "pytorch_model*.bin")
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
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(
            f"the model folder {folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); "
            f"save one there with tokenizer.save_pretrained(), or set {setting} to a folder that has one"
        )


def architecture(folder: Path) -> dict[str, Any]:
    """The model's shape: what must stay the same for weights to be swapped in place.

    It is what the libraries make of the configuration, not how that is written: transformers 5 writes rope_theta as
    rope_parameters, and layer_types where there were none.
    """
    from transformers import AutoConfig  # takes a second

    try:
        config = AutoConfig.from_pretrained(folder).to_dict()
    except (ValueError, KeyError, OSError):  # a family of its own code
        config = json.loads((folder / "config.json").read_text())
    return _shape(config)


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
