"""Results of Ray calls, with this project's errors as they were raised and not inside Ray's wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from tailor_ray.errors import TailorError


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise a TailorError that a remote call raised as itself: its message is for people, Ray's adds frames."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TailorError):
            raise error.cause from None
        raise


def get(reference: Any, timeout: float | None = None) -> Any:
    """`ray.get` under `own_errors`."""
    with own_errors():
        return ray.get(reference, timeout=timeout)


def one_line(error: BaseException) -> str:
    """What an error says, without the frames that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
