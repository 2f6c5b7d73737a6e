"""What `ray job submit --working-dir .` would carry of this checkout."""

import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_upload_holds_the_package_and_the_jobs_and_little_else(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    checkout = tmp_path / "checkout"
    for name in [name for name in listed if (ROOT / name).is_file()]:
        target = checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    for junk in ("runs/demo/rounds/01/exam/a.parquet", ".venv/lib/big.so", ".git/objects/pack", "dist/x.whl"):
        (checkout / junk).parent.mkdir(parents=True, exist_ok=True)
        (checkout / junk).write_bytes(b"x" * 100_000)
    create_package(str(checkout), tmp_path / "package.zip", include_gitignore=True)
    names = zipfile.ZipFile(tmp_path / "package.zip").namelist()
    assert {"tailor_ray/cli.py", "jobs/demo.yaml", "tailor_ray/observe/page/report.html.j2"} <= set(names)
    assert {name.split("/")[0] for name in names if "/" in name} <= {"tailor_ray", "jobs"}
    assert (tmp_path / "package.zip").stat().st_size < 1_500_000
