"""The student's files: found locally or on the hub, checked before anything is spent, named by their content.

Nothing here imports torch: a wrong folder is refused within a second.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tailor_ray.errors import ModelError
from tailor_ray.storage.store import file_sha256

# Optimizer states, logs and foreign weight formats do not change what the student answers.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "pytorch_model*.bin")


def find_student(model: str, revision: str | None = None, setting: str = "student.model") -> Path:
    """A local folder with the model's files; a hub id is downloaded into the Hugging Face cache.

    Raises ModelError, naming `setting`, when there is no such folder or hub id, or when a file is missing in it.
    """
    folder = Path(model).expanduser()
    if not folder.exists():
        if model.startswith((".", "/", "~")) or model.count("/") != 1:
            raise ModelError(
                f"{setting}={model!r} is neither a local folder nor a hub id (owner/name)"
                f"{' nor `tiny`' if setting == 'student.model' else ''}; set {setting} to one of these"
            )
        folder = _download(model, revision)
    check_student(folder)
    return folder.resolve()


def check_student(folder: Path) -> None:
    """Raise ModelError, saying what to do, unless the folder holds a causal LM with weights and a tokenizer."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"the student folder {folder} has no config.json; student.model must name a Hugging Face model"
        )
    try:
        architectures = json.loads(config.read_text()).get("architectures") or []
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"{config} is not a model configuration: {error}; set student.model to another folder"
        ) from None
    if architectures and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise ModelError(
            f"the student {folder} is a {architectures[0]}; student.model must be a decoder-only causal LM"
        )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise ModelError(
            f"the student folder {folder} has no weights (*.safetensors); set student.model to another folder"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(
            f"the student folder {folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); "
            "save one there with tokenizer.save_pretrained(), or set student.model to a folder that has one"
        )


def folder_sha256(folder: Path) -> str:
    """One hash over the names and contents of the model's files."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(MODEL_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"student.model={model!r} could not be loaded from the hub ({type(error).__name__}: {error}); "
            "check the name, student.revision and the network, or give a local folder"
        ) from None
