"""Which student a run has to show, and what the argument of `serve` stands for."""

import json

import pytest

from tailor_ray.config import RunConfig
from tailor_ray.errors import ConfigError, CorruptionError, DataError
from tailor_ray.layout import StageId, stage_folder
from tailor_ray.models import ModelRef, write_model
from tailor_ray.ops.serve import find, split_target
from tailor_ray.serving.served import Served, config_of, newest_round, student_of
from tailor_ray.storage import Manifest, Store, commit_manifest


def leave_student(run, number, stage):
    """What a round's training leaves before it is committed."""
    folder = stage_folder(run, StageId(number, stage))
    entry = folder.write_bytes("student/config.json", b"{}")
    write_model(folder, ModelRef.uploaded(folder, "student", [entry]))
    return folder


@pytest.fixture
def run(tmp_path):
    """A run whose round 2 was killed in its training."""
    store = Store.open(str(tmp_path / "runs" / "demo"))
    store.write_bytes("run.yaml", RunConfig(name="demo").to_yaml().encode())
    for number, stage in ((0, "student"), (1, "train")):
        commit_manifest(leave_student(store, number, stage), Manifest(stage, number, "", {}, {}, 1.0))
    leave_student(store, 2, "train")
    return store


def test_a_round_counts_once_it_is_committed(run):
    assert newest_round(run) == 1
    assert student_of(run, 1).uri.endswith("/rounds/01/train/student")
    assert student_of(run, 0).uri.endswith("/rounds/00/student/student")
    with pytest.raises(DataError, match="no student of round 2; its newest is round 1"):
        student_of(run, 2)


def test_what_is_served_follows_the_run_unless_a_round_is_named(run):
    follows, stays = Served("demo", run=run.uri), Served("demo", run=run.uri, round=0)
    assert follows.find()[0] == 1
    commit_manifest(stage_folder(run, StageId(2, "train")), Manifest("train", 2, "", {}, {}, 1.0))
    assert follows.find()[0] == 2
    assert stays.find()[0] == 0


def test_a_run_that_has_only_begun(tmp_path):
    store = Store.open(str(tmp_path / "new"))
    store.write_bytes("run.yaml", b"name: new\n")
    with pytest.raises(DataError, match="no student yet"):
        newest_round(store)


@pytest.mark.parametrize("data", [b"", b"- a\n", b"{", b"\xff\xfe"])
def test_a_damaged_run_file_is_named(run, data):
    run.write_bytes("run.yaml", data)
    with pytest.raises(CorruptionError, match=r"run\.yaml is damaged"):
        config_of(run)


def test_a_target_is_a_run_and_perhaps_a_round_or_a_model_and_perhaps_a_revision():
    assert split_target("runs/demo") == ("runs/demo", None)
    assert split_target("s3://bucket/runs/demo@2") == ("s3://bucket/runs/demo", "2")
    assert split_target("owner/name@v1.0") == ("owner/name", "v1.0")
    assert split_target("runs/me@home/demo") == ("runs/me@home/demo", None)


def test_what_serve_is_told_to_serve(run, tmp_path):
    assert find(run.uri, reload=True)[0].reload
    assert find(f"{run.uri}@0", reload=False)[0].find()[1] == student_of(run, 0)
    with pytest.raises(ConfigError, match="--reload follows the newest"):
        find(f"{run.uri}@0", reload=True)
    with pytest.raises(DataError, match="no student of round 7"):
        find(f"{run.uri}@7", reload=False)
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(json.dumps({}))
    served, _ = find(str(folder), reload=False)
    assert (served.name, served.run, served.find()[1].uri) == ("model", None, str(folder))
    with pytest.raises(ConfigError, match="--reload follows a run"):
        find(str(folder), reload=True)
    with pytest.raises(DataError, match=r"runs/nothing/here is no run folder, for it has no run\.yaml, and no model"):
        find("runs/nothing/here", reload=False)
