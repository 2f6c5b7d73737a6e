"""Commits are whole or absent, damage is found, and one driver at a time may write. Real files throughout."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from tailor_ray.errors import ConfigError, CorruptionError, LeaseLost, RunFolderError
from tailor_ray.storage import (
    FileEntry,
    Lease,
    Manifest,
    PartsDigest,
    Store,
    commit_manifest,
    commit_part,
    committed_parts,
    find_part,
    read_manifest,
    read_part,
    stage_parts,
)
from tailor_ray.storage.commits import seal
from tailor_ray.storage.lease import Fence

TABLE = pa.table({"x": [1, 2, 3]})


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "run"))


def test_write_replaces_whole_and_leaves_no_temporary_file(store):
    store.write_bytes("a/b.txt", b"one")
    entry = store.write_bytes("a/b.txt", b"two")
    assert store.read_bytes("a/b.txt") == b"two"
    assert entry == FileEntry("a/b.txt", store.hash_file("a/b.txt"), 3)
    assert store.files("a") == ["b.txt"]
    assert store.files("nowhere") == []


def test_a_folder_may_come_to_be_while_it_is_listed(tmp_path):
    store = Store.open(str(tmp_path))
    names = [f"folder-{number}" for number in range(2000)]
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(lambda: [(tmp_path / name).mkdir() for name in names])
        for name in names:
            while not store.exists(name):
                assert store.files(name) == []
        made.result()


def test_create_refuses_a_taken_name_and_keeps_the_old_content(store):
    assert store.create("claim", b"first")
    assert not store.create("claim", b"second")
    assert store.read_bytes("claim") == b"first"
    assert store.files() == ["claim"]


def test_full_disk_leaves_the_last_commit_readable(store):
    """A file size limit stands in for a full disk: the write fails half-way, as ENOSPC would."""
    store.write_bytes("data", b"old")
    code = (
        "import resource, signal, sys; from tailor_ray.storage import Store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "Store.open(sys.argv[1]).write_bytes('data', b'x' * 5000)"
    )
    failed = subprocess.run([sys.executable, "-c", code, store.uri], capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "OSError" in failed.stderr
    assert store.read_bytes("data") == b"old"
    assert store.files() == ["data"]


@pytest.mark.parametrize("uri", ["s3://", "gs://", "s3://?region=eu"])
def test_a_uri_without_a_bucket_is_refused(uri):
    with pytest.raises(ConfigError, match="names no bucket"):
        Store.open(uri)


def test_store_survives_pickling_with_its_guard(store):
    with Lease.acquire(store) as lease:
        copy = pickle.loads(pickle.dumps(store.guarded(lease.fence).child("sub")))
        copy.write_bytes("x", b"1")
        assert store.read_bytes("sub/x") == b"1"


def test_parts_commit_in_any_order_and_come_back_sorted(store):
    for index in (2, 0, 1):
        commit_part(store, "rows", index, TABLE, {"index": index})
    commit_part(store, "rows-more", 0, TABLE)  # another prefix that starts the same
    parts = committed_parts(store, "rows")
    assert [part.index for part in parts] == [0, 1, 2]
    assert [part.info["index"] for part in parts] == [0, 1, 2]
    assert read_part(store, parts[1]).equals(TABLE)
    assert parts[1].entry.rows == 3


def test_a_part_without_its_record_does_not_exist(store):
    part = commit_part(store, "rows", 0, TABLE)
    store.delete("rows-00000.json")
    assert store.exists(part.entry.path)
    assert committed_parts(store, "rows") == []


@pytest.mark.parametrize("name", ["rows-00000.parquet", "rows-00000.json"])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_part_is_left_out_and_said(store, name, damage, caplog):
    commit_part(store, "rows", 0, TABLE)
    commit_part(store, "rows", 1, TABLE)
    _damage(store, name, damage)
    assert [part.index for part in committed_parts(store, "rows")] == [1]
    assert "rows-00000" in caplog.text


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_manifest_is_found(store, damage):
    commit_manifest(store, Manifest("exam", 1, "spec", {"a": "b"}, {}, 1.5, {"questions": 3}))
    _damage(store, "manifest.json", damage)
    with pytest.raises(CorruptionError, match=r"manifest\.json"):
        read_manifest(store)


def committed_stage(store, count=3):
    """A stage of some parts, as it is left."""
    parts = [commit_part(store, "rows", index, TABLE) for index in range(count)]
    manifest = Manifest("exam", 1, "spec", {}, {"rows": PartsDigest.of(parts)}, 1.5, {"nested": {"n": 1}})
    commit_manifest(store, manifest)
    return manifest, parts


def test_a_committed_stage_gives_its_parts(store):
    manifest, parts = committed_stage(store)
    assert read_manifest(store) == manifest
    assert stage_parts(store, "rows") == parts
    assert find_part(store, "rows", 1) == parts[1]
    assert (manifest.parts["rows"].count, manifest.parts["rows"].rows) == (3, 9)
    with pytest.raises(CorruptionError, match="no manifest that names parts other"):
        stage_parts(store, "other")


def test_a_part_that_is_lost_changed_or_damaged_after_the_commit_is_named(store):
    _, parts = committed_stage(store)
    commit_part(store, "rows", 1, pa.table({"x": [9]}))
    with pytest.raises(CorruptionError, match="not those that its manifest was written for"):
        stage_parts(store, "rows")
    _damage(store, "rows-00001.json", "cut")
    with pytest.raises(CorruptionError, match=r"rows-00001\.json is missing or damaged \(1 such"):
        stage_parts(store, "rows")
    store.delete("rows-00001.json")
    with pytest.raises(CorruptionError, match=r"rows-00001\.json is missing"):
        find_part(store, "rows", 1)
    _damage(store, parts[2].entry.path, "flip")
    with pytest.raises(CorruptionError, match=r"rows-00002\.parquet"):
        read_part(store, parts[2])
    store.delete(parts[0].entry.path)
    with pytest.raises(CorruptionError, match=r"rows-00000\.parquet is missing"):
        read_part(store, parts[0])


def test_the_digest_of_parts_is_that_of_their_content_in_whatever_order_they_came(store):
    parts = [commit_part(store, "rows", index, pa.table({"x": [index]}), {"seconds": index}) for index in (2, 0, 1)]
    digest = PartsDigest.of(parts)
    assert PartsDigest.of(parts[::-1]) == digest
    assert PartsDigest.of([*parts[:2], commit_part(store, "rows", 1, pa.table({"x": [7]}))]) != digest
    with pytest.raises(CorruptionError, match="part 1 is missing"):
        PartsDigest.of(parts[:2])


def test_the_digest_depends_on_content_and_not_on_time():
    rows = {"rows": PartsDigest(1, 3, "abc")}
    first = Manifest("exam", 1, "spec", {}, rows, 1.0, {"a": 1})
    assert first.digest() == Manifest("exam", 1, "spec", {}, rows, 9.0, {"a": 2}).digest()
    assert first.digest() != Manifest("exam", 1, "spec", {}, {"rows": PartsDigest(1, 3, "abd")}, 1.0).digest()
    assert first.digest() != Manifest("exam", 1, "spec", {}, rows, 1.0, {"a": 1}, model="abc").digest()


def test_a_manifest_of_the_first_version_is_refused_and_says_so(store):
    store.write_bytes("manifest.json", seal({"stage": "exam", "round": 1, "files": []}))
    with pytest.raises(RunFolderError, match=r"version 0\.1.*--name"):
        read_manifest(store)


def test_a_second_driver_is_refused_while_the_first_lives(store):
    with Lease.acquire(store), pytest.raises(RunFolderError, match=f"process {os.getpid()}"):
        Lease.acquire(store)
    Lease.acquire(store).release()


def test_a_killed_driver_is_succeeded_at_once_and_its_late_writes_are_refused(store):
    code = (
        "import sys, time; from tailor_ray.storage import *\n"
        "lease = Lease.acquire(Store.open(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, store.uri], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        loser = store.guarded(Fence(store.uri, store.read_json("lease.json")["number"]))
        loser.write_bytes("early", b"")
        child.send_signal(signal.SIGKILL)
        child.wait()
    started = time.monotonic()
    with Lease.acquire(store) as lease:
        assert time.monotonic() - started < 2
        store.guarded(lease.fence).write_bytes("mine", b"")
        for write in (lambda: loser.write_bytes("late", b""), lambda: commit_part(loser, "rows", 0, TABLE)):
            with pytest.raises(LeaseLost, match="taken over"):
                write()
    assert not store.exists("late")


def test_a_lease_of_another_machine_is_taken_over_only_when_its_beat_stops(store):
    with Lease.acquire(store, ttl_s=1.0):
        state = store.read_json("lease.json")
        state["owner"] = {"host": "elsewhere", "machine": "another boot", "pid": 1, "started": "1"}
    store.write_json("lease.json", {**state, "released": False})
    with Lease.acquire(store, ttl_s=1.0) as lease:
        assert lease.fence.number == 2
        assert [name for name in store.files() if name.startswith("lease-")] == ["lease-000002"]


class Outage:
    """Storage that refuses every write while it lasts."""

    def __init__(self):
        self.on = False

    def __call__(self):
        if self.on:
            raise OSError(errno.EIO, "Input/output error")


def test_a_beat_that_fails_is_tried_again_and_the_lease_is_kept(store, caplog):
    outage, lost = Outage(), []
    with Lease.acquire(store.guarded(outage), ttl_s=2.0, on_lost=lost.append) as lease:
        outage.on = True
        wait_for(lambda: "tried again" in caplog.text)
        outage.on = False
        beat = store.read_json("lease.json")["beat"]
        wait_for(lambda: store.read_json("lease.json")["beat"] > beat + 1)
        lease.fence()
    assert lost == []
    assert store.read_json("lease.json")["released"]


def test_a_lease_that_cannot_be_renewed_in_its_time_tells_its_owner_to_stop(store):
    outage, lost = Outage(), []
    with Lease.acquire(store.guarded(outage), ttl_s=0.8, on_lost=lost.append):
        outage.on = True
        wait_for(lambda: lost)
    assert "Input/output error" in lost[0]
    assert "the same command goes on" in lost[0]
    assert not store.read_json("lease.json")["released"]


def test_what_stopped_a_run_is_heard_though_the_lease_cannot_be_released(store):
    outage = Outage()

    def work():
        with Lease.acquire(store.guarded(outage), ttl_s=0.8):
            outage.on = True
            raise ValueError("the first")

    with pytest.raises(ValueError, match="the first"):
        work()


def test_a_process_that_took_its_own_place_takes_its_lease_over(store):
    """By exec the process id and the time of its start stay, and nothing else does."""
    code = (
        "import os, sys; from tailor_ray.storage import *\n"
        "lease = Lease.acquire(Store.open(sys.argv[1])); print(lease.fence.number, flush=True)\n"
        "if lease.fence.number == 1: os.execv(sys.executable, sys.orig_argv)"
    )
    done = subprocess.run([sys.executable, "-c", code, store.uri], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]


def wait_for(happened, seconds=30):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _damage(store, name, how):
    data = bytearray(store.read_bytes(name))
    if how == "flip":
        data[len(data) // 2] ^= 1
    store.write_bytes(name, bytes(data if how == "flip" else data[: len(data) * 2 // 3]))


def test_run_files_are_plain_json(store):
    commit_part(store, "rows", 0, TABLE, {"note": "ä"})
    assert json.loads(store.read_bytes("rows-00000.json"))["info"] == {"note": "ä"}


def test_a_remote_folder_is_copied_once_a_node_and_few_copies_are_kept(tmp_path, monkeypatch):
    import pyarrow.fs as pafs

    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "remote").mkdir()
    store = Store(pafs.SubTreeFileSystem(str(tmp_path / "remote"), pafs.LocalFileSystem()), "", "bucket://remote")
    for number in range(6):
        (tmp_path / f"remote/{number}").mkdir()
        (tmp_path / f"remote/{number}/file").write_text(str(number))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: store.local_folder("0"), range(8)))
    assert len(set(found)) == 1
    assert (found[0] / "file").read_text() == "0"
    for number in range(1, 6):
        assert (store.local_folder(str(number)) / "file").read_text() == str(number)
    assert len([path for path in (tmp_path / "cache/folders").iterdir() if path.is_dir()]) == 4
