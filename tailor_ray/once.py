"""What waits for its first use: made once in a process, by one thread, while all others wait.

Packages that import their parts lazily (transformers, huggingface_hub, sympy) cannot be imported for the first time by
several threads at once: one of them sees a half-made module. So there is one lock for all of a process's first uses,
for two packages may share a part; a thread that has it may come in again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import TypeVar

T = TypeVar("T")
FIRST_USE = threading.RLock()


def once(make: Callable[..., T]) -> Callable[..., T]:
    """`functools.cache`, under FIRST_USE: for the same arguments `make` runs once, however many threads ask."""
    made = cache(make)

    @wraps(make)
    def get(*arguments: object) -> T:
        with FIRST_USE:
            return made(*arguments)

    return get
