"""The trained student as a Hugging Face folder.

In: whole weights and the student that was loaded. Out: `<stage>/student/` with config, safetensors (sharded above a
size), tokenizer with its chat template and a generation config that is neutral: greedy, with every token that ends an
answer. transformers and vLLM load it without remote code. Beside it, where the folder's precision is less than that of
the training, `<stage>/student-float32/`: the same weights to be trained on, for rounds of small updates would be lost
in the rounding. What always holds: weights with NaN or Inf are never written.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailor_ray.errors import ModelError, StageError
from tailor_ray.models.texts import end_tokens
from tailor_ray.storage import FileEntry, Store
from tailor_ray.training.model import Student
from tailor_ray.training.whole import WHOLE, whole_of, write_whole

log = logging.getLogger(__name__)


def export_student(
    student: Student,
    weights: Mapping[str, Tensor],
    store: Store,
    scratch: Path,
    max_shard_size: str,
    name: str = "student",
) -> list[FileEntry]:
    """Write the folder `name` of `store`, and of `scratch`; `weights` are the loss module's, by its names.

    Adapters are merged in float32; the student itself is left as it was, and may be trained on.
    """
    weights = {name.removeprefix("student."): tensor.detach() for name, tensor in weights.items()}
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise StageError(
            f"the trained student has NaN or Inf in {len(broken)} tensors, first in {broken[0]}; it is not exported: "
            "lower training.learning_rate"
        )
    if student.adapted is not None:
        before = dict(whole_of(student.origin)) if student.origin is not None else {}
        weights = merged(student.model, weights, before)
    whole = f"{name}{WHOLE}"
    for old in (name, whole):  # of an attempt that was cut off
        store.delete(old)
        shutil.rmtree(scratch / old, ignore_errors=True)
    if student.model.dtype != torch.float32:
        write_whole(store, scratch, whole, weights)
    _write(student, {name: tensor.to(_precision(tensor, student)) for name, tensor in weights.items()},
           scratch / name, max_shard_size)  # fmt: skip
    return store.upload_folder(scratch / name, name)


def try_export(student: Student, scratch: Path) -> None:
    """Write all but the weights, before anything is trained: raises ModelError where transformers refuses to."""
    folder = scratch / "dry"
    try:
        _write(student, {}, folder, "4GB")
    except (ValueError, TypeError, RuntimeError, AttributeError, OSError) as error:
        raise ModelError(
            f"the trained student could not be saved ({type(error).__name__}: {error}); mend the files of student.model"
        ) from error
    shutil.rmtree(folder)


def _precision(tensor: Tensor, student: Student) -> torch.dtype:
    return student.model.dtype if tensor.is_floating_point() else tensor.dtype


def _write(student: Student, weights: dict[str, Tensor], folder: Path, max_shard_size: str) -> None:
    model: Any = student.model
    trained, habits = model.config, model.generation_config
    try:
        if student.given is not None:
            model.config = student.given  # with the noise that training left out
        model.generation_config = neutral_generation(student)
        model.save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size)
    finally:
        model.config, model.generation_config = trained, habits
    student.tokenizer.save_pretrained(folder)


def neutral_generation(student: Student) -> Any:
    """Greedy, and ends: what a student's makers preferred (a penalty, a temperature) no exam of ours was asked with."""
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

    `before` are the float32 weights that the student has from earlier rounds, where it has any.
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
