"""The trial of a student: how it can be trained exactly, found out before anything is trained.

In: a model as it will be trained, on the device that trains it. Out: whether the tree gives what each sequence gives by
itself, else whether padded rows do. Hidden states and the gradients of all trained parameters are compared, in training
mode, twice.

Always holds. Noise is switched off first. A model that is random, not causal, or exact in neither layout is refused
with the reason. The model is left as it was.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tailor_ray.errors import ModelError
from tailor_ray.training.forward import decoder_of, hidden_states
from tailor_ray.training.packing import Pack, PackSettings, pack_separate, pack_tree
from tailor_ray.training.tokens import TokenExample
from tailor_ray.training.tree import TreeAttention

NOISE = ("drop", "jitter", "noise")  # in the name of every setting by which models randomize their training
WINDOWS = ("window", "window_size", "chunk_size", "topk", "local_attention", "block_size", "span")  # ends of names
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of one layer
GRADIENT = 8.0  # times as much in a parameter's gradient
DIRECTIONS = 64  # along which large gradients are compared: lengths are right to a tenth
ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError)


def switch_noise_off(model: nn.Module) -> None:
    """Set every setting of `model` to 0 by which it randomizes its training.

    Exactness needs it: continuations that share a prompt would share its noise. The reference student has none.
    """
    for module in model.modules():
        if "dropout" in type(module).__name__.lower() and isinstance(getattr(module, "p", None), float):
            setattr(module, "p", 0.0)  # noqa: B010 — of no one class
        _silence(module)
        if getattr(module, "config", None) is not None:
            _silence_config(module.config)


def _silence_config(config: Any) -> None:
    _silence(config)
    for name in getattr(config, "sub_configs", {}):
        if getattr(config, name, None) is not None:
            _silence_config(getattr(config, name))


def _silence(holder: Any) -> None:
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and any(word in name for word in NOISE):
            setattr(holder, name, 0.0)


class _Measured(NamedTuple):
    """Hidden states at targets and representations, and gradients of their sum along fixed directions."""

    hidden: Tensor
    gradients: list[Tensor | None]


Parts = Iterator[tuple[Tensor, list[int]]]  # hidden states, and which of the rows of `_Measured.hidden` they are


def try_layouts(model: Any, max_length: int, tree: bool) -> str:
    """Try the tree, and where it is not exact padded rows.

    With `tree` off only padded rows are tried. What is right is what the model says of each sequence by itself when it
    is not trained. Afterwards its noise is off. `max_length` is that of a sequence, in tokens.

    Returns "" when the tree is exact, else why it is not and padded rows are. Raises ModelError when neither is.
    """
    _check_positions(model, max_length)
    mode = {module: module.training for module in model.modules()}
    try:
        model.eval()
        _check_head(model)
        examples = trial_examples(model.config.get_text_config(decoder=True).vocab_size)
        try:
            expected = _measure(model, _alone(model, examples))
        except torch.OutOfMemoryError:
            raise
        except ERRORS as error:
            raise _refused(model, f"fails on a single row: {type(error).__name__}: {error}") from error
        if said := _acausal(model, examples):
            raise _refused(model, said)
        switch_noise_off(model)
        model.train()
        return _try_layouts(model, max_length, tree, examples, expected)
    finally:
        for module, training in mode.items():
            module.training = training


def _try_layouts(model: Any, max_length: int, tree: bool, examples: list[TokenExample], expected: _Measured) -> str:
    if said := _twice(model, lambda: _alone(model, examples), expected):
        raise _refused(model, f"is another one while it is trained, or random: {said}")
    settings = PackSettings(prompt_weight=0.0, representation="last", rationale_cap=64)
    reason = ""
    if tree:
        reason = _window(model, max_length)
        reason = reason or _compare(model, TreeAttention(), pack_tree(examples, settings), expected)
        if not reason:
            return ""
    if said := _compare(model, None, pack_separate(examples, settings, pad=0), expected):
        more = f"; with the tree it {reason}" if reason else ""
        raise _refused(model, f"cannot be trained exactly: in padded rows it {said}{more}")
    return f"a {type(model).__name__} {reason}" if reason else "training.attention=separate"


def _refused(model: Any, reason: str) -> ModelError:
    return ModelError(f"a {type(model).__name__} {reason}; set student.model to another one")


def _compare(model: Any, attention: TreeAttention | None, pack: Pack, expected: _Measured) -> str:
    """ "" when this layout gives twice what each sequence gives by itself."""
    moved = pack.to(model.device)
    places = torch.cat([moved.source, moved.rep_token])

    def parts() -> Parts:
        yield hidden_states(model, attention, moved)[places], list(range(len(places)))

    with nullcontext() if attention is None else attention.installed(model):
        return _twice(model, parts, expected)


def _twice(model: Any, parts: Callable[[], Parts], expected: _Measured) -> str:
    """ "" when both times hidden states and gradients are the expected ones."""
    for _ in range(2):
        try:
            found = _measure(model, parts())
        except torch.OutOfMemoryError:
            raise
        except ERRORS as error:
            return f"fails: {type(error).__name__}: {error}"
        if said := _difference(model, found, expected):
            return said
    return ""


def _alone(model: Any, examples: list[TokenExample]) -> Parts:
    """Each sequence as anybody would ask for it: a row of its own, no padding, no positions."""
    target, representation = 0, sum(len(example.rationale) for example in examples)
    for example in examples:
        for side in (example.rationale, example.positive, example.negative):
            if side:
                places: list[int] = []
                rows: list[int] = []
                if side is example.rationale:
                    places += range(len(example.prompt) - 1, len(example.prompt) + len(side) - 1)
                    rows += range(target, target + len(side))
                    target += len(side)
                if example.has_pair:
                    places.append(len(example.prompt) + len(side) - 1)
                    rows.append(representation)
                    representation += 1
                yield _single(model, example.prompt + side)[places], rows


def _single(model: Any, ids: tuple[int, ...]) -> Tensor:
    row = torch.tensor([ids], device=model.device)
    return decoder_of(model)(input_ids=row, use_cache=False).last_hidden_state[0]


def _measure(model: Any, parts: Parts) -> _Measured:
    """Part by part forward and backward; a gradient is projected and dropped as soon as it is there.

    All trained parameters' whole gradients, twice, would be as large as the student itself, in every worker.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    projected: dict[int, Tensor] = {}

    def project(p: Tensor) -> None:
        assert p.grad is not None
        gradient, size = p.grad, p.grad.shape[-1] if p.grad.ndim > 1 else 0
        if size > DIRECTIONS:  # random ones keep the lengths of differences
            gradient = gradient @ (_random(0, size, DIRECTIONS) / DIRECTIONS**0.5).to(gradient)
        projected[id(p)] = projected.get(id(p), 0.0) + gradient.float().cpu()
        p.grad = None

    hooks = [p.register_post_accumulate_grad_hook(project) for p in trained]
    hidden, order = [], []
    try:
        with torch.enable_grad():
            for part, rows in parts:
                directions = torch.stack([_random(row, part.shape[1]) for row in rows])
                (part.float() * directions.to(part.device)).sum().backward()
                hidden.append(part.detach().float())
                order += rows
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    return _Measured(torch.cat(hidden)[torch.tensor(order).argsort()], [projected.get(id(p)) for p in trained])


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _difference(model: Any, found: _Measured, expected: _Measured) -> str:
    """What differs by more than rounding does at this depth and precision; "" when nothing does."""
    layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 1)
    tolerance = ROUNDING.get(model.dtype, 1e-2) * math.sqrt(max(1, layers))
    apart = ((found.hidden - expected.hidden).norm() / expected.hidden.norm()).item()
    if not apart <= tolerance:
        return f"gives hidden states that differ by {apart:.1e}, where {tolerance:.1e} would be rounding"
    norms = [0.0 if g is None else g.float().norm().item() for g in expected.gradients]
    least = 1e-2 * max(norms, default=0.0)  # a key's bias has no gradient but rounding
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for name, mine, theirs, norm in zip(names, found.gradients, expected.gradients, norms, strict=True):
        if mine is None and theirs is None:
            continue
        error = (0.0 if mine is None else mine.float()) - (0.0 if theirs is None else theirs.float())
        apart = error.norm().item() / max(norm, least, 1e-30)  # type: ignore[union-attr]
        most = GRADIENT * tolerance
        if not apart <= most:
            return f"gives a gradient of {name} that differs by {apart:.1e}, where {most:.1e} would be rounding"
    return ""


@torch.no_grad()
def _acausal(model: Any, examples: list[TokenExample]) -> str:
    """Whether what follows a prompt changes the prompt's own hidden states."""
    prompt = examples[0].prompt
    first, second = (
        _single(model, prompt + side)[: len(prompt)].float() for side in (examples[0].rationale, examples[0].positive)
    )
    apart = ((first - second).norm() / first.norm()).item()
    layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 1)
    if apart <= ROUNDING.get(model.dtype, 1e-2) * math.sqrt(max(1, layers)):
        return ""
    return f"is not causal: what follows a prompt changes the prompt's hidden states by {apart:.1e}"


def _window(model: Any, max_length: int) -> str:
    """Why windows rule the tree out: within a window as long as any sequence, attention is plain."""
    config = model.config.get_text_config(decoder=True)
    for name, width in vars(config).items():
        # index_topk is a window; topk_group, moe_topk or num_experts_per_topk are about experts
        experts = "expert" in name or "moe" in name
        if type(width) is int and 0 < width < max_length and name.endswith(WINDOWS) and not experts:
            return f"has {name}={width}, shorter than training.max_length={max_length}"
    return ""


def _check_positions(model: Any, max_length: int) -> None:
    """Rotary positions that change with a pass's longest row are those of no sequence by itself."""
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if one.get("rope_type") in ("dynamic", "longrope"):
            most = one.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", config.max_position_embeddings
            )
            if most < max_length:
                raise ModelError(
                    f"a {type(model).__name__} with {one['rope_type']} positions reads a row otherwise when a longer "
                    f"one is beside it, beyond {most} tokens; set training.max_length={max_length} to {most} or less"
                )


def trial_examples(vocabulary: int) -> list[TokenExample]:
    """Three random examples with a common start."""
    rng = random.Random(0)

    def some(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(length))

    start = some(20)
    return [
        TokenExample("a", start + some(5), some(9), some(4), some(7)),
        TokenExample("b", start + some(2), some(3)),
        TokenExample("c", start + some(9), some(6), some(8), some(1)),
    ]


def _check_head(model: Any) -> None:
    """Logits must be the output layer's work alone, for they are made slice by slice from hidden states.

    They are scaled up on the way, for a cap at 30 does not show in small logits. Raises ModelError.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise _refused(model, "has no output layer of its own")
    try:
        apart = _head_difference(model, head)
    except ERRORS as error:
        raise _refused(model, f"fails on a single row: {type(error).__name__}: {error}") from error
    if not apart <= 10 * ROUNDING.get(model.dtype, 1e-2):
        raise ModelError(
            f"a {type(model).__name__} changes its logits after the output layer (by a cap or a scale: they differ by "
            f"{apart:.1e}), which training does not support; set student.model to another one"
        )


@torch.no_grad()
def _head_difference(model: Any, head: nn.Module) -> float:
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config(decoder=True).vocab_size
    scale = 1024.0
    hook = head.register_forward_hook(lambda _, __, logits: logits.float() * scale)
    try:
        logits = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    hidden = decoder_of(model)(input_ids=ids, use_cache=False).last_hidden_state
    expected = head(hidden).float() * scale
    if logits.shape != expected.shape:
        return math.inf
    return ((logits - expected).norm() / expected.norm()).item()
