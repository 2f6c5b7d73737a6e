"""The same promises on an object store: a real S3 server process on loopback."""

import pyarrow as pa
import pytest

from tailor_ray.errors import RunFolderError
from tailor_ray.storage import (
    Lease,
    Manifest,
    Store,
    commit_manifest,
    commit_part,
    committed_parts,
    read_manifest,
    read_part,
)
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_files import LedgerFiles
from tests.storage.s3 import s3_server
from tests.teacher.test_ledger import row, wait_for


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
        commit_manifest(guarded, Manifest("exam", 1, "s", {}, (part.entry,), 1.0, {}))
        assert read_manifest(guarded).files == (part.entry,)
        assert read_part(guarded, committed_parts(guarded, "rows")[0]).num_rows == 2
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


def test_the_ledger_on_s3_survives_its_node(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "first"))
    store = Store.open(f"{bucket}/run/teacher")
    ledger = Ledger(store)
    ledger.stage([row(1, cost_usd=0.25), row(2)])
    ledger.commit()
    wait_for(lambda: len(LedgerFiles(store).read()) == 2)
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "second"))  # another node: nothing of the first is there
    other = Ledger(store)
    assert other.rows() == [row(1, cost_usd=0.25).sealed(), row(2).sealed()]
    assert other.spent().usd == 0.25
    other.close()
    ledger.close()
    assert len(LedgerFiles(store).read()) == 2
