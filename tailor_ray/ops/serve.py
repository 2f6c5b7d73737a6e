"""`tailor-ray serve WHAT` and `tailor-ray mock-teacher`: OpenAI-compatible APIs that serve until they are stopped.

The first serves a run's student or any model, on a cluster. The second serves the mock teacher, in this process alone.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tailor_ray.config.base import explain
from tailor_ray.config.run import ClusterConfig
from tailor_ray.config.student import StudentConfig
from tailor_ray.config.teacher import MockConfig
from tailor_ray.demo.mock_server import MockOptions, serve_mock
from tailor_ray.errors import ConfigError, DataError, UserError
from tailor_ray.layout import RUN_FILE
from tailor_ray.models import identify, resolve
from tailor_ray.observe.logs import adopt_ray_output, native_output_to_log, own_handlers, setup_logging
from tailor_ray.rounds import watch
from tailor_ray.rounds.cluster import connected
from tailor_ray.serving.served import Served, config_of, newest_round, student_of
from tailor_ray.storage import Store
from tailor_ray.storage.store import node_cache


def serve(
    target: str, host: str, port: int, route: str, reload: bool, replicas: int, say: Callable[[str], None]
) -> None:
    """Serve `target`, as `find` reads it, until SIGTERM or SIGINT; `say` gets the address once it answers.

    The API lies at `route` of `host`:`port`; `replicas` engines share its requests, and `reload` follows a run.
    Raises UserError for a run, round or model that is not there, before anything is started.
    """
    if not re.fullmatch(r"/|(/[\w.~-]+)+/?", route):
        raise ConfigError(f"--route {route!r} is no path that begins with /; give one, as /student")
    served, cluster = find(target, reload)
    served = replace(served, replicas=replicas, application=f"student{route.rstrip('/').replace('/', '-')}")
    setup_logging(node_cache() / "logs" / f"serve-{served.application}.log")
    if watch.process_is_ours:
        native_output_to_log()
    with connected(cluster):
        adopt_ray_output()
        with own_handlers():
            from tailor_ray.serving.deployment import hosted
        with hosted(served, host, port, route) as url, suppress(KeyboardInterrupt):
            which = f", round {served.find()[0]}{', and follows the run' if reload else ''}" if served.run else ""
            say(f"{url} answers for model {served.name!r}{which}")
            threading.Event().wait()


def find(target: str, reload: bool) -> tuple[Served, ClusterConfig]:
    """What `target` stands for: `RUN[@ROUND]`, or a model by local folder, hub id[@REVISION] or storage URI.

    Returns what is served and the cluster that carries it, of a run its own. Raises DataError for what is neither and
    ConfigError where `reload` has no run to follow.
    """
    name, tail = split_target(target)
    run = Store.open(name)
    number = int(tail) if tail and re.fullmatch(r"[0-9]{1,6}", tail) else None
    if run.exists(RUN_FILE):
        config = config_of(run)
        if tail and number is None:
            raise DataError(f"{target} is a run, and {tail!r} is not the number of one of its rounds")
        if reload and number is not None:
            raise ConfigError(f"{target} names a round, and --reload follows the newest: leave one of them out")
        resolve(student_of(run, newest_round(run) if number is None else number), verify=True)  # damaged: said at once
        return Served(config.name, run=run.uri, round=number, reload=reload, engine=config.student), config.cluster
    if reload:
        raise ConfigError(f"{target} is no run folder, and --reload follows a run: leave it out")
    if (
        "://" not in name
        and not Path(name).expanduser().is_dir()
        and (name.count("/") != 1 or name.startswith((".", "~")))
    ):
        raise DataError(
            f"{target} is no run folder, for it has no {RUN_FILE}, and no model; give the folder <storage>/<name>, "
            "or a model's local folder, hub id (owner/name) or storage URI"
        )
    model = identify(name, tail, "the model to serve")
    return Served(model.uri.rstrip("/").rpartition("/")[2], model=model, engine=StudentConfig()), ClusterConfig()


def split_target(target: str) -> tuple[str, str | None]:
    """`runs/demo@2` → ("runs/demo", "2").

    The second is None where no part of `target` without a slash follows an @.
    """
    match = re.fullmatch(r"(.+)@([\w.-]+)", target)
    return (match[1], match[2]) if match else (target, None)


def serve_mock_teacher(host: str, port: int, faults: Sequence[str], key_env: str | None, **settings: Any) -> None:
    """Serve until interrupted; the first line of stdout is the address.

    `faults` are texts NAME=SHARE, `key_env` names the variable with the key that clients must send, and `settings` are
    those of MockConfig. Raises UserError for a share that is no number or a variable that is empty.
    """
    try:
        config = MockConfig(**settings)
    except ValidationError as error:
        raise explain(error, MockConfig, "the command line") from None
    key = None
    if key_env is not None:
        key = os.environ.get(key_env)
        if not key:
            raise UserError(f"--key-env {key_env}: this variable is empty; set it to the key that clients must send")
    shares = []
    for text in faults:
        name, _, share = text.partition("=")
        try:
            shares.append((name, float(share)))
        except ValueError:
            raise UserError(f"--fault {text!r} must have the form NAME=SHARE, as http_500=0.1") from None
    serve_mock(MockOptions(config, host, port, tuple(shares), key=key), sys.stdout)
