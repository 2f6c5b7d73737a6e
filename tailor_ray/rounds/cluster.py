"""The Ray cluster that carries a run: found where there is one, started and stopped where there is none."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tailor_ray.config.rounds import ClusterConfig
from tailor_ray.errors import ConfigError
from tailor_ray.observe.logs import adopt_loggers
from tailor_ray.rounds import guard

log = logging.getLogger(__name__)


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Be a driver of the cluster at `cluster.address`, RAY_ADDRESS, one that `ray start` started, or a local one.

    Only what was started here is stopped at the end. Raises ConfigError when a named address does not answer.
    """
    # On, or the dashboard's Train tab stays empty; without a dashboard its actor has nobody to ask.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", str(int(config.dashboard)))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    adopt_loggers()  # Ray's own handlers came with the import
    if ray.is_initialized():  # a caller's session, a test's for one: it is theirs to end
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    local = _init(config)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which exits with another code than ours
    with _guarded_agents() if local else nullcontext():
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _guarded_agents() -> Iterator[None]:
    """While this lasts, Ray's agents on this node end with this process even when it is killed; see `guard`."""
    import psutil

    children = psutil.Process().children(recursive=True)
    agents = [str(child.pid) for child in children if "agent" in " ".join(child.cmdline()).lower()]
    process = subprocess.Popen(
        [sys.executable, "-S", guard.__file__, str(os.getpid()), *agents], start_new_session=True
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _init(config: ClusterConfig) -> bool:
    """Connect; True when a local cluster was started for it."""
    import ray

    # Ray's own handlers would write to the terminal; without them its records reach ours (observe.logs).
    common: dict[str, Any] = {"namespace": "tailor_ray", "configure_logging": False, "log_to_driver": True}
    address = config.address or os.environ.get("RAY_ADDRESS") or _started_here()
    if address and address != "local":
        try:
            _knock(address)
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
            raise ConfigError(
                f"no Ray cluster answers at {address!r} ({error}); start one with `ray start --head`, give the token "
                "of one that asks for it (RAY_AUTH_MODE=token with RAY_AUTH_TOKEN), or unset cluster.address and "
                "RAY_ADDRESS to have a local one started"
            ) from None
        return False
    if not address:
        log.info("no running Ray cluster found: starting a local one")
    ray.init(
        address="local",
        num_cpus=config.num_cpus,
        object_store_memory=int(config.object_store_gib * 2**30),
        include_dashboard=config.dashboard,
        dashboard_host="127.0.0.1",
        **common,
    )
    return True


def _started_here() -> str | None:
    """The cluster that `ray start` started on this node and that still answers.

    Not Ray's "auto": that also takes the local cluster of another run, whose cores are taken and which ends with it.
    """
    from ray._private.utils import read_ray_address

    address: str | None = read_ray_address(None)
    try:
        if address:
            _knock(address)
    except ConnectionError:
        return None
    return address


def _knock(address: str) -> None:
    """Raise ConnectionError when nothing listens at host:port: Ray itself would try for more than two minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(error.strerror or str(error)) from None
