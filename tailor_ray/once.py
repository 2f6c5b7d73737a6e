"""What waits for its first use: made once in a process, by one thread, while all others wait.

Some packages import their parts lazily: transformers, huggingface_hub, sympy. Several threads cannot import such a
package for the first time at once: one of them sees a half-made module. So there is one lock for all of a process's
first uses. Two packages may share a part. So one lock each would not do. A thread that has the lock may come in again.
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
