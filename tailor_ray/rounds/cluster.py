"""The Ray cluster that carries a run, and the room on it.

It is found where there is one, and started and stopped where there is none. Room is what the nodes have and what an
autoscaler may bring. It is waited for within a bound.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil

from tailor_ray.config.run import ClusterConfig
from tailor_ray.errors import ConfigError, StageError
from tailor_ray.observe.faults import one_line
from tailor_ray.observe.logs import adopt_loggers
from tailor_ray.rounds import guard, watch

log = logging.getLogger(__name__)
Bundles = Sequence[dict[str, float]]
LOCAL_STARTS = 3
ANSWER_S = 10.0  # for a head to say its version
LOOK_EVERY_S, SAY_EVERY_S = 2.0, 60.0  # while it is waited for nodes
LONGEST_TMPDIR = 30  # bytes; Ray adds up to 75, and a socket's path has at most 107


@contextmanager
def connected(config: ClusterConfig) -> Iterator[bool]:
    """Be a driver of the cluster at `config.address`, RAY_ADDRESS, one that `ray start` started, or a local one.

    Yields whether it was started here; only that is stopped at the end. Raises ConfigError when a named address is no
    cluster that this process can use. On the command line the loss of the cluster ends the process; see `watch`.
    """
    # On, or the dashboard's Train tab stays empty; without a dashboard its actor has nobody to ask.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", str(int(config.dashboard)))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    adopt_loggers()  # Ray's own handlers came with the import
    if ray.is_initialized():  # a caller's session, a test's for one: it is theirs to end
        yield False
        return
    handler = signal.getsignal(signal.SIGTERM)
    with ExitStack() as opened:
        local = _init(config, opened)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which exits with another code than ours
        opened.callback(ray.shutdown)
        if local:  # Ray's agents on this node end with this process even when it is killed; see `guard`
            agents = []
            for child in _children():
                with suppress(psutil.Error):  # one that ended meanwhile
                    if "agent" in " ".join(child.cmdline()).lower():
                        agents.append(str(child.pid))
            command = [sys.executable, "-S", guard.__file__, str(os.getpid()), *agents]
            guarding = subprocess.Popen(command, start_new_session=True)
            opened.callback(guarding.wait)
            opened.callback(guarding.kill)
        if watch.process_is_ours:
            opened.enter_context(watch.Watch(local, config.max_restarts))
        yield local


def _init(config: ClusterConfig, opened: ExitStack) -> bool:
    """Connect; True when a local cluster was started for it."""
    import ray

    # Ray's own handlers would write to the terminal; without them its records reach ours (observe.logs).
    common: dict[str, Any] = {"namespace": "tailor_ray", "configure_logging": False, "log_to_driver": True}
    address = config.address or os.environ.get("RAY_ADDRESS") or _started_here()
    if address and address != "local":
        address = _probed(address)
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
            if "Version mismatch" in str(error):
                raise _other_version(address, " ".join(str(error).split())) from None
            raise _no_cluster(address, one_line(error)) from None
        return False
    if not address:
        log.info("no running Ray cluster found: starting a local one")
    settings = {
        "num_cpus": config.num_cpus,
        "object_store_memory": int(config.object_store_gib * 2**30),
        "include_dashboard": config.dashboard,
        "dashboard_host": "127.0.0.1",
        "_temp_dir": short_folder(opened),
    }
    _start(settings | common)
    return True


def _start(settings: dict[str, Any]) -> None:
    """Start a local cluster; where a busy machine takes longer than Ray's 30 s for it, once more, and once more."""
    import ray

    for left in reversed(range(LOCAL_STARTS)):
        before = _children()
        try:
            ray.init(address="local", **settings)
            return
        except OSError as error:
            raise ConfigError(
                f"a local Ray cluster could not be started ({one_line(error)}): it writes a token into HOME (not with "
                "RAY_AUTH_MODE=disabled) and its logs and sockets into RAY_TMPDIR; make both writable, or set them"
            ) from error
        except Exception as error:  # Ray raises plain ones for what it waited for in vain
            ray.shutdown()
            for process in _children() - before:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if not left or "timed out" not in str(error):
                raise StageError(
                    f"a local Ray cluster could not be started ({one_line(error)}); see the newest session in "
                    "RAY_TMPDIR and the free memory, then run the same command: it goes on there"
                ) from error
            log.warning("a local Ray cluster was not up in Ray's 30 s and is started again: %s", one_line(error))


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def short_folder(opened: ExitStack) -> str | None:
    """A folder for Ray's sockets where its own would be too long for one, deleted with `opened`.

    Returns None where Ray's own will do. Raises ConfigError where none can be made.
    """
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(given)) <= LONGEST_TMPDIR:
        return None
    try:
        folder = tempfile.mkdtemp(prefix="tr-", dir="/tmp")
    except OSError as error:
        raise ConfigError(
            f"the folder for temporary files, {given}, has {len(os.fsencode(given))} bytes, and Ray's sockets allow "
            f"{LONGEST_TMPDIR}; set RAY_TMPDIR to a shorter one (/tmp: {error.strerror})"
        ) from None
    log.info("the folder for temporary files, %s, is too long for Ray's sockets: %s is taken", given, folder)
    opened.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _started_here() -> str | None:
    """The cluster that `ray start` started on this node and that still answers.

    Not Ray's "auto": that also takes the local cluster of another run, whose cores are taken and which ends with it.
    """
    from ray._private.utils import read_ray_address

    address: str | None = read_ray_address(None)
    if address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError:
            return None
    return address


def _probed(address: str) -> str:
    """The host:port of the cluster that answers there; Ray itself would try for minutes, and not say what is wrong.

    Raises ConfigError: nothing or something else listens, another version, a token refused, an address that is none.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"the address {address!r} is Ray Client's, which cannot carry a run: engines and training need a driver "
            "on a node of the cluster. Give host:port of the head (6379) on such a node, or use `tailor-ray submit`"
        )
    if address == "auto":
        found = _started_here()
        if found is None:
            raise _no_cluster(address, "no cluster that `ray start` started runs on this node")
        return found
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"the address {address!r} is not host:port of a Ray cluster's head, as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error)) from None
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        _ask_version(address)
    return address


def _ask_version(address: str) -> None:
    """Ask the head itself, in one call of what Ray 2.60 speaks (private: its own client neither ends nor explains)."""
    import grpc
    import ray

    raylet: Any = importlib.import_module("ray._raylet")
    calls: Any = importlib.import_module("ray.core.generated.gcs_service_pb2")
    stubs: Any = importlib.import_module("ray.core.generated.gcs_service_pb2_grpc")
    asks = os.environ.get("RAY_AUTH_MODE", "").lower() != "disabled"
    token = raylet.AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True) if asks else ""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        stub = stubs.NodeInfoGcsServiceStub(channel)
        try:
            said = stub.CheckAlive(calls.CheckAliveRequest(), timeout=ANSWER_S, metadata=metadata, wait_for_ready=True)
        except grpc.RpcError as error:
            call: Any = error
            if call.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                sent = "the token that this process has" if token else "a client without a token"
                raise ConfigError(
                    f"the Ray cluster at {address} refused {sent}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
                    "~/.ray/auth_token) to that of its nodes, or RAY_AUTH_MODE=disabled where they have none"
                ) from None
            raise ConfigError(
                f"something listens at {address}, but it is no Ray cluster's head ({call.code().name}); give its "
                "host:port, or unset cluster.address and RAY_ADDRESS to have a local cluster started"
            ) from None
    if said.ray_version != ray.__version__:
        raise _other_version(address, f"it runs Ray {said.ray_version}, this process Ray {ray.__version__}")


def _other_version(address: str, said: str) -> ConfigError:
    return ConfigError(
        f"the Ray cluster at {address} and this process differ in version: {said}; install the cluster's versions "
        "here, or these on all of its nodes"
    )


def _no_cluster(address: str, said: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers at {address!r} ({said}); start one with `ray start --head`, or unset cluster.address "
        "and RAY_ADDRESS to have a local one started"
    )


class Nodes:
    """Of the cluster that this process is connected to. `wait_s` 0 waits for nothing: no node will join."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s

    def could_have(self, resource: str) -> float:
        """How much of `resource` the cluster has, or may grow to where new nodes are waited for.

        It is a number of CPUs or GPUs, or whatever else Ray counts.
        """
        import ray
        from ray._private.state import state  # private: ray 2.60 tells the autoscaler's limits nowhere else

        limits: dict[str, Any] = (state.get_max_resources_from_cluster_config() or {}) if self.wait_s else {}
        return max(ray.cluster_resources().get(resource, 0.0), limits.get(resource, 0.0))

    def fit(self, bundles: Bundles) -> bool:
        """Whether the nodes that are there have room for all bundles, were nothing else on them."""
        import ray

        left = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        return fits(bundles, left)

    def wait_for(self, bundles: Bundles, what: str) -> bool:
        """Ask the autoscaler for room for all `bundles` and wait for it.

        Returns whether there is room in time. `what` is for the log.
        """
        if self.fit(bundles):
            return True
        if not self.wait_s:
            return False
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[dict(bundle) for bundle in bundles])
        started, said = time.monotonic(), -SAY_EVERY_S
        try:
            while (waited := time.monotonic() - started) < self.wait_s:
                if waited - said >= SAY_EVERY_S:
                    said = waited
                    log.warning(
                        "waiting for nodes: %s takes %s, the cluster has %s (%.0f of cluster.wait_for_nodes_s=%.0f s)",
                        *(what, shown(bundles), self.shown(), waited, self.wait_s),
                    )
                time.sleep(min(LOOK_EVERY_S, self.wait_s))
                if self.fit(bundles):
                    return True
        finally:
            request_resources(bundles=[])  # what runs there keeps the nodes by itself
        return False

    def shown(self) -> str:
        import ray

        found = ray.cluster_resources()
        return f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs"


def fits(bundles: Bundles, nodes: list[dict[str, Any]]) -> bool:
    """Whether each of the `bundles` finds a place on one of the `nodes`: first fit, the largest first.

    Both say amounts by resource. Those of `nodes` are what is free, and are changed.
    """
    for bundle in sorted(bundles, key=lambda bundle: -sum(bundle.values())):
        place = next((node for node in nodes if all(node.get(name, 0) >= n for name, n in bundle.items())), None)
        if place is None:
            return False
        for name, n in bundle.items():
            place[name] -= n
    return True


def shown(bundles: Bundles) -> str:
    one = " and ".join(f"{n:g} {name}" for name, n in bundles[0].items()) if bundles else "nothing"
    return f"{len(bundles)} × ({one})"
