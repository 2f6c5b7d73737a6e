"""A mock teacher in a process of its own, for as long as a `with` block lasts, and never longer than its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tailor_ray.config.teacher import MOCK, TeacherConfig
from tailor_ray.demo.mock_main import encode_options
from tailor_ray.demo.mock_server import MockOptions
from tailor_ray.errors import UserError

STOP_S = 10.0  # until a mock that does not end by itself is killed


class MockProcess:
    """Starts on `start` (or `with`) and answers once that returns; `base_url` says where."""

    def __init__(self, options: MockOptions) -> None:
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.base_url = ""

    def start(self) -> Self:
        """Raises UserError with what the process said when it cannot serve."""
        command = [
            sys.executable,
            "-m",
            "tailor_ray.demo.mock_main",
            encode_options(self._options),
            str(os.getpid()),
        ]
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
