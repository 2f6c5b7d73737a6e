"""What the exam is compared with, each in a process of its own that stays for all repeats.

`raw` is vLLM's own `LLM.generate`; `hf` is transformers' `generate` in the reference's way; `serve` is a Ray Serve LLM
deployment that Ray Data streams through (`ServeDeploymentProcessorConfig`), the other way to keep engines alive.

    python jobs/benchmarks/exam_rivals.py raw|hf|serve MODEL NEW_TOKENS SAMPLES

reads a JSON list of prompts a line, answers each prompt SAMPLES times and prints `@samples a second`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOP = ["\nQuestion:"]


class Rival:
    """One of them, from the side of the benchmark."""

    def __init__(self, kind: str, model: Path, new_tokens: int, samples: int) -> None:
        command = [sys.executable, __file__, kind, str(model), str(new_tokens), str(samples)]
        environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def run(self, prompts: list[str]) -> float:
        """Samples a second over all prompts."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(prompts) + "\n")
        self._process.stdin.flush()
        for said in self._process.stdout:
            if said.startswith("@"):
                return float(said[1:])
        raise RuntimeError("the process that is compared with ended early")

    def close(self) -> None:
        self._process.communicate("")


def raw_vllm(model: str, new_tokens: int, samples: int) -> Callable[[list[str]], None]:
    from vllm import LLM, SamplingParams

    engine = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=256,
        kv_cache_memory_bytes=2**30,
    )
    # Without seeds: on CPU vLLM 0.29 cannot seed a prompt that it computes in chunks, as it does by default.
    sampling = SamplingParams(temperature=1.0, max_tokens=new_tokens, stop=STOP)

    def run(prompts: list[str]) -> None:
        engine.generate([prompt for prompt in prompts for _ in range(samples)], sampling, use_tqdm=False)

    return run


def hf_generate(model: str, new_tokens: int, samples: int) -> Callable[[list[str]], None]:
    """The reference's way: batches of 4 questions."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student: Any = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")

    def run(prompts: list[str]) -> None:
        for start in range(0, len(prompts), 4):
            batch = tokenizer(prompts[start : start + 4], return_tensors="pt", padding=True)
            with torch.no_grad():
                student.generate(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=new_tokens,
                    num_return_sequences=samples,
                )

    return run


def serve_llm(model: str, new_tokens: int, samples: int) -> Callable[[list[str]], None]:
    import ray
    from ray import serve
    from ray.data.llm import ServeDeploymentProcessorConfig, build_processor
    from ray.serve.llm import LLMConfig, build_llm_deployment
    from ray.serve.llm.openai_api_models import CompletionRequest

    variables = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    ray.init(
        address="local",
        num_cpus=8,  # one for each replica's placement group, and Ray Serve's and Ray Data's own
        object_store_memory=500_000_000,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": variables},
    )
    config = LLMConfig(
        model_loading_config={"model_id": "student", "model_source": model},
        engine_kwargs={"max_model_len": 2048, "dtype": "float32", "enforce_eager": True, "max_num_seqs": 256},
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config={
            "num_replicas": os.cpu_count() or 1,
            "max_ongoing_requests": 512,
            "autoscaling_config": None,
        },
    )
    serve.run(build_llm_deployment(config, override_serve_options={"name": "student"}), name="student")
    processor = build_processor(
        ServeDeploymentProcessorConfig(
            deployment_name="student",
            app_name="student",
            dtype_mapping={"CompletionRequest": CompletionRequest},
            batch_size=64,
        ),
        preprocess=lambda row: {
            "method": "completions",
            "dtype": "CompletionRequest",
            "request_kwargs": {
                "model": "student",
                "prompt": row["prompt"],
                "max_tokens": new_tokens,
                "temperature": 1.0,
                "stop": STOP,
            },
        },
        postprocess=lambda row: {"text": row["choices"][0]["text"]},
    )

    def run(prompts: list[str]) -> None:
        rows = [{"prompt": prompt} for prompt in prompts for _ in range(samples)]
        assert processor(ray.data.from_items(rows)).count() == len(rows)

    return run


RIVALS = {"raw": raw_vllm, "hf": hf_generate, "serve": serve_llm}


def main() -> None:
    kind, model, new_tokens, samples = sys.argv[1:]
    run = RIVALS[kind](model, int(new_tokens), int(samples))
    for line in sys.stdin:
        prompts = json.loads(line)
        start = time.perf_counter()
        run(prompts)
        print(f"@{len(prompts) * int(samples) / (time.perf_counter() - start)}", flush=True)


if __name__ == "__main__":
    main()
