"""Runs a target of the Makefile in this environment."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def make(*arguments):
    """The Makefile with this environment in place of its own, which it need not make or renew."""
    ours = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = ["make", "-C", str(ROOT), "-o", ".venv/.ready", f"BIN={Path(sys.executable).parent}", *arguments]
    return subprocess.run(command, env=ours, capture_output=True, text=True, timeout=120, check=False)
