"""DeepSpeed around the student: its settings, precision, one optimizer step, what training goes on from.

In: the loss module and the training's settings. Out: an engine whose `step` takes the summed gradient of all passes and
workers. For ZeRO-3 there are two contexts besides. In `loading` a student is loaded so that each worker keeps its share
alone. In `gathering` such a student can be tried before it has an optimizer.

Always holds. DeepSpeed averages gradients over workers, so a worker's loss is multiplied by their number. With sums
divided by global counts the step is then that of one worker with the whole batch. No worker's device has more of a
ZeRO-3 student than its share and the layer at hand.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from tailor_ray.errors import ConfigError

if TYPE_CHECKING:
    from tailor_ray.config.training import TrainingConfig

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")  # of a parameter, in a snapshot


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The precision to train in on `device`.

    Returns `precision`, or for `auto` bfloat16 on GPUs that have it and float32 elsewhere. Raises ConfigError for
    float16 on a CPU, which DeepSpeed cannot scale.
    """
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("training.precision=float16 needs a GPU: set it to float32 or bfloat16")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def trained_parameters(module: nn.Module, weight_decay: float) -> list[Mapping[str, Any]]:
    """Parameter groups of AdamW: norms and biases do not decay."""
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for p in module.parameters():
        if p.requires_grad:
            groups[len(getattr(p, "ds_shape", p.shape)) < 2].append(p)  # in shards a parameter is empty here
    decays = zip(groups, (weight_decay, 0.0), strict=True)
    return [{"params": params, "weight_decay": decay} for params, decay in decays if params]


class TrainingEngine:
    """One worker's share of the optimizer."""

    def __init__(self, module: nn.Module, config: TrainingConfig, workers: int, dtype: torch.dtype) -> None:
        self.workers = workers
        self.stage, self.half = zero_stage(config, dtype), dtype != torch.float32
        # fused on the CPU as well, where offload puts it: 1.2 s for a billion parameters, and 6.5 s otherwise
        optimizer = torch.optim.AdamW(
            trained_parameters(module, config.weight_decay),  # type: ignore[arg-type]
            lr=config.learning_rate,
            fused=True,
        )
        self.inner, *_ = import_deepspeed().initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_settings(config, workers, dtype),
            dist_init_required=False,
        )

    def set_learning_rate(self, rate: float) -> None:
        for group in self.inner.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: torch.Tensor, last_pass: bool) -> None:
        self.inner.set_gradient_accumulation_boundary(last_pass)
        self.inner.backward(loss * self.workers)

    def step(self) -> tuple[float, bool]:
        """Update the weights from the gradients that `backward` summed up.

        Returns the gradient's global norm, and whether the step was skipped by loss scaling.
        """
        skipped = self.inner.skipped_steps
        norm = None
        if self.stage == 0:  # ZeRO stages compute it; plain data parallelism has whole gradients on each worker
            grads = (p.grad for p in self.inner.module.parameters() if p.grad is not None)
            norm = float(torch.nn.utils.get_total_norm(list(grads)))
        self.inner.step()
        if norm is None:
            found = self.inner.get_global_grad_norm()
            norm = float("nan") if found is None else float(found)
        return norm, self.inner.skipped_steps > skipped

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The module's whole weights in host memory, trained ones in float32.

        All workers must call it, for each holds a part. Returns them on worker 0, and {} elsewhere.
        """
        module, first = self.inner.module, torch.distributed.get_rank() == 0
        out = {}
        for name, p in module.named_parameters():
            value = self._whole(p)
            if first:
                out[name] = value.cpu()
        kept = module.state_dict().keys() - out.keys()
        return out | {name: value for name, value in module.named_buffers() if first and name in kept}

    def snapshot(self, rank: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What training goes on from: this worker's share of whole tensors, in host memory, and figures.

        Each parameter with its two moments is with one worker, so any number of workers can go on. All must call it,
        each with its `rank`. Returns the tensors by "name kind", and the optimizer's steps and loss scale.
        """
        tensors = {}
        steps = int(next((state["step"] for state in self._adam.state.values() if "step" in state), 0))
        if steps:
            self._link_moments()
        for number, (name, p) in enumerate(self._trained()):
            for kind in (WEIGHT, *(MOMENTS if steps else ())):
                value = self._whole(p, kind)
                if number % self.workers == rank:
                    tensors[f"{name} {kind}"] = value.to("cpu", copy=True)
        scaler = getattr(self.inner.optimizer, "loss_scaler", None)
        numbers = {} if scaler is None else {k: v for k, v in vars(scaler).items() if type(v) in (int, float)}
        return tensors, {"steps": steps, "scale": numbers}

    def restore(self, tensors: Iterable[tuple[str, torch.Tensor]], figures: Mapping[str, Any]) -> None:
        """Go on from what all workers' `snapshot` gave. All must call it with the same."""
        if figures["steps"]:
            self._make_moments(figures["steps"])
        parameters = dict(self.inner.module.named_parameters())
        for key, value in tensors:
            name, _, kind = key.rpartition(" ")
            self._set(parameters[name], kind, value)
        if figures["scale"]:
            vars(self.inner.optimizer.loss_scaler).update(figures["scale"])

    def set_masters(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Begin from float32 weights where the student itself was loaded in less.

        `weights` are named as in the student; those that are not trained are left out.
        """
        parameters = {name.removeprefix("student."): p for name, p in self._trained()}
        for name, value in weights:
            if name in parameters:
                self._set(parameters[name], WEIGHT, value)

    def close(self) -> None:
        """Empty the student and all that DeepSpeed 0.19 made for it; what `state_dict` gave stays.

        A process trains one student after the other, and would keep each: hooks hold the engine, the nodes that add up
        gradients hold the parameters, and with ZeRO-3 a cache holds the module.
        """
        parameters = list(self.inner.module.parameters())
        self.inner.destroy()
        for p in parameters:
            vars(p).clear()
            p.data = p.new_empty(0)
            p.grad = None
        vars(self.inner).clear()

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.inner.module.named_parameters() if p.requires_grad]

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """Torch's own, below DeepSpeed's."""
        return self.inner.optimizer.optimizer if self.stage else self.inner.optimizer

    def _whole(self, p: torch.nn.Parameter, kind: str = WEIGHT) -> torch.Tensor:
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.stage == 3 and not p.requires_grad:
            with deepspeed.zero.GatheredParameters([p]):
                return p.detach().clone()
        if not p.requires_grad or (kind == WEIGHT and self.stage < 3 and not self.half):
            return p.detach()
        if self.stage == 0:
            return self._adam.state[p][kind]
        return safe_get_full_fp32_param(p) if kind == WEIGHT else safe_get_full_optimizer_state(p, kind)

    def _set(self, p: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        value = value.to(p.device)
        if kind != WEIGHT:
            if self.stage:
                safe_set_full_optimizer_state(p, value, kind)
            else:
                self._adam.state[p][kind].copy_(value)
            return
        if self.stage:
            safe_set_full_fp32_param(p, value)
        with deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=self.stage == 3), torch.no_grad():
            p.copy_(value)

    def _make_moments(self, steps: int) -> None:
        """As the first step would: DeepSpeed 0.19 leaves them to it."""
        zero = self.inner.optimizer
        flat = zero.fp32_partitioned_groups_flat if self.stage == 3 else [
            p for group in self._adam.param_groups for p in group["params"]
        ]  # fmt: skip
        for p in flat:
            moments = {kind: torch.zeros_like(p, requires_grad=False) for kind in MOMENTS}
            self._adam.state[p] = {"step": torch.tensor(float(steps), device=p.device), **moments}
        self._link_moments()

    def _link_moments(self) -> None:
        """DeepSpeed 0.19 does so after the first parameter group's first step, when the others have none yet."""
        if self.stage in (1, 2):
            self.inner.optimizer._hp_optimizer_states_linked = False
            self.inner.optimizer._lazy_init_hp_params_optimizer_state()


def zero_stage(config: TrainingConfig, dtype: torch.dtype) -> int:
    """`training.zero_stage`, but 1 for 0 in half precision: DeepSpeed's optimizer without ZeRO falls a step behind.

    Measured with 0.19 in bfloat16: from step 2 on, its loss is that of the weights before. Stage 1 computes the same.
    """
    return config.zero_stage if dtype == torch.float32 else max(1, config.zero_stage)


def deepspeed_settings(config: TrainingConfig, workers: int, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's own configuration, as its `initialize` takes it.

    It counts one pass a step. `TrainingEngine.backward` tells it which pass is a step's last.
    """
    zero: dict[str, Any] = {"stage": zero_stage(config, dtype), "overlap_comm": False}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    if config.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # else a save under ZeRO-3 writes nothing, in silence
    settings: dict[str, Any] = {
        "train_batch_size": workers,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 31,
    }
    if dtype == torch.bfloat16:
        settings["bf16"] = {"enabled": True}
    if dtype == torch.float16:
        settings["fp16"] = {"enabled": True, "initial_scale_power": 16}
    return settings


def in_shards(config: TrainingConfig) -> bool:
    """Whether the student is parted while it is loaded: under ZeRO-3, once there are workers to share it."""
    return config.zero_stage == 3 and dist.is_initialized()


@contextmanager
def loading(config: TrainingConfig, dtype: torch.dtype) -> Iterator[None]:
    """Load a student inside: transformers parts it parameter by parameter, if it is to lie `in_shards`.

    `dtype` is what will be trained in.
    """
    if not in_shards(config):
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed = import_deepspeed()
    deepspeed.init_distributed(dist_init_required=False)  # or it would count one worker
    known = HfDeepSpeedConfig(deepspeed_settings(config, dist.get_world_size(), dtype))
    try:
        yield
    finally:
        del known  # transformers parts what is loaded as long as this lives


@contextmanager
def gathering(model: nn.Module, config: TrainingConfig, dtype: torch.dtype) -> Iterator[None]:
    """Try a student inside: each layer's parameters are gathered for its own passes.

    It is what DeepSpeed does without an optimizer. A `model` that does not lie `in_shards` is left as it is.
    """
    if not in_shards(config):
        yield
        return
    root = nn.Module()  # is never called itself, or DeepSpeed would expect the same layers at each call
    root.model = model
    settings = deepspeed_settings(config, dist.get_world_size(), dtype)
    settings["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = import_deepspeed().initialize(model=root, config=settings, dist_init_required=False)
    try:
        yield
    finally:
        engine.optimizer.empty_partition_cache()
        engine.destroy()


def import_deepspeed() -> Any:
    """DeepSpeed without MLflow, which its autotuner imports where it is installed.

    That takes 2.7 of 6 s at the start of every worker. Returns the module.
    """
    absent = sys.modules.setdefault("mlflow", None) is None  # type: ignore[arg-type]
    try:
        import deepspeed
        from deepspeed.utils import logger as deepspeed_logger
    finally:
        if absent:
            del sys.modules["mlflow"]
    deepspeed_logger.setLevel(logging.WARNING)
    # built just in time for shared-memory collectives on CPU; gloo does them, and the build takes a minute
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
