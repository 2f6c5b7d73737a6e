"""`tailor-ray submit`: the same run as a Ray job, through the cluster's Jobs API, with its log followed here.

What travels: this package, one resolved configuration, and what it names by a relative path. That is questions and the
module that grades. No key travels, for the dashboard shows `runtime_env` in clear. The teacher's key must be in the
environment of the cluster's nodes, or in a file there.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from tailor_ray.config import RunConfig
from tailor_ray.errors import ConfigError, StageError, Stopped, UserError, masked
from tailor_ray.layout import RUN_FILE
from tailor_ray.observe.faults import one_line

PACKAGE = Path(__file__).resolve().parent.parent
EXIT_CODES: dict[int, type[Exception]] = {2: UserError, 3: Stopped}
SHIPPED = "shipped"  # the folder of a job's working folder with this machine's questions
MOST_SHIPPED = 200 << 20  # bytes; Ray itself refuses a working folder above 500 MB


def submit(config: RunConfig, address: str, follow: bool, say: Callable[[str], None]) -> str:
    """Submit to the Jobs API at `address` and return the job's id.

    With `follow`, its log lines go to `say` until it ends.
    Raises ConfigError when the run could not be found again by a later job, or the address does not answer; UserError,
    Stopped or StageError as the job's own exit code says; Stopped when a signal ends the following, not the job.
    """
    _check(config)
    _check_address(address)
    with tempfile.TemporaryDirectory(prefix="tailor-submit-") as scratch:
        folder = Path(scratch)
        config = _ship(config, folder)
        client = _client(address)
        (folder / RUN_FILE).write_text(config.to_yaml(), encoding="utf-8")
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        try:
            job: str = client.submit_job(
                entrypoint=f"python -m tailor_ray run {RUN_FILE}",
                runtime_env={"working_dir": scratch},
                metadata={"tailor_run": config.name, "tailor_storage": masked(config.storage)},
            )
        except (RuntimeError, OSError) as error:
            raise _refused(address, error) from None
    say(f"submitted {job}; `ray job stop {job}` stops it, and submitting again goes on")

    async def follow_log() -> None:
        async for text in client.tail_job_logs(job):
            for line in text.splitlines():
                say(line)

    if follow:
        runs_on = f"job {job} runs on; `ray job logs -f {job}` follows it, `ray job stop {job}` stops it"
        try:
            asyncio.run(follow_log())
            info = client.get_job_info(job)
        except KeyboardInterrupt:
            raise Stopped(f"no longer followed: {runs_on}") from None
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise Stopped(f"the cluster at {address} does not answer any more ({one_line(error)}); {runs_on}") from None
        raise_for(info, job)
    return job


def _check(config: RunConfig) -> None:
    if "://" not in config.storage and not Path(config.storage).is_absolute():
        raise ConfigError(
            f"storage={config.storage!r} is relative: a job would write it into a folder that Ray deletes; "
            "set storage to a URI or an absolute path that all nodes share"
        )
    models = [("student.model", config.student.model)]
    models += [("teacher.serve", endpoint.serve) for endpoint in config.teacher.teachers if endpoint.serve]
    for setting, path in models:
        if path.startswith((".", "~")) or ("://" not in path and not path.startswith("/") and Path(path).is_dir()):
            raise ConfigError(
                f"{setting}={path!r} is relative to this machine; give a path of the cluster's nodes, a hub id, or a "
                "storage URI"
            )


def _ship(config: RunConfig, folder: Path) -> RunConfig:
    """Put into the job's working folder what the settings name relative to this one: questions, a module that grades.

    An absolute path is one of the cluster's nodes.
    """
    if config.task.answer_function is not None:
        # One of the working folder; an installed one is found on the nodes, which need it installed as well.
        name = config.task.answer_function.partition(":")[0].partition(".")[0]
        if Path(name).is_dir():
            shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        if Path(f"{name}.py").is_file():
            shutil.copy(f"{name}.py", folder)
    path = config.task.path
    if path is None or Path(path).is_absolute():
        return config
    here = Path(path).expanduser().resolve()
    if not here.is_dir():
        raise ConfigError(
            f"task.path={path!r} is no folder of this machine ({here}); give one, which travels with the job, or an "
            "absolute path of the cluster's nodes"
        )
    size = sum(file.stat().st_size for file in here.rglob("*") if file.is_file())
    if size > MOST_SHIPPED:
        raise ConfigError(
            f"task.path={path!r} holds {size >> 20} MiB, and up to {MOST_SHIPPED >> 20} travel with a job; copy it to "
            "the cluster's nodes and give its absolute path there"
        )
    shutil.copytree(here, folder / SHIPPED)
    return config.model_copy(update={"task": config.task.model_copy(update={"path": SHIPPED})})


def _client(address: str) -> Any:
    """Raises ConfigError where no Jobs API of this version and token answers."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise ConfigError(
            f"the Ray cluster at {masked(address)} refused the token of this process; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN (or ~/.ray/auth_token) to that of its nodes"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise _refused(address, error) from None


def _check_address(address: str) -> None:
    """Raise ConfigError for what is no dashboard's: Ray would take some for modules to import, and wait for others."""
    try:
        found = urlsplit(address)
        good = found.scheme in ("http", "https") and found.hostname and found.port != 0
    except ValueError:  # brackets, or a port above 65535
        good = False
    if not good:
        host = re.fullmatch(r"(?:ray://)?([\w.-]+):\d+", address)
        raise ConfigError(
            f"--address {masked(address)!r} is no address of a dashboard, whose Jobs API takes the run; give it as "
            f"http://{host[1] if host else '127.0.0.1'}:8265"
        )


def _refused(address: str, error: Exception) -> ConfigError:
    said = one_line(error)
    if re.search(r"version", str(error), re.IGNORECASE):
        return ConfigError(
            f"the Ray cluster at {address} runs another version than this command: {said}; install the same version "
            "here as on its nodes"
        )
    return ConfigError(
        f"no Ray Jobs API answers at {masked(address)!r} ({said}); give the dashboard's address, "
        "as http://127.0.0.1:8265, and the token in RAY_AUTH_TOKEN where the cluster asks for one"
    )


def raise_for(info: Any, job: str) -> None:
    """Raise what the exit code of an ended job says, by Ray's `info` on it; nothing where it succeeded."""
    if str(info.status) == "SUCCEEDED":
        return
    code = info.driver_exit_code
    message = f"job {job} ended as {info.status}, exit code {code}: {info.message}"
    if str(info.status) == "STOPPED":
        raise Stopped(f"{message}; submitting again goes on")
    raise EXIT_CODES.get(code or 1, StageError)(message)
