"""Each benchmark of the Makefile can be started by its target: make runs the script, which says what it does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "jobs/benchmarks"
NAMES = re.search(r"^BENCHMARKS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


def make(*arguments):
    """The Makefile with this environment in place of its own, which it need not make or renew."""
    bin_folder = Path(sys.executable).parent
    ours = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = ["make", "-C", str(ROOT), "-o", ".venv/.ready", f"BIN={bin_folder}", *arguments]
    return subprocess.run(command, env=ours, capture_output=True, text=True, timeout=120, check=False)


def test_the_targets_are_those_that_are_documented():
    assert NAMES == ["exam", "teacher", "training", "ablation", "scale"]
    listed = make("-n", "bench")
    assert re.findall(r"jobs/benchmarks/(\w+)\.py", listed.stdout) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_target_runs_its_script(name):
    script = SCRIPTS / f"{name}.py"
    done = make(f"bench-{name}", "BENCH_ARGS=--help")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"usage: {script.name} " in done.stdout
    assert re.search(r'^"""(.{20})', script.read_text())[1] in done.stdout  # its own first words
