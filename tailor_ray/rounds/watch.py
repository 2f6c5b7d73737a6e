"""Watches over the Ray cluster of this process, and has the process take itself up again when its own cluster is lost.

Ray's driver does not come back from the loss of its raylet or of the GCS. Calls hang, and after a minute Ray ends the
process. So the command line, whose process is its own, leaves at once: what a run has committed is in its folder. Where
the cluster was its own, it replaces itself by the same command, at most `cluster.max_restarts` times. Where it is
somebody else's, it exits with 3 and a sentence. A caller of the Python interface gets Ray's errors.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

from tailor_ray.errors import Stopped, TailorError

log = logging.getLogger(__name__)

process_is_ours = False  # the command line says so
LOOK_EVERY_S = 1.0
GCS_MAY_REST_S = 40.0  # somebody else's may have a database and come back; Ray's own patience ends after 60 s
COUNT = "TAILOR_RAY_RESTARTS"  # environment: how often this command has taken itself up again

_error: TailorError | None = None


def stop_run(error: TailorError) -> None:
    """Have the main thread leave what it does. May be called from any thread.

    It gets a KeyboardInterrupt; `reason` then returns the first `error` that was given.
    """
    global _error
    if _error is None:
        _error = error
        main = threading.main_thread()
        signal.pthread_kill(main.ident or 0, signal.SIGINT)


def reason() -> TailorError | None:
    """What `stop_run` was given; returned once, None after that and where nothing was."""
    global _error
    error, _error = _error, None
    return error


class Watch:
    """A context manager: while it lasts, the cluster that ray is connected to is looked at every second."""

    def __init__(self, started_here: bool, max_restarts: int) -> None:
        from ray._private.worker import _global_node  # private: ray 2.60 says nowhere else where its raylet listens

        node: Any = _global_node
        self._gcs: str = node.gcs_address
        self._raylet: str = node.raylet_socket_name
        self._own, self._max_restarts = started_here, max_restarts
        self._gcs_seen = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="tailor-cluster", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """An error that comes from the loss of the cluster ends as that; a signal is what the user wanted."""
        wanted = error is None or isinstance(error, KeyboardInterrupt | SystemExit | TailorError)
        if not wanted and (what := self._lost(patient=False)):
            self._leave(what)
        self._ended.set()

    def _look_on(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            if self._lost(patient=not self._own):
                time.sleep(2 * LOOK_EVERY_S)  # a signal to all processes reaches Ray's first
                what = self._lost(patient=not self._own)
                if what and not self._ended.is_set():
                    self._leave(what)

    def _lost(self, patient: bool) -> str:
        """What is gone for good, or an empty text."""
        if self._raylet and not _listens(self._raylet):
            return "Ray's process on this node (the raylet) ended"
        if _listens(self._gcs):
            self._gcs_seen = time.monotonic()
        elif not patient or time.monotonic() - self._gcs_seen > GCS_MAY_REST_S:
            return f"the head of the Ray cluster (GCS at {self._gcs}) ended"
        return ""

    def _leave(self, what: str) -> NoReturn:
        self._ended.set()
        restarts = int(os.environ.get(COUNT, "0"))
        again = self._own and restarts < self._max_restarts
        if again:
            todo = f"a new cluster is started and the run goes on ({restarts + 1} of {self._max_restarts} times)"
        elif self._own:
            todo = f"it was started anew {restarts} times (cluster.max_restarts); the same command goes on"
        else:
            todo = "start the cluster again, then run the same command: it goes on there"
        text = f"{what}; what was committed is kept; {todo}"
        log.info("%s", text)
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # live bars hide it
        sys.stderr.write(f"{show_cursor}tailor-ray: {text}\n")
        sys.stderr.flush()
        _end_children()
        if not again:
            os._exit(Stopped.exit_code)
        from tailor_ray.observe.logs import native_output_back

        native_output_back()
        os.environ[COUNT] = str(restarts + 1)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _listens(address: str) -> bool:
    """Whether anything answers at host:port or at a socket's path."""
    kind, target = socket.AF_UNIX, address.removeprefix("unix://")
    where: Any = target
    if not target.startswith("/"):
        host, _, port = target.rpartition(":")
        kind, where = socket.AF_INET6 if ":" in host else socket.AF_INET, (host.strip("[]"), int(port))
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(where)
        except TimeoutError:
            return True  # busy, not gone
        except OSError:
            return False
    return True


def _end_children() -> None:
    """All that this process started: what is left of a cluster would hold its memory and ports."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    deadline = time.monotonic() + 10
    with suppress(ChildProcessError):  # until there is none left, for nobody else will ask for their ends
        while os.waitpid(-1, os.WNOHANG)[0] or time.monotonic() < deadline:
            time.sleep(0.01)
