"""Which student a run has to show: the newest round whose training is committed, or the one that is named."""

import pytest

from tailor_ray.config import RunConfig
from tailor_ray.errors import DataError
from tailor_ray.ops.serve import split_target
from tailor_ray.storage import Manifest, Store, commit_manifest
from tailor_ray.student.of_run import Served, newest_round, student_folder


@pytest.fixture
def run(tmp_path):
    """A run whose round 2 was killed in its training."""
    store = Store.open(str(tmp_path / "runs" / "demo"))
    store.write_bytes("run.yaml", RunConfig(name="demo").to_yaml().encode())
    for number, stage in ((0, "student"), (1, "train")):
        folder = store.child("rounds", f"{number:02d}", stage)
        folder.write_bytes("student/config.json", b"{}")
        commit_manifest(folder, Manifest(stage, number, "", {}, (), 1.0, {}))
    store.child("rounds", "02", "train").write_bytes("student/config.json", b"{}")
    return store


def test_a_round_counts_once_it_is_committed(run):
    assert newest_round(run) == 1
    assert student_folder(run, 1).parts[-4:] == ("rounds", "01", "train", "student")
    assert student_folder(run, 0).parts[-3:] == ("00", "student", "student")
    with pytest.raises(DataError, match="no student of round 2; its newest is round 1"):
        student_folder(run, 2)


def test_what_is_served_follows_the_run_unless_a_round_is_named(run):
    follows, stays = Served("demo", run=run.uri), Served("demo", run=run.uri, round=0)
    assert follows.find()[0] == 1
    folder = run.child("rounds", "02", "train")
    commit_manifest(folder, Manifest("train", 2, "", {}, (), 1.0, {}))
    assert follows.find()[0] == 2
    assert stays.find()[0] == 0


def test_a_run_that_has_only_begun(tmp_path):
    store = Store.open(str(tmp_path / "new"))
    store.write_bytes("run.yaml", b"name: new\n")
    with pytest.raises(DataError, match="no student yet"):
        newest_round(store)


def test_a_target_is_a_run_and_perhaps_a_round():
    assert split_target("runs/demo") == ("runs/demo", None)
    assert split_target("s3://bucket/runs/demo@2") == ("s3://bucket/runs/demo", 2)
    assert split_target("runs/me@home") == ("runs/me@home", None)
