"""The process that asks math-verify. Run as a program by `strings.py`; knows nothing of this package.

In: a JSON object per line, {"gold": str, "said": str}. Out: a line each, {"right": true, false or null}. It is
{"stopped": true} where an expression took more than the given CPU seconds.

Always holds. What is asked is computed in a child that the kernel ends at that bound, in C code too. The child has
bounded memory. The parent has imported the library once, and forks the next child. It ends when its input does.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

# What the library imports and caches at its first simplification would else count as a child's CPU time.
WARM = (
    ("$x^2+2x+1$", "$(x+1)^2$"),
    ("$x^2+1$", "$x^2+2x$"),
    ("$5\\pi$", "$5$"),
    ("$(1,2]$", "$[1,2)$"),
    ("$\\sin^2 x + \\sqrt{y}$", "$1-\\cos^2 x + y^{0.5}$"),
    ("$\\{1,2\\}$", "$x \\le 3$"),
    ("$(3,-4)$", "$(-4,3)$"),
    ("$\\log_2 x$", "$\\ln x$"),
    ("$x=3$", "$x=4$"),
    ("$(1,2)\\cup(3,4)$", "$(1,2)\\cup(3,5)$"),
)
MEMORY_BYTES = 4 << 30  # of address space, beyond what the library takes


def main() -> None:
    seconds = float(sys.argv[1])
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no reply
    import math_verify  # takes 1 s with sympy

    logging.disable(logging.ERROR)
    for gold, said in WARM:
        right(math_verify, gold, said)
    while True:
        child = os.fork()
        if child == 0:
            serve(math_verify, sys.stdin.buffer, replies, seconds)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        os.write(replies, b'{"stopped": true}\n')


def serve(math_verify: Any, requests: BinaryIO, replies: int, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while line := requests.readline():
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # CPU time: a busy machine changes no verdict
        signal.setitimer(signal.ITIMER_REAL, 60 * seconds)  # for what waits without computing
        try:
            answer = right(math_verify, asked["gold"], asked["said"])
        except (MemoryError, RecursionError):
            answer = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(replies, json.dumps({"right": answer}).encode() + b"\n")


def right(math_verify: Any, gold: str, said: str) -> bool | None:
    """Whether two expressions are equal in either order.

    Returns None where they are in one alone, or one cannot be read.
    """
    meant, found = (read(math_verify, text) for text in (gold, said))
    if not any(not isinstance(one, str) for one in meant) or not any(not isinstance(one, str) for one in found):
        return None
    forward, backward = (
        bool(math_verify.verify(one, other, timeout_seconds=None)) for one, other in ((meant, found), (found, meant))
    )
    return forward if forward == backward else None


def read(math_verify: Any, text: str) -> list[Any]:
    configs = [math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig()]
    return math_verify.parse(text, configs, parsing_timeout=None)


if __name__ == "__main__":
    main()
