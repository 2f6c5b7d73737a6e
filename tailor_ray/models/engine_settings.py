"""How vLLM is set up for a model, in the exam's engines and behind Ray Serve alike. Nothing here imports vLLM."""

from __future__ import annotations

from typing import Any

from tailor_ray.config.student import StudentConfig


def engine_arguments(config: StudentConfig, on_gpu: bool, length: int) -> dict[str, Any]:
    """vLLM's arguments but for the model itself.

    `length` is the context in tokens. On a GPU memory is a share of the device's, on a CPU a cache of so many GiB.
    Returns keyword arguments of vLLM's EngineArgs.
    """
    arguments: dict[str, Any] = {
        "max_model_len": length,
        "max_num_seqs": config.max_num_seqs,
        "enable_prefix_caching": True,
        "enforce_eager": config.enforce_eager if config.enforce_eager != "auto" else not on_gpu,
        "dtype": config.dtype if config.dtype != "auto" or on_gpu else "float32",
    }
    if on_gpu:
        return arguments | {
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "tensor_parallel_size": config.tensor_parallel,
        }
    return arguments | {
        "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        # A prompt computed in two chunks rewinds its seeded generator, which CPU generators cannot (vLLM 0.29).
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, length),
    }


def engine_environment(on_gpu: bool, threads: int) -> dict[str, str]:
    """Variables that must be set before an engine's process imports vllm.

    `threads` are those that one engine computes with on a CPU. Returns names and values for Ray's `runtime_env`.
    """
    common = {
        "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings are about settings that are chosen here on purpose
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TAILOR_RAY_ENGINE": "1",
    }
    if on_gpu:
        return common
    return common | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "TORCHDYNAMO_DISABLE": "1",  # else the first log-probability waits 25 s for a compiler
    }
