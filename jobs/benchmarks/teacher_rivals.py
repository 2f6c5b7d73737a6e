"""What the teacher pool is compared with: Curator and distilabel, each installed into an environment of its own.

`rivals(folder)` makes the environments, which takes a registry, and leaves out what does not install; `ask` has one of
them put `count` questions to an endpoint, as its documentation says to. Called as a script by `ask`, in the rival's own
environment: `python teacher_rivals.py NAME URL COUNT`, which prints nothing that is read.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

IN_FLIGHT = 256
PACKAGES = {
    "curator": ["bespokelabs-curator"],
    "distilabel": ["distilabel[openai]", "requests"],  # which it imports and does not ask for
}
MANY = 10**7  # a limit a minute that is never reached


def rivals(folder: Path) -> dict[str, Path]:
    """Interpreters by name, of those that could be installed."""
    uv, found = Path(sys.prefix) / "bin" / "uv", {}
    for name, packages in PACKAGES.items():
        home = folder / f"environment-{name}"
        python = home / "bin" / "python"
        commands = [["venv", "--quiet", str(home)], ["pip", "install", "--quiet", "--python", str(python), *packages]]
        try:
            for command in commands:
                # away from this project's pyproject.toml, whose constraints are not theirs
                subprocess.run([str(uv), *command], check=True, capture_output=True, text=True, timeout=300, cwd=folder)
        except (OSError, subprocess.SubprocessError) as error:
            said = str(getattr(error, "stderr", None) or error).strip().splitlines()
            print(f"{name} does not install here and is left out: {said[-1] if said else error}", flush=True)
        else:
            found[name] = python
    return found


def ask(python: Path, name: str, url: str, count: int, folder: Path) -> None:
    """Have a rival ask; raises with what it said when it fails."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OPENAI_API_KEY": "none-needed",
        "NO_PROXY": "127.0.0.1",
        "TELEMETRY_ENABLED": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "CURATOR_DISABLE_CACHE": "true",
        "HF_HUB_OFFLINE": "1",
        "TIKTOKEN_CACHE_DIR": str(folder / "tiktoken"),
    }
    command = [str(python), __file__, name, url, str(count)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=420)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed: {(done.stderr or done.stdout).strip()[-600:]}")


def question(number: int) -> str:
    """As long as the questions that our pool asks in this benchmark."""
    return f"Number {number}: " + "a farmer has twelve rows of apple trees and sells what grows on them. " * 8


def curator(url: str, count: int) -> None:
    import tiktoken
    from bespokelabs.curator import LLM

    # Its estimates of tokens need a download; a token a byte does as well, for no limit on tokens is given.
    alphabet = {bytes([value]): value for value in range(256)}
    tokens = tiktoken.Encoding("bytes", pat_str=r"\S+|\s+", mergeable_ranks=alphabet, special_tokens={})
    tiktoken.get_encoding = lambda encoding_name: tokens  # noqa: ARG005

    limits = {
        "max_requests_per_minute": MANY,
        "max_tokens_per_minute": MANY * 1000,
        "max_concurrent_requests": IN_FLIGHT,
    }
    model = LLM(
        model_name="mock-teacher",
        backend="openai",
        backend_params={"base_url": url, **limits},
        generation_params={"temperature": 0.7, "max_tokens": 512},
    )
    replies = model([question(number) for number in range(count)])
    assert len(replies.dataset) == count


def distilabel(url: str, count: int) -> None:
    """It has no limit to set: IN_FLIGHT is the size of its batches."""
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline(name="benchmark") as pipeline:
        rows = [{"instruction": question(number)} for number in range(count)]
        load = LoadDataFromDicts(data=rows, batch_size=IN_FLIGHT)
        model = OpenAILLM(
            model="mock-teacher", base_url=url, generation_kwargs={"temperature": 0.7, "max_new_tokens": 512}
        )
        load >> TextGeneration(llm=model, input_batch_size=IN_FLIGHT)
    made = pipeline.run(use_cache=False)
    assert len(made["default"]["train"]) == count


if __name__ == "__main__":
    {"curator": curator, "distilabel": distilabel}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
