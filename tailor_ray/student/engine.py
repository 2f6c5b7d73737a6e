"""One vLLM engine in one actor; the only file that imports vllm.

In: batches of prompts with a seed for every sample. Out: one completion for every sample, in order.

Always holds. A prompt that cannot be asked (empty, too long, not text) is answered by an error, and the engine goes on.
When the engine itself breaks, every waiting call raises EngineBroken. The actor is then of no further use. No answer
comes from weights other than those whose hash the last `load` returned.

All use of vLLM happens on one thread. It admits new requests between two steps, so batches of several callers are
decoded together.

On CPU the engine runs inside the actor's own process (VLLM_ENABLE_V1_MULTIPROCESSING=0), measured on 2 cores. It starts
in 7.0 s, where engine, core and worker processes take 19.4 s (medians of 3). It decodes 86–94 samples/s, where they
decode 44–79. It leaves no child behind when it is killed.

On GPUs the core is a child process, so that the host's work overlaps with the device's. `die_with_parent` ends it with
its actor. `watch` tells the actor of its end. vLLM 0.29 itself waits for ever for what a killed core would have said:
no answer came 60 s after the kill.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tailor_ray.config.student import StudentConfig, engine_arguments
from tailor_ray.errors import ModelError, TailorError
from tailor_ray.models import ModelRef, resolve
from tailor_ray.models.folder import architecture, context_length
from tailor_ray.models.texts import text_ids
from tailor_ray.student.sampling import Completions, EngineBroken, Sampling, unaskable

log = logging.getLogger(__name__)
PROBE_TOKENS = 16
MEMORY_CPU, MEMORY_GPU = "student.kv_cache_gib", "student.gpu_memory_utilization"


@dataclass(slots=True)
class Job:
    """Work for the engine's thread: `start` is called with the engine; the job ends when its future is set.

    A job that is `alone` starts when nothing else runs, and nothing else starts before it ends.
    """

    start: Callable[[Any, Job], None]
    alone: bool
    asked: int = 0  # requests
    left: int = 0  # of them still run
    future: Future[Any] = field(default_factory=Future)


class StudentEngine:
    """The actor. Its calls block; Ray runs each on a thread of its own."""

    def __init__(self, config: StudentConfig, model: ModelRef, seed: int, on_gpu: bool) -> None:
        self._config, self._seed, self._on_gpu = config, seed, on_gpu
        self._model = model
        self._architecture: dict[str, Any] = {}
        self._wake = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._running: dict[str, tuple[Job, Completions, int]] = {}
        self._alone: Job | None = None
        self._starting: Job | None = None
        self._broken: str | None = None
        self._steps = self._requests = 0
        self._answered = 0  # samples of batches that are not whole yet
        self._tokenizer: Any = None
        self._limit = 0
        self._started: Future[None] = Future()
        threading.Thread(target=self._serve, name="engine", daemon=True).start()

    def __repr__(self) -> str:
        """What Ray's dashboard and log lines call this actor."""
        return f"StudentEngine({'/'.join(str(self._model).split('/')[-3:])})"

    def ready(self) -> str:
        """Wait for the start.

        Returns the sha256 of the model that answers. Raises ModelError when vLLM cannot serve it.
        """
        self._started.result()
        return self._model.sha256

    def progress(self) -> int:
        """A number that grows with every step; a hung engine keeps its."""
        return self._steps

    def answered(self) -> int:
        """Samples answered of the batches under way."""
        return self._answered

    def generate(
        self, prompts: list[str], seeds: list[list[int]], sampling: Sampling, alone: bool = False
    ) -> Completions:
        """Answer a batch; calls of several callers are decoded together.

        `seeds` holds one list for each prompt, with one seed for each sample wanted. With `alone` nothing else runs
        meanwhile. Returns one completion for each seed of each prompt, in order. Raises EngineBroken when the engine
        fails.
        """
        return self._call(lambda engine, job: self._admit_batch(engine, job, prompts, seeds, sampling), alone)

    def load(self, model: ModelRef) -> str:
        """Swap the weights in place; see `_swap` for what is checked.

        Returns the sha256 of `model`. Raises ModelError when its shape or vocabulary is another, for that takes a new
        engine, and EngineBroken when the engine answers as before.
        """
        return self._call(lambda engine, job: job.future.set_result(self._swap(engine, model)), alone=True)

    def sleep(self) -> None:
        """Give the device's memory back, weights and cache; `load` wakes the engine again."""
        self._call(lambda engine, job: job.future.set_result(engine.sleep(level=2)), alone=True)

    def _call(self, start: Callable[[Any, Job], None], alone: bool) -> Any:
        job = Job(start, alone)
        with self._wake:
            if self._broken:
                raise EngineBroken(self._broken)
            self._inbox.append(job)
            self._wake.notify()
        return job.future.result()

    # From here on everything runs on the engine's thread.

    def _serve(self) -> None:
        try:
            folder = resolve(self._model)
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # whatever vLLM looks for is here by now
            self._architecture = architecture(folder)
            engine = build_engine(self._config, folder, self._seed, self._on_gpu)
            self._tokenizer = engine.get_tokenizer()
            self._limit = engine.model_config.max_model_len
            self._probe(engine)  # a shape that no kernel computes fails here and not in the exam
        except TailorError as error:
            self._started.set_exception(error)
            return
        except (ValueError, RuntimeError, NotImplementedError) as error:
            hint = ""
            if "memory" in str(error) or "KV cache" in str(error):
                hint = f"; change {MEMORY_GPU if self._on_gpu else MEMORY_CPU}, or lower student.max_model_len"
            self._started.set_exception(ModelError(f"vLLM cannot serve the student {self._model}: {error}{hint}"))
            return
        except BaseException as error:  # noqa: BLE001  raised again by `ready`
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        watch(multiprocessing.active_children(), self._break)
        try:
            while True:
                self._start_jobs(engine)
                if engine.has_unfinished_requests():
                    for output in engine.step():
                        self._deliver(output)
                    self._steps += 1
        except BaseException:  # noqa: BLE001  whatever it was, no later step can be trusted
            traceback.print_exc()
            self._break(f"the engine failed: {traceback.format_exc(limit=-1).strip()}")

    def _start_jobs(self, engine: Any) -> None:
        """Start what may start now; wait for work when there is none."""
        while True:
            with self._wake:
                while not self._inbox and not self._running:
                    self._wake.wait()
                if not self._inbox or self._alone or (self._inbox[0].alone and self._running):
                    return
                job = self._starting = self._inbox.popleft()  # where `_break` finds it
            self._alone = job if job.alone else None
            try:
                job.start(engine, job)
            except TailorError as error:
                job.future.set_exception(error)
            self._starting = None
            if job.future.done():
                self._alone = None

    def _break(self, why: str) -> None:
        """Tell every waiting caller; also called by the thread that watches the engine's processes."""
        with self._wake:
            self._broken = why
            waiting = [*self._inbox, *(job for job, _, _ in list(self._running.values()))]
            for job in [*waiting, self._starting] if self._starting else waiting:
                if not job.future.done():
                    job.future.set_exception(EngineBroken(why))

    def _admit_batch(
        self, engine: Any, job: Job, prompts: list[str], seeds: list[list[int]], sampling: Sampling
    ) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        tokens, errors = self._tokenize(prompts, sampling.special_tokens)
        out = Completions.of_errors([errors[row] or "" for row, group in enumerate(seeds) for _ in group])
        asked = [(ids, seed) for ids, group in zip(tokens, seeds, strict=True) for seed in group]
        for index, (ids, seed) in enumerate(asked):
            if not ids:
                continue
            parameters = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=seed,
                stop=list(sampling.stop),
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._requests += 1
            name = str(self._requests)  # vLLM returns a name of its own, but answers by this one
            engine.add_request(name, {"prompt_token_ids": ids}, parameters)
            self._running[name] = (job, out, index)
            job.asked += 1
        job.left = job.asked
        if not job.left:
            job.future.set_result(out)

    def _deliver(self, output: Any) -> None:
        if not output.finished:
            return
        job, out, index = self._running.pop(output.request_id)
        completion = output.outputs[0]
        tokens = len(output.prompt_token_ids or ()), len(completion.token_ids)
        if completion.finish_reason in ("stop", "length"):
            out.put(index, completion.text, completion.finish_reason, *tokens)
        else:
            out.errors[index] = f"the engine ended the request with {completion.finish_reason!r}"
        job.left -= 1
        self._answered += 1
        if not job.left:
            self._answered -= job.asked
            self._alone = None
            job.future.set_result(out)

    def _tokenize(self, prompts: list[str], special_tokens: bool) -> tuple[list[list[int]], list[str | None]]:
        """Ids of each prompt, empty beside a reason where it cannot be asked."""
        errors: list[str | None] = [unaskable(prompt) for prompt in prompts]
        askable = [prompt for prompt, error in zip(prompts, errors, strict=True) if error is None]
        found = iter(text_ids(self._tokenizer, askable, special_tokens))
        tokens: list[list[int]] = []
        for row, error in enumerate(errors):
            ids = next(found) if error is None else []
            if error is None and not ids:
                errors[row] = "the prompt has no token"
            elif len(ids) >= self._limit:
                errors[row] = (
                    f"the prompt has {len(ids)} tokens and leaves no room for an answer: "
                    f"student.max_model_len is {self._limit}"
                )
                ids = []
            tokens.append(ids)
        return tokens, errors

    def _swap(self, engine: Any, model: ModelRef) -> str:
        """Load `model` into the running engine.

        What shows that the new weights answer: the log-probabilities of a fixed probe, asked with an empty prefix
        cache before and after, must differ when the models' hashes do. Raises EngineBroken when they do not, so
        that the engine is replaced. (vLLM packs its weights by kernel, so they cannot be hashed in place.)
        """
        asleep = engine.is_sleeping()
        if model.sha256 == self._model.sha256 and not asleep:
            return model.sha256
        folder = resolve(model)
        if architecture(folder) != self._architecture:
            raise ModelError(f"{model} has another shape or vocabulary than {self._model}: a new engine is needed")
        if asleep:
            engine.wake_up()  # its weights were given up: there is nothing to compare with
        before = None if asleep else self._probe(engine)
        engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if not self._on_gpu:
            engine.collective_rpc(repack_output_head)
        if self._probe(engine) == before:
            raise EngineBroken(f"the engine answers as before although {model} holds other weights")
        self._model = model
        return model.sha256

    def _probe(self, engine: Any) -> list[float]:
        """Log-probabilities of greedy tokens after a fixed prompt; nothing else runs meanwhile."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine.reset_prefix_cache()  # a cached prefix would answer with the weights that filled it
        vocabulary = engine.model_config.get_vocab_size()
        prompt = [(7919 * position) % vocabulary for position in range(1, 1 + min(PROBE_TOKENS, self._limit // 2))]
        parameters = SamplingParams(
            temperature=0, max_tokens=4, ignore_eos=True, logprobs=1, output_kind=RequestOutputKind.FINAL_ONLY
        )
        engine.add_request("probe", {"prompt_token_ids": prompt}, parameters)
        found: list[float] = []
        while engine.has_unfinished_requests():
            for output in engine.step():
                found = [next(iter(entry.values())).logprob for entry in output.outputs[0].logprobs]
        engine.reset_prefix_cache()
        return found


def repack_output_head(worker: Any) -> None:
    """Pack a tied output head of `worker`'s model again.

    On CPU vLLM 0.29 keeps a packed copy of it, which a reload of weights passes by. Without this a student with tied
    embeddings answers by its new layers and its old head.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


class SwapWeights:
    """What vLLM's workers of a served model can do beside their own: take the weights of another folder."""

    def swap_weights(self, folder: str) -> None:
        """Load the weights of the local model folder `folder` in place of those that answer now."""
        self.reload_weights(weights_path=folder)  # type: ignore[attr-defined]
        if self.device.type == "cpu":  # type: ignore[attr-defined]
            repack_output_head(self)


def build_engine(config: StudentConfig, model: Path, seed: int, on_gpu: bool) -> Any:
    """A vLLM engine over the local model folder `model`.

    `config` gives its limits and `seed` its sampler's default. Raises what vLLM raises when it cannot serve the model.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = engine_arguments(config, on_gpu, context_length(model, config.max_model_len)) | {
        "model": str(model),
        "seed": seed % 2**31,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if on_gpu:
        arguments["enable_sleep_mode"] = config.release_for_training == "sleep"
    return LLMEngine.from_engine_args(EngineArgs(**arguments))


def watch(processes: Sequence[BaseProcess], on_end: Callable[[str], None]) -> None:
    """Call `on_end` from a thread, with the reason, when one of `processes` ends.

    Without processes (on CPU the engine has none) nothing is watched.
    """

    def wait() -> None:
        ended = wait_for_any([process.sentinel for process in processes])
        names = ", ".join(process.name for process in processes if process.sentinel in ended)
        on_end(f"the engine failed: its process {names} ended")

    if processes:
        threading.Thread(target=wait, name="watch", daemon=True).start()


def die_with_parent() -> None:
    """A vLLM plugin, called early in every engine process: a child of an engine actor ends when the actor is killed."""
    if "TAILOR_RAY_ENGINE" not in os.environ or multiprocessing.parent_process() is None:
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() == 1:  # it died before the call above
        os._exit(1)
