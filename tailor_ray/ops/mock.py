"""`tailor-ray mock-teacher`: the command's words as the mock's options."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from tailor_ray.config.base import explain
from tailor_ray.config.teacher import MockConfig
from tailor_ray.demo.mock_server import MockOptions, serve_mock
from tailor_ray.errors import UserError


def serve(host: str, port: int, faults: Sequence[str], key_env: str | None, **settings: Any) -> None:
    """Serve until interrupted; the first line of stdout is the address. `settings` are those of MockConfig."""
    try:
        config = MockConfig(**settings)
    except ValidationError as error:
        raise explain(error, MockConfig, "the command line") from None
    key = None
    if key_env is not None:
        key = os.environ.get(key_env)
        if not key:
            raise UserError(f"--key-env {key_env}: this variable is empty; set it to the key that clients must send")
    options = MockOptions(config, host, port, tuple(_fault(text) for text in faults), key=key)
    serve_mock(options, sys.stdout)


def _fault(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError:
        raise UserError(f"--fault {text!r} must have the form NAME=SHARE, as http_500=0.1") from None
