"""A mock teacher in a process of its own, for as long as a `with` block lasts, and never longer than its parent.

The process is this module too: it takes its options from one JSON argument, so that a parent can start it with any.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from tailor_ray.config.teacher import MOCK, MockConfig, TeacherConfig
from tailor_ray.demo.mock_server import MockOptions, serve_mock
from tailor_ray.errors import UserError

PR_SET_PDEATHSIG = 1
STOP_S = 10.0  # until a mock that does not end by itself is killed


class MockProcess:
    """Starts on `start` (or `with`) and answers once that returns; `base_url` says where."""

    def __init__(self, options: MockOptions) -> None:
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.base_url = ""

    def start(self) -> Self:
        """Raises UserError with what the process said when it cannot serve."""
        command = [sys.executable, "-m", __name__, encode_options(self._options), str(os.getpid())]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self._options.key is not None:
            environment["TAILOR_RAY_MOCK_KEY"] = self._options.key
        with tempfile.TemporaryFile("w+") as said:  # not a pipe: one that nobody reads fills up and stops the writer
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment)
            assert self._process.stdout is not None
            self.base_url = self._process.stdout.readline().strip()
            if not self.base_url:
                self._process.communicate()
                said.seek(0)
                raise UserError(f"the mock teacher did not start: {said.read().strip()[-500:]}")
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End it; what it is saying it says and logs first, if that takes no longer than half a second."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def open_teacher(config: TeacherConfig) -> Iterator[TeacherConfig]:
    """The configuration with a real address in place of `mock`, whose process lives as long as the block."""
    if all(endpoint.base_url != MOCK for endpoint in config.teachers):
        yield config
        return
    with MockProcess(MockOptions(config.mock)) as mock:
        pointed = {"base_url": mock.base_url}
        teachers = (one.model_copy(update=pointed if one.base_url == MOCK else {}) for one in config.teachers)
        yield config.model_copy(update={"teachers": tuple(teachers)})


def encode_options(options: MockOptions) -> str:
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name not in ("config", "key")}
    return json.dumps(fields | {"config": options.config.model_dump()})


def decode_options(text: str) -> MockOptions:
    values: dict[str, Any] = json.loads(text)
    values["config"] = MockConfig(**values["config"])
    values["faults"] = tuple((str(name), float(share)) for name, share in values.get("faults", ()))
    values["models"] = tuple(values.get("models", ()))
    values["storm"] = tuple(values["storm"]) if values.get("storm") else None
    return MockOptions(**values, key=os.environ.get("TAILOR_RAY_MOCK_KEY"))


def main() -> None:
    """`python -m tailor_ray.demo.mock_process OPTIONS [PARENT]`; with a parent's pid it dies when that does."""
    if len(sys.argv) > 2:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(sys.argv[2]):  # it died before we asked
            sys.exit(0)
    try:
        serve_mock(decode_options(sys.argv[1] if len(sys.argv) > 1 else "{}"), sys.stdout)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
