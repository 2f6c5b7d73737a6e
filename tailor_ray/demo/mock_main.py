"""The mock teacher's process: options from one JSON argument, so that a parent can start it with any of them."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
from typing import Any

from tailor_ray.config.teacher import MockConfig
from tailor_ray.demo.mock_server import MockOptions, serve_mock
from tailor_ray.errors import UserError

PR_SET_PDEATHSIG = 1


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
    """`python -m tailor_ray.demo.mock_main OPTIONS [PARENT]`; with a parent's pid it dies when that does."""
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
