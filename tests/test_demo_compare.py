"""`make demo-compare`: plain distillation goes on from the demo's own beginning, and the two are put side by side."""

import subprocess
from pathlib import Path

from tailor_ray.config import load_config
from tailor_ray.rounds.spec import stages_of

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "jobs/demo.yaml"


def compare(folder):
    """The target with a command line in place of the package's that only notes how it was called."""
    stub = folder / "bin/tailor-ray"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n')
    stub.chmod(0o755)
    command = ["make", "-C", str(folder), "-f", str(ROOT / "Makefile"), "-o", ".venv/.ready", "BIN=bin", "demo-compare"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return (folder / "calls").read_text().splitlines()


def test_plain_begins_with_the_demos_first_round_and_is_compared_with_it(tmp_path):
    demo = tmp_path / "runs/demo"
    for name in ("rounds/00/student/manifest.json", "rounds/01/exam/manifest.json", "rounds/01/teach/manifest.json"):
        (demo / name).parent.mkdir(parents=True)
        (demo / name).write_text(name)
    calls = compare(tmp_path)
    assert calls == [
        "run jobs/demo.yaml",
        "run jobs/demo.yaml --set method=plain --set name=demo-plain",
        "report runs/demo runs/demo-plain --out runs/demo-compare",
    ]
    plain = tmp_path / "runs/demo-plain"
    copied = sorted(str(path.relative_to(plain)) for path in plain.rglob("*") if path.is_file())
    assert copied == sorted(path.relative_to(demo).as_posix() for path in demo.rglob("*.json"))
    (plain / "rounds/00/student/manifest.json").write_text("its own")
    compare(tmp_path)  # again: it goes on with what is there
    assert (plain / "rounds/00/student/manifest.json").read_text() == "its own"


def test_what_is_copied_is_what_plain_distillation_would_do_itself():
    demo, plain = (load_config(DEMO, given) for given in ([], ["method=plain", "name=demo-plain"]))
    for number in (0, 1):
        assert stages_of(demo, number) == stages_of(plain, number)
    assert stages_of(demo, 2) != stages_of(plain, 2)
