"""The same promises on an object store: a real S3 server process on loopback."""

import socket
import subprocess
import sys
import time

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


@pytest.fixture(scope="module")
def bucket():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        import boto3
        from botocore.exceptions import EndpointConnectionError

        client = boto3.client("s3", region_name="us-east-1")
        for _ in range(100):
            try:
                client.create_bucket(Bucket="bucket")
            except EndpointConnectionError:
                time.sleep(0.2)
            else:
                break
        yield "s3://bucket"
    server.terminate()
    server.wait()


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
