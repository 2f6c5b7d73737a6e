"""DeepSpeed around the student: precision, ZeRO, offload, one optimizer step.

In: the loss module. Out: an engine whose `step` takes the summed gradient of all passes and workers. What always
holds: DeepSpeed averages gradients over workers, so a worker's loss is multiplied by their number, and with sums
divided by global counts the step is that of one worker with the whole batch.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from torch import nn

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import ConfigError
from tailor_ray.training.model import trained_parameters


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on GPUs that have it. Raises ConfigError for float16 on CPU, which DeepSpeed cannot scale."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("training.precision=float16 needs a GPU: set it to float32 or bfloat16")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def deepspeed_settings(config: TrainingConfig, workers: int, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's own configuration. It counts one pass a step: we tell it which pass is a step's last."""
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": False}
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


class Engine:
    """One worker's share of the optimizer."""

    def __init__(self, module: nn.Module, config: TrainingConfig, workers: int, dtype: torch.dtype) -> None:
        deepspeed = _import_deepspeed()
        # built just in time for shared-memory collectives on CPU; gloo does them, and the build takes a minute
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.config = config
        self.workers = workers
        fused = not config.offload_optimizer
        optimizer = torch.optim.AdamW(
            trained_parameters(module, config.weight_decay),  # type: ignore[arg-type]
            lr=config.learning_rate,
            fused=fused,
        )
        self.inner, *_ = deepspeed.initialize(
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
        """Update the weights; the gradient's global norm, and whether the step was skipped by loss scaling."""
        skipped = self.inner.skipped_steps
        norm = self._plain_norm() if self.config.zero_stage == 0 else None
        self.inner.step()
        if norm is None:
            found = self.inner.get_global_grad_norm()
            norm = float("nan") if found is None else float(found)
        return norm, self.inner.skipped_steps > skipped

    def _plain_norm(self) -> float:
        """ZeRO stages compute it; plain data parallelism has whole gradients on each worker."""
        grads = [p.grad for p in self.inner.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The module's whole weights, under ZeRO-3 on worker 0 only. All workers must call it."""
        if self.config.zero_stage == 3:
            return self.inner._zero3_consolidated_16bit_state_dict() or {}
        return self.inner.module.state_dict()


def _import_deepspeed() -> Any:
    """Without MLflow, which its autotuner imports where it is installed: 2.7 of 6 s at the start of every worker."""
    absent = sys.modules.setdefault("mlflow", None) is None  # type: ignore[arg-type]
    try:
        import deepspeed
        from deepspeed.utils import logger as deepspeed_logger
    finally:
        if absent:
            del sys.modules["mlflow"]
    deepspeed_logger.setLevel(logging.WARNING)
    return deepspeed
