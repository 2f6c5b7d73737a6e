"""The trained student as a Hugging Face folder.

In: whole weights and the student that was loaded. Out: `<stage>/student/` with config, safetensors (sharded above a
size) and tokenizer with its chat template. Its generation config is neutral: greedy, with every token that ends an
answer. transformers and vLLM load it without remote code.

Where the folder's precision is less than that of the training, `<stage>/student-float32/` lies beside it. It holds the
master weights to be trained on, for rounds of small updates would be lost in the rounding. They are safetensors files
and a sealed record of their hashes, written last, and are read again tensor by tensor.

Always holds: weights with NaN or Inf are never written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailor_ray.errors import CorruptionError, ModelError, StageError
from tailor_ray.models import ModelRef
from tailor_ray.models.texts import end_tokens
from tailor_ray.storage import FileEntry, Store
from tailor_ray.storage.commits import seal, unseal
from tailor_ray.storage.store import file_sha256
from tailor_ray.training.model import Student

MASTERS = "-float32"
RECORD = "weights.json"
FILE_BYTES = 4 << 30
SHARD_SIZE = "4GB"  # above it the exported weights are split over several files


def export_student(
    student: Student,
    weights: Mapping[str, Tensor],
    store: Store,
    scratch: Path,
    max_shard_size: str = SHARD_SIZE,
    name: str = "student",
) -> list[FileEntry]:
    """Write the folder `name` of `store`, and of `scratch`.

    `weights` are the loss module's, by its names. Adapters are merged in float32. The student itself is left as it was,
    and may be trained on. Returns the entries of the folder's files. Raises StageError for NaN or Inf.
    """
    weights = {name.removeprefix("student."): tensor.detach() for name, tensor in weights.items()}
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise StageError(
            f"the trained student has NaN or Inf in {len(broken)} tensors, first in {broken[0]}; it is not exported: "
            "lower training.learning_rate"
        )
    if student.adapted is not None:
        before = dict(masters_of(student.origin)) if student.origin is not None else {}
        weights = merged(student.model, weights, before)
    masters = f"{name}{MASTERS}"
    for old in (name, masters):  # of an attempt that was cut off
        store.delete(old)
        shutil.rmtree(scratch / old, ignore_errors=True)
    if student.model.dtype != torch.float32:
        write_masters(store, scratch, masters, weights)
    dtype = student.model.dtype
    weights = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    _write(student, weights, scratch / name, max_shard_size)
    return store.upload_folder(scratch / name, name)


def try_export(student: Student, scratch: Path) -> None:
    """Write all but the weights into `scratch`, before anything is trained.

    Raises ModelError where transformers refuses to.
    """
    folder = scratch / "dry"
    try:
        _write(student, {}, folder, "4GB")
    except (ValueError, TypeError, RuntimeError, AttributeError, OSError) as error:
        raise ModelError(
            f"the trained student could not be saved ({type(error).__name__}: {error}); mend the files of student.model"
        ) from error
    shutil.rmtree(folder)


def _write(student: Student, weights: dict[str, Tensor], folder: Path, max_shard_size: str) -> None:
    model: Any = student.model
    config, generation = model.config, model.generation_config
    try:
        if student.given is not None:
            model.config = student.given  # with the noise that training left out
        model.generation_config = neutral_generation(student)
        model.save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size)
    finally:
        model.config, model.generation_config = config, generation
    student.tokenizer.save_pretrained(folder)


def neutral_generation(student: Student) -> Any:
    """The generation config of an exported student: greedy, with every end token.

    What its makers preferred (a penalty, a temperature) no exam of ours was asked with.
    """
    from transformers import GenerationConfig

    model = student.model
    ends = end_tokens(
        student.tokenizer, model.generation_config.eos_token_id, getattr(model.config, "eos_token_id", None)
    )
    return GenerationConfig(
        do_sample=False,
        bos_token_id=student.tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=student.pad_id,
    )


@torch.no_grad()
def merged(model: Any, weights: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with each adapter's product added in float32: in bfloat16 most of a small update would be lost.

    `weights` are named as in the adapted `model`. `before` are the float32 weights that the student has from earlier
    rounds, where it has any. Returns them by the names of the student itself.
    """
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items() if ".lora_" not in name}
    out = {name: before.get(name, tensor) for name, tensor in plain.items()}
    for name, layer in model.named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        kind = "lora_A" if f"{name}.lora_A.default.weight" in weights else "lora_embedding_A"
        end = ".weight" if kind == "lora_A" else ""
        low = weights[f"{name}.{kind}.default{end}"].float()
        high = weights[f"{name}.{kind[:-1]}B.default{end}"].float()
        product = (high @ low) * layer.scaling["default"]
        if kind == "lora_embedding_A" or getattr(layer, "fan_in_fan_out", False):
            product = product.T
        base = out[f"{name}.weight"]
        out[f"{name}.weight"] = base.float() + product.to(base.device)
    return out


def write_masters(store: Store, scratch: Path, name: str, weights: Mapping[str, Tensor]) -> None:
    """Write float32 weights as the folder `name` of `store`; `scratch` holds it until it is uploaded."""
    folder = scratch / name
    folder.mkdir(parents=True)
    for number, group in enumerate(_groups(weights)):
        write_tensors(folder / f"{number:05d}.safetensors", {key: tensor.float() for key, tensor in group.items()})
    entries = store.upload_folder(folder, name)
    record = {"files": [{**asdict(entry), "path": entry.path.removeprefix(f"{name}/")} for entry in entries]}
    store.write_bytes(f"{name}/{RECORD}", seal(record))


def masters_of(student: ModelRef) -> Iterator[tuple[str, Tensor]]:
    """The float32 weights beside a trained student, tensor by tensor; none where it has none.

    Raises CorruptionError for a file that is not the one that was written.
    """
    if "/" not in student.uri.strip("/"):
        return
    parent, _, name = student.uri.rstrip("/").rpartition("/")
    store = Store.open(parent)
    record = f"{name}{MASTERS}/{RECORD}"
    if not store.exists(record):
        return
    files = unseal(store.read_bytes(record), f"{parent}/{record}")["files"]
    folder = store.local_folder(f"{name}{MASTERS}")
    for entry in files:
        path = folder / entry["path"]
        if not path.is_file() or file_sha256(path) != entry["sha256"]:
            raise CorruptionError(f"{parent}/{name}{MASTERS}/{entry['path']} is not the file that {RECORD} records")
        yield from read_tensors(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 — the file is no mapping
            yield name, file.get_tensor(name)


def _groups(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Of about FILE_BYTES; a tensor that several names share is written once."""
    group: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    size = 0
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tensor.numel())
        if not tensor.is_floating_point() or place in seen:
            continue
        seen.add(place)
        group[name] = tensor
        size += 4 * tensor.numel()
        if size >= FILE_BYTES:
            yield group
            group, size = {}, 0
    if group:
        yield group
