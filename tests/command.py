"""The command line of this checkout, as a user starts it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tailor(
    *arguments: object,
    timeout: float = 120,
    cwd: Path | None = None,
    before: Callable[[], object] | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run `tailor-ray` with these arguments to its end; returns its exit code, stdout and stderr.

    `environment` is set beside this process's own; `before` is called in the new process before the command begins.
    """
    return subprocess.run(
        [sys.executable, "-m", "tailor_ray", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        preexec_fn=before,
    )
