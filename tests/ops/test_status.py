"""What `tailor-ray status` says of a run that is under way: from its folder alone, whoever holds it."""

import pyarrow as pa
import pytest

from tailor_ray.errors import DataError
from tailor_ray.ops.status import status
from tailor_ray.storage import Lease, Store, commit_part
from tests.observe.runs import make_run


def test_a_round_whose_exam_goes_on_is_shown_before_its_first_manifest(tmp_path):
    run = make_run(tmp_path / "demo", rounds=1)
    assert "round 2" not in status(run)
    for index in range(2):
        commit_part(run.child("rounds", "02", "exam"), "attempts", index, pa.table({"x": [1]}))
    with Lease.acquire(run):
        said = status(run)
    assert "round 2 exam: 2 parts committed" in said
    assert "held by process" in said
    assert "held by process" not in status(run)


def test_the_stages_that_a_round_lacks(tmp_path):
    said = status(make_run(tmp_path / "demo", rounds=2, last_stage="teach"))
    assert "round 2 examples: not committed yet" in said
    assert "round 2 train: not committed yet" in said
    assert "round 2 exam:" not in said
    assert "round 2 teach:" not in said


@pytest.mark.parametrize(
    "content", [b"", b'{"number": 1, "owner": {"pi', b"[1]", b"null", b'{"released": false, "task": 1}', b"\xff"]
)
def test_damaged_small_files_are_named(tmp_path, content):
    run = make_run(tmp_path / "demo", rounds=1)
    for name in ("lease.json", "run.yaml", "rounds/01/exam/manifest.json"):
        run.write_bytes(name, content)
        said = status(run)
        assert f"warning: {run.uri}/{name} " in said
    assert "round 1 exam: 3 parts committed" in said


def test_what_is_no_run(tmp_path):
    with pytest.raises(DataError, match=r"no run\.yaml"):
        status(Store.open(str(tmp_path / "nowhere")))
