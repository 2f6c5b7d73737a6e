"""What DeepSpeed is told, and a student that lies in shards from the start.

In: the training's settings. Out: DeepSpeed's own configuration, and for ZeRO-3 two contexts: one in which a student is
loaded so that each worker keeps its share alone (`zero.Init`), one in which such a student can be tried before it has
an optimizer. What always holds: no worker's device has more of a ZeRO-3 student than its share and the layer at hand.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from tailor_ray.config.training import TrainingConfig


def zero_stage(config: TrainingConfig, dtype: torch.dtype) -> int:
    """`training.zero_stage`, but 1 for 0 in half precision: DeepSpeed's optimizer without ZeRO falls a step behind.

    Measured with 0.19 in bfloat16: from step 2 on, its loss is that of the weights before. Stage 1 computes the same.
    """
    return config.zero_stage if dtype == torch.float32 else max(1, config.zero_stage)


def deepspeed_settings(config: TrainingConfig, workers: int, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's own configuration. It counts one pass a step: we tell it which pass is a step's last."""
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
    """What transformers loads inside is parted parameter by parameter, if it is to lie `in_shards`."""
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
    """Inside, each layer's parameters are gathered for its own passes: what DeepSpeed does without an optimizer."""
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
    """Without MLflow, which its autotuner imports where it is installed: 2.7 of 6 s at the start of every worker."""
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
