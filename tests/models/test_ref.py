"""A model by what it is: found and checked where it is needed, named by its content, wherever it is moved to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tailor_ray.errors import CorruptionError, ModelError
from tailor_ray.models import ModelRef, identify, publish, read_model, resolve, write_model
from tailor_ray.models.folder import content_sha256
from tailor_ray.storage import FileEntry, Store


@pytest.fixture
def folder(tmp_path):
    """A folder that looks like a model; nothing here loads it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"no part of it")
    return folder


def test_a_local_folder_is_found_hashed_and_resolved_to_itself(folder):
    ref = identify(str(folder))
    assert resolve(ref) == folder
    assert [entry.path for entry in ref.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert ref.weight_bytes == 7000
    assert ref.sha256 == identify(folder.as_uri()).sha256
    assert resolve(identify(folder.as_uri())) == folder


def test_a_relative_path_is_named_by_its_absolute_one(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert identify("model") == identify(str(folder))


def test_the_hash_is_that_of_the_content_and_of_no_place(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert identify(str(copy)).sha256 == identify(str(folder)).sha256
    (copy / "tokenizer.json").write_text("[]")
    assert identify(str(copy)).sha256 != identify(str(folder)).sha256


@pytest.mark.parametrize("damage", ["changed", "removed", "added"])
def test_a_folder_that_is_no_longer_the_same_names_the_file(folder, damage):
    ref = identify(str(folder))
    assert resolve(ref) == folder
    if damage == "changed":
        (folder / "model.safetensors").write_bytes(b"Weights" * 1000)  # as long as before
    elif damage == "removed":
        (folder / "model.safetensors").unlink()
    else:
        (folder / "model-2.safetensors").write_bytes(b"more")
    with pytest.raises(CorruptionError, match=r"model(-2)?\.safetensors is not the file .* \(1 of 3 files"):
        resolve(ref)


def test_it_is_hashed_once_a_node(folder, tmp_path):
    """Processes of one node share what the first found; another node, with another cache, looks for itself."""
    code = (
        "import sys; from tailor_ray.models import identify; from tailor_ray.storage import store\n"
        "from tailor_ray.models import ref\n"
        "read = []; ref.file_sha256 = lambda path: read.append(path.name) or store.file_sha256(path)\n"
        "identify(sys.argv[1]); print(len(read))"
    )

    def reads(node):
        environment = {**os.environ, "TAILOR_RAY_CACHE": str(tmp_path / node)}
        command = [sys.executable, "-c", code, str(folder)]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert [reads(node) for node in ("one", "one", "two", "two")] == [3, 0, 3, 0]


def test_a_cache_that_was_cut_off_is_made_again(folder):
    ref = identify(str(folder))
    for known in (Path(os.environ["TAILOR_RAY_CACHE"]) / "models").glob("*.json"):
        known.write_bytes(known.read_bytes()[:20])
    assert identify(str(folder)) == ref


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", r"student\.model='\./nowhere' is neither a local folder nor a hub id .* nor `tiny`"),
        ("a/b/c", "neither a local folder"),
        ("owner/of-nothing", r"owner/of-nothing' could not be loaded from the hub"),
    ],
)
def test_what_is_not_there_names_the_setting(model, message):
    with pytest.raises(ModelError, match=message):
        identify(model)


def test_a_folder_that_another_node_has_says_what_to_set(folder):
    ref = identify(str(folder))
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match=r"is not on the node .*set `storage` to s3://"):
        resolve(ref)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_without_a_part_of_it_is_refused(folder, lost):
    (folder / lost).unlink()
    with pytest.raises(ModelError, match=r"teacher\.serve"):
        identify(str(folder), setting="teacher.serve")


def test_an_encoder_is_no_student(folder):
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ModelError, match=r"is a BertForMaskedLM; student\.model must be a decoder-only"):
        identify(str(folder))


def test_a_local_folder_stays_where_it_is_when_the_runs_storage_is_local_too(folder, tmp_path):
    ref = identify(str(folder))
    store = Store.open(str(tmp_path / "run"))
    assert publish(ref, store, "student") is ref
    hub = ModelRef("owner/name", ref.files, "abc")
    assert publish(hub, store, "student") is hub


def test_a_model_of_a_run_is_found_after_the_run_was_moved(folder, tmp_path):
    stage = Store.open(str(tmp_path / "runs" / "first")).child("rounds", "01", "train")
    made = ModelRef.uploaded(stage, "student", stage.upload_folder(folder, "student"))
    write_model(stage, made)
    assert made.sha256 == identify(str(folder)).sha256  # without what is no part of the model
    assert read_model(stage) == made
    (tmp_path / "runs" / "first").rename(tmp_path / "runs" / "second")
    moved = Store.open(str(tmp_path / "runs" / "second")).child("rounds", "01", "train")
    assert resolve(read_model(moved)) == tmp_path / "runs/second/rounds/01/train/student"


def test_a_model_elsewhere_keeps_its_name_and_revision(tmp_path):
    stage = Store.open(str(tmp_path))
    hub = ModelRef("owner/name", (FileEntry("config.json", "ab", 2),), "c0ffee")
    write_model(stage, hub)
    assert read_model(stage) == hub
    assert hub.sha256 == content_sha256({"config.json": "ab"})


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"uri": null, "files": [], "revision": null, "sealed": "00"}'])
def test_a_damaged_record_is_named(tmp_path, data):
    stage = Store.open(str(tmp_path))
    stage.write_bytes("student.json", data)
    with pytest.raises(CorruptionError, match=r"student\.json"):
        read_model(stage)
