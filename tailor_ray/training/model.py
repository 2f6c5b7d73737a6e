"""The student as it is trained: loaded, made ready, and tried.

In: a Hugging Face folder. Out: a `Student` whose forward pass is known to be exact. Before training starts, the tree
and separate passes are compared on a small sample of random tokens. They differ for recurrent layers, windows, and
attention that the tree does not know. Such a student is trained with separate passes, and `layout_note` says why.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tailor_ray.errors import ModelError
from tailor_ray.models import ModelRef
from tailor_ray.training.deepspeed_engine import gathering, loading
from tailor_ray.training.exactness import switch_noise_off, try_layouts
from tailor_ray.training.forward import StudentLoss, decoder_of
from tailor_ray.training.tokens import token_limit
from tailor_ray.training.tree import TreeAttention

if TYPE_CHECKING:
    from tailor_ray.config.training import TrainingConfig

log = logging.getLogger(__name__)

_tried: dict[tuple[Any, ...], str] = {}


@dataclass(frozen=True, slots=True)
class Student:
    """`model` is the causal LM itself; `adapted` its peft wrapper, if there is one, which merges adapters at export."""

    model: Any
    tokenizer: Any
    attention: TreeAttention | None  # None: separate passes
    layout_note: str
    max_length: int
    given: Any = None  # its configuration as it was, with the noise that training leaves out
    adapted: Any = None
    origin: ModelRef | None = None  # what it was loaded from, with its float32 weights if there are any

    @property
    def pad_id(self) -> int:
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((one for one in ids if one is not None), 0)

    def loss_module(self, margin: float, reflection: str = "triplet", floor: float = 2.0) -> StudentLoss:
        return StudentLoss(self.model, self.attention, margin, reflection, floor)


def load_student(
    folder: Path, config: TrainingConfig, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu"
) -> Student:
    """Load the student from a local folder and try it on `device`.

    `dtype` is the weights', and `seed` that of new rows and adapters. Raises ModelError when it cannot be trained as
    configured.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    _, tokenizer = _read(folder)
    # None lets transformers take sdpa, or eager for the models that do not know it
    kernel = None if config.attention_kernel == "sdpa" else config.attention_kernel
    try:
        with loading(config, dtype):
            found: Any = AutoModelForCausalLM.from_pretrained(  # with loading info it is a pair
                folder, dtype=dtype, attn_implementation=kernel, output_loading_info=True
            )
            model, loaded = found
            torch.manual_seed(seed)  # new rows and adapters are random, and the same on all workers
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error
    except ImportError as error:
        if kernel is None:
            raise _unreadable(folder, error) from error
        raise ModelError(
            f"training.attention_kernel={kernel} is not to be had here: {error}; set it to sdpa"
        ) from error
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(
            f"the student {folder} has no weights for {len(missing)} of its parameters, first {missing[0]}, which "
            "would be random; set student.model to a folder that has all"
        )
    given = copy.deepcopy(model.config)
    adapted = _add_adapters(model, config) if config.lora is not None else None
    model.to(device)  # of one in shards its buffers: where its parameters lie DeepSpeed knows
    max_length = token_limit(model.config, config.max_length)
    with gathering(model, config, dtype):
        attention, note = _choose_attention(model, config, max_length)
    fallback = attention is None and config.attention != "separate"
    log.log(logging.WARNING if fallback else logging.INFO, "the student is trained with %s", note)
    if config.compile:
        decoder_of(model).compile(dynamic=True)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Student(model, tokenizer, attention, note, max_length, given, adapted)


def student_without_weights(folder: Path) -> Student:
    """What may be tried of a student before anything is spent.

    That is its configuration, its tokenizer and empty weights, from a local `folder`. Raises ModelError for what
    `load_student` would refuse whatever the weights are.
    """
    from transformers import AutoModelForCausalLM

    config, tokenizer = _read(folder)
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(folder, error) from error
    return Student(model, tokenizer, None, "", 0)


def _read(folder: Path) -> tuple[Any, Any]:
    """Configuration and tokenizer; raises ModelError."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(folder, error) from error
    parts = (config, config.get_text_config(decoder=True))
    if any(getattr(part, "quantization_config", None) is not None for part in parts):
        raise ModelError(
            f"the student {folder} is quantized (quantization_config in its config.json), and such weights cannot be "
            "trained; set student.model to the model that it was made of"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {folder} has no end-of-sequence token: set eos_token in its configuration")
    return config, tokenizer


def _unreadable(folder: Path, error: Exception) -> ModelError:
    return ModelError(f"the student {folder} cannot be loaded: {error}; set student.model to another one")


def _add_adapters(model: Any, config: TrainingConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = config.lora
    assert lora is not None
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(f"training.lora.targets={lora.targets!r} does not fit the student: {error}") from error


def _choose_attention(model: Any, config: TrainingConfig, max_length: int) -> tuple[TreeAttention | None, str]:
    tree = config.attention != "separate"
    lora = None if config.lora is None else config.lora.model_dump_json()
    key = (model.config.to_json_string(), str(model.device), model.dtype, lora, max_length, tree)
    if key not in _tried:  # workers are kept from round to round, and so is what was found of a student
        _tried[key] = try_layouts(model, max_length, tree)
    switch_noise_off(model)
    reason = _tried[key]
    if not reason:
        attention = TreeAttention()
        attention.install(model)
        return attention, "the prompt computed once (tree)"
    if config.attention == "tree":
        raise ModelError(f"training.attention=tree does not work for this student: {reason}; set it to auto")
    if config.detached:
        raise ModelError(
            f"training.triplet_prompt_gradient=detached needs the tree, which is not used here ({reason}); "
            "set it to attached"
        )
    return None, f"separate passes ({reason})"
