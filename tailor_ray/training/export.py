"""The trained student as a Hugging Face folder.

In: whole weights and the student that was loaded. Out: `<stage>/student/` with config, safetensors (sharded above a
size), tokenizer with its chat template and generation config; transformers and vLLM load it without remote code. What
always holds: weights with NaN or Inf are never written.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tailor_ray.errors import StageError
from tailor_ray.storage import FileEntry, Store
from tailor_ray.training.model import Student

log = logging.getLogger(__name__)


def export_student(
    student: Student,
    weights: Mapping[str, torch.Tensor],
    store: Store,
    scratch: Path,
    max_shard_size: str,
    name: str = "student",
    final: bool = True,
) -> list[FileEntry]:
    """Write the folder `name` of `store`, and of `scratch`; `weights` are the loss module's, by its names.

    Unless it is `final`, the student is trained on afterwards, so adapters are merged into a copy.
    """
    weights = {name.removeprefix("student."): tensor.detach() for name, tensor in weights.items()}
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise StageError(
            f"the trained student has NaN or Inf in {len(broken)} tensors, first in {broken[0]}; it is not exported: "
            "lower training.learning_rate"
        )
    model = student.model
    if student.adapted is not None:
        student.model.load_state_dict(weights, strict=False)
        model = (student.adapted if final else copy.deepcopy(student.adapted)).merge_and_unload()
        weights = model.state_dict()
    folder = scratch / name
    _complete_generation_config(model, student)
    model.save_pretrained(folder, state_dict=dict(weights), max_shard_size=max_shard_size)
    student.tokenizer.save_pretrained(folder)
    store.delete(name)  # of an attempt that was cut off
    return store.upload_folder(folder, name)


def _complete_generation_config(model: Any, student: Student) -> None:
    """Without its end id a student would sample to the cap."""
    settings = model.generation_config
    if settings.eos_token_id is None:
        settings.eos_token_id = student.tokenizer.eos_token_id
    settings.pad_token_id = student.pad_id
