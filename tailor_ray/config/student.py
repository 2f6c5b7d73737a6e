"""`student`, `exam` and `evaluation`: the model that learns, its engines, and how it is asked.

vLLM is set up by these settings alike in the exam's engines and behind Ray Serve. Nothing here imports vLLM.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from tailor_ray.config.base import OPERATIONAL, Section


class TinyConfig(Section):
    """The student made from scratch where no weights are at hand: a small Llama schooled on simpler problems."""

    hidden_size: int = Field(default=128, ge=16, multiple_of=8)
    """Width of the residual stream."""
    layers: int = Field(default=4, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; vLLM wants hidden_size / heads to be 32, 64, 80, 96, 112, 128 or more of its kind on a CPU."""
    vocabulary: int = Field(default=1280, ge=300)
    """Tokens; the bytes and special tokens take 259 of them."""
    school_questions: int = Field(default=6000, ge=1)
    """Simpler problems that it is schooled on before round 1."""
    school_steps: int = Field(default=1100, ge=1)
    """Optimizer steps of schooling; a count and not a time, so that the same seed gives the same student."""
    school_batch: int = Field(default=16, ge=1)
    """Problems per step."""
    school_learning_rate: float = Field(default=2e-3, gt=0)
    """Peak of the cosine schedule."""


class StudentConfig(Section):
    """Who is asked."""

    model: str = "tiny"
    """A local folder, a Hugging Face hub id, a storage URI (s3://bucket/folder), or `tiny`. With run storage by URI a
    local folder is copied there, where every node finds it."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    prompt_style: Literal["plain", "chat"] = "plain"
    """`plain` writes Question/Reasoning/Answer blocks; `chat` uses the tokenizer's chat template."""
    date: datetime.date = datetime.date(2025, 1, 1)
    """What a chat template that writes today's date is told (Llama 3.2, SmolLM3, gpt-oss): prompts that changed at
    midnight would be other prompts than those that the student was trained on."""
    few_shot: bool = False
    """Prepend the task's demos."""
    thinking: bool = False
    """Let a model think before it answers, where its chat template can be told so; raise `exam.max_new_tokens` with it.
    A model that only thinks, whose template opens the thought by itself, is known by that. Thoughts are not graded, one
    that the token cap cuts off is truncated, and training closes the thought before the answer."""
    tiny: TinyConfig = TinyConfig()
    """Settings of the `tiny` student."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the engine's weights; auto is float32 on CPU (SmolLM2-135M took 142 s for 100 questions on two cores, in
    bfloat16 197 s), bfloat16 on GPUs that have it."""
    engines: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], OPERATIONAL] = "auto"
    """Number of vLLM engines; auto takes one per GPU (or tensor_parallel of them), or per CPU core if memory lasts."""
    tensor_parallel: Annotated[int, OPERATIONAL] = Field(default=1, ge=1)
    """GPUs per engine."""
    max_model_len: int = Field(default=1024, ge=16)
    """Prompt plus completion, in tokens. In a chat template a word problem takes 100 to 150, each demo 100 more."""
    gpu_memory_utilization: Annotated[float, OPERATIONAL] = Field(default=0.85, gt=0, le=1)
    """Share of a GPU that one engine claims."""
    kv_cache_gib: Annotated[float, OPERATIONAL] = Field(default=0.5, gt=0)
    """Key/value cache of one engine on CPU, in GiB. A token takes 2 · layers · key/value heads · head size numbers:
    with SmolLM2-135M in float32 46 kB, so that 0.5 GiB hold 11,600 tokens, 30 sequences of 384."""
    max_num_seqs: Annotated[int, OPERATIONAL] = Field(default=256, ge=1)
    """Sequences that one engine decodes at once; more than its cache holds wait. A pretrained student on CPU is well
    served by 32: answers end sooner, and a kill loses fewer that were begun."""
    enforce_eager: Annotated[bool | Literal["auto"], OPERATIONAL] = "auto"
    """Skip compilation and CUDA graphs; auto does so on CPU only."""
    engine_timeout_s: Annotated[float, OPERATIONAL] = Field(default=600.0, gt=0)
    """Seconds that an engine may take to start, and may go without a step, before it counts as dead."""
    release_for_training: Annotated[Literal["auto", "never", "sleep", "stop"], OPERATIONAL] = "auto"
    """What engines do while the student trains. On GPUs auto stops them, for workers take their GPUs, and they start
    again on the new student; `sleep` and `never` are for engines and workers on GPUs of their own. On CPU auto does
    nothing."""

    @property
    def is_given(self) -> bool:
        """Whether the student is there before a run begins; `tiny` is made by the run."""
        return self.model != "tiny"


class ExamConfig(Section):
    """How the student's mistakes are mined. Defaults are the reference's."""

    samples: int = Field(default=4, ge=1, le=256)
    """Attempts per question."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the sampler; greedy decoding belongs to `evaluation`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Cap of one attempt; an attempt that reaches it before its conclusion is `truncated`. Instruct students asked
    without demos write 130 tokens and more, with demos 30 to 60 on one-step problems."""
    shard_questions: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Questions in one committed part; teaching starts with the first. Auto takes what 32,768 new tokens of an engine
    hold (samples · max_new_tokens per question, two engines where `student.engines` is auto), at least 16 parts, and no
    fewer than 8 questions. What is answered of a part that is not whole yet survives a kill in any case."""
    max_engine_restarts: Annotated[int, OPERATIONAL] = Field(default=3, ge=0)
    """Engines replaced in one stage before it fails."""


class EvaluationConfig(Section):
    """How progress is measured: greedy decoding on validation (decides) and test (for the report alone)."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Cap of one answer."""


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
