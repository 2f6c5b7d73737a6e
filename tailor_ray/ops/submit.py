"""`tailor-ray submit`: the same run as a Ray job, through the cluster's Jobs API, with its log followed here.

What travels: this package and one resolved configuration. No key does: `runtime_env` is shown in clear in the
dashboard, so the teacher's key must be in the environment (or a mounted file) of the cluster's nodes.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailor_ray.config import RunConfig
from tailor_ray.errors import ConfigError, StageError, Stopped, UserError
from tailor_ray.layout import RUN_FILE

PACKAGE = Path(__file__).resolve().parent.parent
EXIT_CODES: dict[int, type[Exception]] = {2: UserError, 3: Stopped}


def submit(config: RunConfig, address: str, follow: bool, say: Callable[[str], None]) -> str:
    """Submit and return the job's id; with `follow`, pass its log lines to `say` and wait for its end.

    Raises ConfigError when the run could not be found again by a later job, or the address does not answer; UserError,
    Stopped or StageError as the job's own exit code says.
    """
    _check(config)
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="tailor-submit-") as scratch:
        folder = Path(scratch)
        (folder / RUN_FILE).write_text(config.to_yaml(), encoding="utf-8")
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        job: str = client.submit_job(
            entrypoint=f"python -m tailor_ray run {RUN_FILE}",
            runtime_env={"working_dir": scratch},
            metadata={"tailor_run": config.name, "tailor_storage": config.storage},
        )
    say(f"submitted {job}; `ray job stop {job}` stops it, and submitting again goes on")
    if follow:
        asyncio.run(_follow(client, job, say))
        raise_for(client.get_job_info(job), job)
    return job


def _check(config: RunConfig) -> None:
    if "://" not in config.storage and not Path(config.storage).is_absolute():
        raise ConfigError(
            f"storage={config.storage!r} is relative: a job would write it into a folder that Ray deletes; "
            "set storage to a URI or an absolute path that all nodes share"
        )
    for setting, path in (("student.model", config.student.model), ("task.path", config.task.path)):
        if path is not None and path.startswith((".", "~")):
            raise ConfigError(f"{setting}={path!r} is relative to this machine; give a path of the cluster's nodes")


def _client(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
        raise ConfigError(
            f"no Ray Jobs API answers at {address!r} ({error}); give the dashboard's address, "
            "as http://127.0.0.1:8265, and the token in RAY_AUTH_TOKEN where the cluster asks for one"
        ) from None


async def _follow(client: Any, job: str, say: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job):
        for line in text.splitlines():
            say(line)


def raise_for(info: Any, job: str) -> None:
    if str(info.status) == "SUCCEEDED":
        return
    code = info.driver_exit_code
    message = f"job {job} ended as {info.status}, exit code {code}: {info.message}"
    if str(info.status) == "STOPPED":
        raise Stopped(f"{message}; submitting again goes on")
    raise EXIT_CODES.get(code or 1, StageError)(message)
