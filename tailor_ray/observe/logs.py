"""Logs of the driver: everything to the run's log file, warnings and errors to stderr as well, tracebacks never.

`setup_logging` comes first. `adopt_ray_output` comes after `ray.init`: what Ray's workers print (vLLM, DeepSpeed) then
goes the same way instead of to the terminal. Both may be called again. Stdout stays free for results.
`native_output_to_log` takes what libraries write past Python (Ray's C++, oneMKL) to the same file.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

from tailor_ray.errors import masked
from tailor_ray.observe.faults import one_line

CHATTY = ("ray", "ray.data", "ray.train", "ray.serve", "vllm", "transformers", "datasets", "httpx", "DeepSpeed")
"""Libraries that write to the terminal by handlers of their own."""

LOUD = re.compile(r"\b(WARNING|ERROR|CRITICAL|FATAL)\b|^\w*(?:Error|Exception)\b|\] [EF] ")
"""A worker's line that a person should see; the first group is its level where it states one."""

RAY_MARKS = ("__ray_tqdm_magic_token__", ":job_id:", ":actor_name:", ":task_name:")
"""Lines by which Ray's processes talk to each other, not to people."""

EXPECTED = re.compile(
    "|".join(
        (
            "Progress bars disabled",  # ours are shown
            "The argument ``concurrency`` is deprecated",  # said of Ray Data by Ray Data
            "The maximum number of concurrent tasks for",  # few shards: fewer tasks than allowed
            "Token authentication is enabled",  # the README says what it means
            "Setting accelerator to CPU",  # DeepSpeed, on a machine without a GPU
            "Triton is installed, but",  # vLLM, likewise
            "Failed to determine local IP",  # Ray, on a machine without a network: it takes loopback
            "oneMKL|Intel MKL",
        )
    )
)
"""Warnings about what a run does on purpose: they go to the log file alone."""

TRACEBACK = "Traceback (most recent call last)"
LOG_BYTES, OLD_LOGS = 64 << 20, 3  # of a run's log: at most so much in a file, and so many files before it

workers_log = logging.getLogger("tailor_ray.workers")


class RedactingFormatter(logging.Formatter):
    """Secrets are written as ***, known ones and those in URIs, in messages and in tracebacks."""

    def __init__(self, layout: str, secrets: Iterable[str]) -> None:
        super().__init__(layout)
        self._secrets = tuple(secret for secret in secrets if secret)

    def format(self, record: logging.LogRecord) -> str:
        text = masked(super().format(record))
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class ConsoleFormatter(RedactingFormatter):
    """A line a record: of an exception what it says, for its frames are in the log file."""

    def formatException(self, found: Any) -> str:
        return one_line(found[1])

    def formatMessage(self, record: logging.LogRecord) -> str:
        before, mark, after = super().formatMessage(record).partition(TRACEBACK)
        last = [line for line in after.splitlines() if line.strip()][-1:]
        return before.rstrip(" \n:") + "".join(f": {line.strip()}" for line in last) if mark else before


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is now: live bars put a stream of their own there."""

    def __init__(self, level: int) -> None:
        logging.Handler.__init__(self, level)
        self.last: tuple[float, str] | None = None  # when and what

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.created, self.format(record)
        super().emit(record)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class RunLogHandler(RotatingFileHandler):
    """The run's log, bounded in size. A full disk is said on stderr once, by one line: the run outlives its log."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", maxBytes=LOG_BYTES, backupCount=OLD_LOGS)
        self._failed = False

    def doRollover(self) -> None:
        super().doRollover()
        if _terminal is not None and self.stream is not None:
            os.dup2(self.stream.fileno(), 2)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 (logging's own signature)
        if not self._failed:
            self._failed = True
            sys.stderr.write(f"ERROR the log file {self.baseFilename} cannot be written: {sys.exc_info()[1]}\n")


def setup_logging(run_log: Path | None, level: int = logging.INFO, secrets: Iterable[str] = ()) -> None:
    """Send everything from `level` up to `run_log` and warnings to stderr; `secrets` are written as ***.

    Raises OSError when the log file cannot be opened.
    """
    secrets = tuple(secrets)
    console = StderrHandler(logging.WARNING)
    console.addFilter(lambda record: record.levelno > logging.WARNING or not EXPECTED.search(record.getMessage()))
    console.setFormatter(ConsoleFormatter("%(levelname)s %(message)s", secrets))
    handlers: list[logging.Handler] = [console]
    if run_log is not None:
        run_log.parent.mkdir(parents=True, exist_ok=True)
        file = RunLogHandler(run_log)
        file.setLevel(level)  # Ray Data's loggers emit DEBUG whatever the root says
        file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", secrets))
        handlers.append(file)
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, StderrHandler | RunLogHandler)]:
        root.removeHandler(old)
        if isinstance(old, RunLogHandler):
            old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
    adopt_loggers()


def last_warning() -> tuple[float, str] | None:
    """The warning or error that the terminal was shown last.

    Returns when, in seconds since the epoch, and its line; None before the first one.
    """
    found = (handler for handler in logging.getLogger().handlers if isinstance(handler, StderrHandler))
    return next((handler.last for handler in found), None)


def run_log() -> Path | None:
    """The log file that is written to now."""
    found = (handler for handler in logging.getLogger().handlers if isinstance(handler, RunLogHandler))
    return next((Path(handler.baseFilename) for handler in found), None)


_terminal: int | None = None  # a descriptor of what was stderr, once native output goes to the log


def native_output_to_log() -> None:
    """From now on only what Python writes to sys.stderr reaches the terminal.

    It changes file descriptor 2, so it is for a process that is ours alone. Without a log file nothing happens.
    """
    global _terminal
    path = run_log()
    if path is None:
        return
    sys.stderr.flush()
    if _terminal is None:
        _terminal = os.dup(2)
        sys.stderr = os.fdopen(_terminal, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 2)
    os.close(log)


def native_output_back() -> None:
    """Undo `native_output_to_log`, for the process that takes this one's place."""
    if _terminal is not None:
        os.dup2(_terminal, 2)


def adopt_loggers() -> None:
    """Take the console handlers of chatty libraries away, so that their records reach ours alone."""
    for name in CHATTY:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
        logger.propagate = True


@contextmanager
def own_handlers() -> Iterator[None]:
    """Keep our handlers over the import of ray.serve.llm, which puts others in their place and brings vLLM in."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        adopt_loggers()


def adopt_ray_output() -> None:
    """Route what Ray's workers print into our logging, and switch Ray Data's bars off.

    It wants `ray.init` before it.
    """
    import ray._private.worker as driver
    import ray.data  # configures its loggers on import: they can be adopted only afterwards
    import ray.train
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    adopt_loggers()
    for name in ("ray_print_logs", WorkerLines.name):
        dispatcher.remove_handler(name)
    lines = WorkerLines()
    dispatcher.add_handler(WorkerLines.name, lines)
    # What the cluster says of lost processes would go to stdout; ray 2.60 has no other switch for it.
    driver.print_worker_logs = lambda batch, *_: lines(batch)


class WorkerLines:
    """Takes Ray's batches of worker lines {"pid", "ip", "lines", "actor_name", "task_name", …}."""

    name = "tailor_run_log"

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, batch: dict[str, Any]) -> None:
        if batch.get("pid") == "autoscaler":  # its status, every few seconds
            return
        who = batch.get("actor_name") or batch.get("task_name") or "worker"
        for line in (line for text in batch["lines"] for line in text.splitlines()):
            if not line.strip() or line.startswith(RAY_MARKS):
                continue
            workers_log.log(self._level(line), "(%s pid=%s) %s", who, batch.get("pid"), line.rstrip())

    def _level(self, line: str) -> int:
        """Loud lines keep their level the first time; what differs only in numbers is chatter from then on."""
        found = LOUD.search(line)
        if not found:
            return logging.INFO
        shape = re.sub(r"\d+|0x[0-9a-f]+", "#", line)
        with self._lock:
            if shape in self._said:
                return logging.INFO
            self._said.add(shape)
        return logging.WARNING if found[1] == "WARNING" else logging.ERROR
