"""The student as it is trained: loaded, made ready, and tried.

In: a Hugging Face folder. Out: a `Student` whose forward pass is known to be exact: before training starts, the tree
and separate passes are compared on a small sample of random tokens, and where they differ (recurrent layers, windows,
attention that the tree does not know) the student is trained with separate passes and `layout_note` says why.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import ModelError
from tailor_ray.training.forward import StudentLoss, hidden_states
from tailor_ray.training.packing import Pack, PackSettings, pack_separate, pack_tree
from tailor_ray.training.tokens import TokenExample, token_limit
from tailor_ray.training.tree import TreeAttention

log = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the probe, relative


@dataclass(frozen=True, slots=True)
class Student:
    """`model` is the causal LM itself; `adapted` its peft wrapper, if there is one, which merges adapters at export."""

    model: Any
    tokenizer: Any
    attention: TreeAttention | None  # None: separate passes
    layout_note: str
    max_length: int
    adapted: Any = None

    @property
    def pad_id(self) -> int:
        return first_id(self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)

    def loss_module(self, margin: float) -> StudentLoss:
        return StudentLoss(self.model, self.attention, margin)


def first_id(*candidates: int | None) -> int:
    return next((value for value in candidates if value is not None), 0)


def load_student(folder: Path, config: TrainingConfig, dtype: torch.dtype, seed: int) -> Student:
    """Load from a local folder; raises ModelError when it cannot be trained as configured."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)  # new embedding rows and adapters are random
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # None lets transformers take sdpa, or eager for the models that do not know it
        kernel = None if config.attention_kernel == "sdpa" else config.attention_kernel
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=kernel)
    except (OSError, ValueError) as error:
        raise ModelError(f"the student {folder} cannot be loaded: {error}; set student.model to another one") from error
    except ImportError as error:
        raise ModelError(
            f"training.attention_kernel={config.attention_kernel} is not to be had here: {error}; set it to sdpa"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {folder} has no end-of-sequence token: set eos_token in its configuration")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    _switch_dropout_off(model)
    max_length = token_limit(model.config, config.max_length)
    _check_head(model)
    attention, note = _choose_attention(model, config, max_length)
    fallback = attention is None and config.attention != "separate"
    log.log(logging.WARNING if fallback else logging.INFO, "the student is trained with %s", note)
    adapted = _add_adapters(model, config) if config.lora is not None else None
    if config.compile:
        model.base_model.compile(dynamic=True)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Student(model, tokenizer, attention, note, max_length, adapted)


def _switch_dropout_off(model: nn.Module) -> None:
    """Exactness needs it: continuations that share a prompt would share its dropout. The reference student has none."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


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


@torch.no_grad()
def _check_head(model: Any) -> None:
    """Logits must be the output layer's work alone, for they are made slice by slice from hidden states."""
    ids = torch.arange(8)[None] % model.config.get_text_config().vocab_size
    logits = model(input_ids=ids, use_cache=False).logits.float()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    if not torch.allclose(model.get_output_embeddings()(hidden).float(), logits, rtol=1e-2, atol=1e-3):
        raise ModelError(
            f"a {type(model).__name__} changes its logits after the output layer (by a cap or a scale), which training "
            "does not support; set student.model to another one"
        )


def _choose_attention(model: Any, config: TrainingConfig, max_length: int) -> tuple[TreeAttention | None, str]:
    reason = "training.attention=separate"
    if config.attention != "separate":
        reason = _window(model, max_length) or _try_tree(model)
        if not reason:
            attention = TreeAttention()
            attention.install(model)
            return attention, "the prompt computed once (tree)"
        if config.attention == "tree":
            raise ModelError(f"training.attention=tree does not work for this student: {reason}; set it to auto")
    if config.triplet_prompt_gradient == "detached" and config.triplet_weight:
        raise ModelError(
            f"training.triplet_prompt_gradient=detached needs the tree, which is not used here ({reason}); "
            "set it to attached"
        )
    return None, f"separate passes ({reason})"


def _window(model: Any, max_length: int) -> str:
    """Why windows rule the tree out: within a window as long as any sequence, attention is plain."""
    for name in ("sliding_window", "attention_chunk_size"):
        width = getattr(model.config.get_text_config(), name, None)
        if isinstance(width, int) and 0 < width < max_length:
            return f"{name}={width} is shorter than training.max_length={max_length}"
    return ""


def _try_tree(model: Any) -> str:
    """Compare the tree with separate passes on random tokens; "" when they agree. Leaves the model as it was."""
    pack, plain = probe_packs(model.config.get_text_config().vocab_size)
    expected = _probe(model, None, plain)
    attention = TreeAttention()
    tolerance = TOLERANCES.get(model.dtype, 1e-2)
    try:
        with attention.installed(model):
            found = _probe(model, attention, pack.to("cpu", model.dtype))
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        return f"{type(model).__name__} fails with it: {error}"
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference <= tolerance:
        return f"{type(model).__name__} gives other hidden states with it: they differ by {difference:.1e}"
    return ""


def probe_packs(vocabulary: int) -> tuple[Pack, Pack]:
    """The same three random examples, with a common start, in both layouts."""
    rng = random.Random(0)

    def some(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(length))

    start = some(20)
    examples = [
        TokenExample("a", start + some(5), some(9), some(4), some(7)),
        TokenExample("b", start + some(2), some(3)),
        TokenExample("c", start + some(9), some(6), some(8), some(1)),
    ]
    settings = PackSettings(prompt_weight=0.0, representation="last", rationale_cap=64)
    return pack_tree(examples, settings), pack_separate(examples, settings, pad=0)


@torch.no_grad()
def _probe(model: Any, attention: TreeAttention | None, pack: Pack) -> Tensor:
    """Hidden states at the targets and at the representations: in the same order in both layouts."""
    hidden = hidden_states(model, attention, pack).float()
    return torch.cat([hidden[pack.source], hidden[pack.rep_token]])


def trained_parameters(module: nn.Module, weight_decay: float) -> list[Mapping[str, Any]]:
    """Parameter groups of AdamW: norms and biases do not decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
