"""The same promises on an object store: a real S3 server process on loopback."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor

import pyarrow as pa
import pytest

from jobs.benchmarks.stand_ins import make_student
from tailor_ray.errors import CorruptionError, ModelError, RunFolderError
from tailor_ray.models import identify, publish, resolve
from tailor_ray.models.ref import KEPT_COPIES
from tailor_ray.storage import (
    Lease,
    Manifest,
    PartsDigest,
    Store,
    commit_manifest,
    commit_part,
    read_part,
    stage_parts,
)
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import LedgerFiles
from tests.integration.engines import ref
from tests.storage.s3 import s3_server
from tests.teacher.helpers import row
from tests.teacher.test_ledger import wait_for


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as uri:
        yield uri


def test_parts_manifests_and_leases_on_s3(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    store = Store.open(f"{bucket}/runs").child("demo")
    with Lease.acquire(store, ttl_s=2) as lease:
        guarded = store.guarded(lease.fence).child("rounds", "01", "exam")
        part = commit_part(guarded, "rows", 0, pa.table({"x": [1, 2]}), {"n": 1})
        commit_manifest(guarded, Manifest("exam", 1, "s", {}, {"rows": PartsDigest.of([part])}, 1.0, {}))
        assert stage_parts(guarded, "rows") == [part]
        assert read_part(guarded, part).num_rows == 2
        with pytest.raises(RunFolderError, match="in use"):
            Lease.acquire(store)
    assert not store.create("lease-000001", b"again")
    assert store.folders("rounds") == ["01"]
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "x.bin").write_bytes(b"123")
    entries = store.upload_folder(folder, "student")
    assert [entry.path for entry in entries] == ["student/config.json", "student/sub/x.bin"]
    local = store.local_folder("student")
    assert (local / "sub" / "x.bin").read_bytes() == b"123"
    assert store.local_folder("student") == local
    store.delete("student")
    assert not store.exists("student/config.json")
    assert store.files("nowhere") == []


def test_an_object_that_is_replaced_while_it_is_read_is_one_or_the_other(bucket):
    """As the lease and training's progress are, by other processes; their lengths differ."""
    store, values, ended = Store.open(f"{bucket}/replaced"), [{"n": "x" * length} for length in (3, 900)], []
    store.write_json("state.json", values[0])

    def replace():
        while not ended:
            for value in values:
                store.write_json("state.json", value)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        assert all(store.read_json("state.json") in values for _ in range(300))
    finally:
        ended.append(True)
        writer.join()
    store.write_bytes("state.json", b"{")
    with pytest.raises(ValueError, match="Expecting"):
        store.read_json("state.json")


def test_a_model_in_the_bucket_is_copied_to_a_node_once_and_checked(bucket, tmp_path, monkeypatch):
    """By eight processes at once on one node; another node that has nothing gets a copy of its own."""
    model = publish(ref(make_student(tmp_path / "model")), Store.open(f"{bucket}/models"), "tried")
    assert model == identify(f"{bucket}/models/tried")
    infos = Store.open(f"{bucket}/models/tried")
    before = infos.filesystem.get_file_info(infos.path("model.safetensors")).mtime
    assert publish(ref(tmp_path / "model"), Store.open(f"{bucket}/models"), "tried") == model
    assert infos.filesystem.get_file_info(infos.path("model.safetensors")).mtime == before  # not sent again
    assert model.sha256 == ref(tmp_path / "model").sha256
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "node"))
    with ProcessPoolExecutor(8, multiprocessing.get_context("spawn")) as processes:
        folders = set(processes.map(resolve, [model] * 8))
    (folder,) = folders
    assert folder.is_relative_to(tmp_path / "node")
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert resolve(model) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "other node"))
    assert resolve(model).is_relative_to(tmp_path / "other node")
    Store.open(f"{bucket}/models/tried").write_bytes("model.safetensors", b"damaged")
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "third node"))
    with pytest.raises(CorruptionError, match=r"tried/model\.safetensors is not the file"):
        resolve(model)
    Store.open(f"{bucket}/models/tried").delete("model.safetensors")
    with pytest.raises(CorruptionError, match=r"tried/model\.safetensors is missing"):
        resolve(model)
    assert not list((tmp_path / "third node" / "models").glob("*.tmp"))
    with pytest.raises(ModelError, match=r"student\.model='s3://bucket/nowhere' has no config\.json"):
        identify("s3://bucket/nowhere")


def test_a_node_keeps_the_students_that_were_used_last(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    store = Store.open(f"{bucket}/many")
    students = []
    for number in range(KEPT_COPIES + 2):
        for name, data in (("config.json", '{"architectures": ["LlamaForCausalLM"]}'), ("tokenizer.json", "{}")):
            store.write_bytes(f"{number}/{name}", data.encode())
        store.write_bytes(f"{number}/model.safetensors", b"%d" % number)
        students.append(identify(store.child(str(number)).uri))
        os.utime(resolve(students[-1]), (number, number))
        if number:
            resolve(students[0])  # the first stays in use
    copies = [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
    assert len(copies) == KEPT_COPIES
    assert sorted(int((path / "model.safetensors").read_bytes()) for path in copies) == [0, *range(3, KEPT_COPIES + 2)]
    assert (resolve(students[1]) / "model.safetensors").read_bytes() == b"1"  # copied again
    assert identify(students[2].uri) == students[2]  # known, but no longer here


def test_the_ledger_on_s3_survives_its_node(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "first"))
    store = Store.open(f"{bucket}/run/teacher")
    ledger = Ledger(store)
    ledger.stage([row(1, cost_usd=0.25), row(2)])
    ledger.commit()
    wait_for(lambda: len(list(LedgerFiles(store).read())) == 2)
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "second"))  # another node: nothing of the first is there
    other = Ledger(store)
    assert other.rows() == [row(1, cost_usd=0.25).sealed(), row(2).sealed()]
    assert other.spent().usd == 0.25
    other.close()
    ledger.close()
    assert len(list(LedgerFiles(store).read())) == 2
