"""Whatever is wrong around a run ends in a sentence: exit 2 or 3, and no traceback on stderr."""

import errno
import json
import os
import pickle
import re
import resource
import socket
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from tailor_ray.errors import Bug, ConfigError, DataError, RunFolderError, StageError, Stopped, UserError, masked
from tailor_ray.observe.faults import fault_in_text, in_words
from tailor_ray.ops import status as status_command
from tailor_ray.storage import Lease, Store
from tests.command import tailor
from tests.observe.runs import make_run

NOWHERE = "/proc/nobody/may/write/here"  # not even root


def failed(code, name=None):
    return OSError(code, os.strerror(code), name)


def from_ray(cause):
    """As a task on the cluster raises it."""
    from ray.exceptions import RayTaskError

    return RayTaskError("work", "Traceback (most recent call last):\n  frames", cause).as_instanceof_cause()


def ended_by_the_memory_monitor():
    """As the call of an actor raises it."""
    from ray.exceptions import OutOfMemoryError

    said = "2 worker(s) were killed due to the node running low on memory: 22.40GB used"
    return OutOfMemoryError(f"{said}\nObject store: 0 bytes\nRefer to the documentation on how to address this issue.")


def hidden(first, second):
    """An error in whose clean-up another one was raised."""
    try:
        try:
            raise first
        finally:
            raise second
    except Exception as error:  # noqa: BLE001
        return error


def ray_errors():
    from ray import exceptions as ray

    return [
        ray.RayActorError(),
        ray.NodeDiedError("gone"),
        ray.ActorDiedError(),
        ray.ActorUnavailableError("The actor is unavailable", None),
        ray.LocalRayletDiedError(),
        ray.WorkerCrashedError(),
        ray.ObjectLostError("ab" * 14, None, ""),
        ray.RaySystemError("broken"),
        ray.RuntimeEnvSetupError("no space"),
        ray.GetTimeoutError("late"),
        ray.RpcError("down"),
        ray.TaskUnschedulableError("nowhere"),
    ]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (failed(errno.ENOSPC, "/data/x"), Stopped, r"a disk is full \(No space left on device: /data/x\); what was"),
        (failed(errno.EDQUOT), Stopped, "a disk is full"),
        (failed(errno.EROFS, "/data"), UserError, "cannot be written.*Read-only file system: /data"),
        (failed(errno.EACCES, "/data"), UserError, "access is refused.*Permission denied: /data"),
        (failed(errno.EMFILE), Stopped, "ulimit -n"),
        (failed(errno.EAGAIN), Stopped, "ulimit -u"),
        (RuntimeError("can't start new thread"), Stopped, "ulimit -u"),
        (from_ray(RuntimeError("CUDA error: device-side assert triggered")), Stopped, "a GPU failed.*nvidia-smi"),
        (from_ray(RuntimeError("NCCL error: unhandled system error")), Stopped, "a GPU failed"),
        (from_ray(RuntimeError("CUDA error: out of memory")), Stopped, "memory ran out"),
        (ModuleNotFoundError("No module named 'vllm'"), UserError, "a library cannot be loaded.*doctor"),
        (OSError("libcudart.so.12: cannot open shared object file"), UserError, "a library cannot be loaded"),
        (failed(errno.ENOMEM), Stopped, "memory ran out.*lower"),
        (failed(errno.EIO, "/mnt/nfs"), Stopped, "storage does not answer"),
        (failed(errno.ESTALE, "/mnt/nfs"), Stopped, "storage does not answer"),
        (failed(errno.EADDRINUSE), UserError, "choose another port"),
        (failed(errno.ENAMETOOLONG, "/long"), UserError, "too long"),
        (failed(errno.ENOENT, "/gone"), UserError, "not there.*: /gone"),
        (failed(errno.ENOTDIR, "/file/x"), UserError, "/file/x"),
        (OSError("Cannot open for reading: path '/runs/x' is a directory"), UserError, "not there.*/runs/x"),
        (ValueError("embedded null byte"), UserError, "a path holds a NUL byte"),
        (failed(errno.EXDEV + 1000), Stopped, "the operating system refused"),
        (MemoryError(), Stopped, "memory ran out"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Stopped, "a connection failed"),
        (TimeoutError("late"), Stopped, "a connection failed"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), UserError, "a name cannot be resolved"),
        (OSError("When getting information for key 'a': AWS Error ACCESS_DENIED"), UserError, "credentials"),
        (OSError("When listing objects: AWS Error NO_SUCH_BUCKET during"), UserError, "bucket"),
        (OSError("When reading: AWS Error NETWORK_CONNECTION during PutObject"), Stopped, "storage does not answer"),
        (pa.ArrowInvalid("Parquet magic bytes not found in footer"), UserError, "a file is damaged"),
        (sqlite3.OperationalError("database or disk is full"), Stopped, "a disk is full"),
        (sqlite3.OperationalError("attempt to write a readonly database"), UserError, "cannot be written"),
        (sqlite3.DatabaseError("file is not a database"), UserError, "a file is damaged"),
        (subprocess.CalledProcessError(1, "x"), Stopped, "run the same command"),
        (ExceptionGroup("tasks", [failed(errno.ENOSPC)]), Stopped, "a disk is full"),
        (from_ray(failed(errno.ENOSPC, "/data")), Stopped, "a disk is full.*: /data"),
        (from_ray(ValueError("odd")), Stopped, "odd"),
        (ended_by_the_memory_monitor(), Stopped, r"memory ran out \(2 worker\(s\) .* 22.40GB used\); what was"),
        (from_ray(StageError("said by us")), StageError, "^said by us$"),
        (ConfigError("said by us"), ConfigError, "^said by us$"),
        (hidden(failed(errno.ENOSPC, "/first"), RuntimeError("in the clean-up")), Stopped, "a disk is full.*/first"),
        (hidden(StageError("the first"), failed(errno.EIO)), StageError, "^the first$"),
    ],
)
def test_each_kind_says_what_happened_and_what_to_do(error, kind, said):
    found = in_words(error)
    assert type(found) is kind, found
    assert found.exit_code in (2, 3)
    with pytest.raises(kind, match=said):
        raise pickle.loads(pickle.dumps(found))


def test_whatever_ray_raises_is_a_stop_that_can_go_on():
    for error in ray_errors():
        found = in_words(error)
        assert (type(found), found.exit_code) == (Stopped, 3), (error, found)
        assert "\n" not in str(found)
        assert "run the same command" in str(found)


def test_a_fault_of_ours_is_called_that():
    for error in (KeyError("x"), TypeError("y"), AssertionError(), IndexError("z")):
        assert isinstance(in_words(error), Bug)
        assert "a fault of tailor_ray itself" in str(in_words(error))


def test_what_a_worker_printed_is_known_where_a_person_must_mend_it():
    assert fault_in_text("OSError: [Errno 28] No space left on device: '/runs/x'").what == "a disk is full"
    assert fault_in_text("OSError: [Errno 30] Read-only file system").waits
    assert fault_in_text("ActorDiedError: The actor died unexpectedly before finishing this task.") is None
    assert fault_in_text("RuntimeError: NCCL error: remote process exited") is None  # its node may be lost
    assert fault_in_text("torch.OutOfMemoryError: CUDA out of memory.") is None  # the batch is halved


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:canary@bucket/x", "s3://***@bucket/x"),
        ("s3://b/x?secret_key=canary&region=eu", "s3://b/x?secret_key=***&region=eu"),
        ("s3://b/x?region=eu&access_key=canary", "s3://b/x?region=eu&access_key=***"),
        ("https://h/?api_key=canary'", "https://h/?api_key=***'"),
        ("abfs://c@account.dfs.example/x", "abfs://***@account.dfs.example/x"),
        ("s3://b/x?region=eu", "s3://b/x?region=eu"),
    ],
)
def test_keys_of_uris_are_not_shown(text, shown):
    assert masked(text) == shown


def test_storage_by_a_uri_with_a_key_is_refused_without_showing_it():
    with pytest.raises(ConfigError, match="by the environment") as caught:
        Store.open("s3://bucket/runs?secret_key=canary&region=eu")
    assert "canary" not in str(caught.value)


# From here on as a user sees it.


def small_files():
    """No file may grow above 2,000 bytes: a disk that is full, and the disk of a process of root."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


@pytest.fixture
def config(tmp_path):
    """A run's file that needs nothing; and a teacher who is not there, should it come to that."""
    file = tmp_path / "config.yaml"
    teacher = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    settings = {"name": "try", "storage": str(tmp_path / "runs"), "teacher": teacher}
    settings["task"] = {"name": "arithmetic", "limit_train": 24, "limit_test": 8, "max_validation": 6}
    file.write_text(yaml.safe_dump(settings))
    return file


def said(done, *codes):
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in codes, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("tailor-ray: ")]
    assert len(lines) == (1 if done.returncode else 0), done.stderr
    return lines[0] if lines else ""


def test_places_that_cannot_be_written(config, tmp_path):
    there = tmp_path / "file"
    there.write_text("")
    for storage in (NOWHERE, there):
        assert str(storage) in said(tailor("run", config, "--storage", storage), 2)
    assert "a disk is full" in said(tailor("run", config, before=small_files), 3)
    home = {"HOME": NOWHERE, "TAILOR_RAY_CACHE": ""}
    model = ["--set", f"student.model={make_model(tmp_path)}"]
    assert "HOME" in said(tailor("run", config, *model, **home), 2)
    gone = tmp_path / "gone"
    gone.mkdir()
    assert said(tailor("exam", "tiny", "arithmetic", cwd=gone, before=gone.rmdir), 2)


def make_model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_damaged_small_files_of_a_run(config, tmp_path):
    """Named where they are read; the run itself goes on, here until it finds no teacher."""
    run = make_run(tmp_path / "runs" / "try", rounds=1)
    for folder in ("old", "²", "01-copy"):
        Path(run.path(f"rounds/{folder}")).mkdir()
    Path(run.path("lease.json")).write_text("")
    Path(run.path("run.yaml")).write_text("name: tr")
    assert "belongs to another configuration" in said(tailor("run", config), 2)
    Path(run.path("lease.json")).write_text('{"number": 1, "owner": {"pi')
    Path(run.path("run.yaml")).write_text("")
    assert f"{run.uri}/run.yaml is damaged" in said(tailor("run", config), 2)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"number": 1, "owner": {"pi', b"null", b"\xff"])
def test_a_damaged_lease_is_taken_by_the_number_of_its_claim(tmp_path, content, caplog):
    store = Store.open(str(tmp_path / "run"))
    with Lease.acquire(store):
        store.write_bytes("lease.json", content)
        with pytest.raises(RunFolderError, match=f"process {os.getpid()}"):  # its owner lives
            Lease.acquire(store)
    assert "lease.json is damaged" in caplog.text
    store.write_bytes("lease.json", content)
    claim = store.read_json("lease-000001")
    store.write_json("lease-000001", claim | {"pid": 2**22 + 1})  # a process that is no more
    with Lease.acquire(store) as lease:
        assert lease.fence.number == 2
        lease.fence()


def test_keys_in_arguments_are_not_echoed(config):
    for arguments in (["status"], ["run", config, "--storage"]):
        done = tailor(*arguments, "s3://bucket/runs?secret_key=canary-5511&region=eu")
        assert "by the environment" in said(done, 2) + done.stderr
        assert "canary-5511" not in done.stderr + done.stdout


@pytest.fixture(scope="module")
def listeners():
    """Ports where something listens that is no Ray: one that says nothing, one that speaks HTTP."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    web = HTTPServer(("127.0.0.1", 0), type("Quiet", (BaseHTTPRequestHandler,), {"log_message": lambda *_: None}))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1], web.server_port
    web.shutdown()


def test_an_address_that_is_no_ray_cluster(listeners, monkeypatch):
    from tailor_ray.config.run import ClusterConfig
    from tailor_ray.rounds import cluster

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "ANSWER_S", 2.0)
    addresses = {
        "ray://127.0.0.1:10001": "Ray Client.*submit",
        f"127.0.0.1:{listeners[0]}": "no Ray cluster's head",
        f"127.0.0.1:{listeners[1]}": "no Ray cluster's head",
        "127.0.0.1:1": "no Ray cluster answers.*Connection refused",
        "no-such-host.invalid:6379": "no Ray cluster answers",
        "http://127.0.0.1:8265": "not host:port",
        "127.0.0.1": "not host:port",
        "127.0.0.1:99999": "not host:port",
    }
    for address, what in addresses.items():
        with pytest.raises(ConfigError, match=what), cluster.connected(ClusterConfig(address=address)):
            raise AssertionError(address)


def test_a_folder_for_sockets_that_is_too_long_is_replaced(monkeypatch, tmp_path):
    from contextlib import ExitStack

    from tailor_ray.rounds.cluster import short_folder

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    with ExitStack() as opened:
        assert short_folder(opened) is None
        monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 90)))
        folder = short_folder(opened)
        assert len(folder) < 20
        assert Path(folder).is_dir()
    assert not Path(folder).exists()


def test_status_as_json_and_logs(tmp_path):
    run, shown = make_run(tmp_path / "demo", rounds=1), []
    Path(run.path("run.log")).write_text("one\ntwo\nthree\n")
    status_command.show_status(run.uri, False, True, shown.append)
    assert json.loads(shown[0])["rounds"][1]["round"] == 1
    status_command.show_log(run.uri, 2, False, shown.append)
    assert shown[1:] == ["two", "three"]
    with pytest.raises(DataError, match=r"run\.yaml"):
        status_command.show_log(str(tmp_path / "nothing"), 2, False, shown.append)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b'{"stages": 1}', b'{"stages": [1, {}, {"since": "x", "line": 1}], "warning": 3}'],
)
def test_a_damaged_account_of_what_is_under_way_is_left_out(tmp_path, content):
    run, shown = make_run(tmp_path / "demo", rounds=1), []
    run.write_bytes("progress.json", content)
    with Lease.acquire(run):
        status_command.show_status(run.uri, False, False, shown.append)
    assert f"held by process {os.getpid()}" in shown[0]
    assert "under way since" not in shown[0]
    assert "last warning" not in shown[0]


def test_the_status_of_a_live_run_says_since_when_how_fast_and_the_last_warning(tmp_path):
    run, shown = make_run(tmp_path / "demo", rounds=1), []
    stage = {"name": "round 2 exam train", "since": time.time() - 60, "line": "round 2 exam train: 5 samples, 2/s"}
    run.write_json("progress.json", {"stages": [stage], "warning": [time.time() - 30, "WARNING waiting for nodes"]})
    with Lease.acquire(run):
        status_command.show_status(run.uri, False, False, shown.append)
    assert re.search(r"under way since \d\d:\d\d:\d\d \(1 min 00 s ago\): round 2 exam train: 5 samples, 2/s", shown[0])
    assert "30 s ago): WARNING waiting for nodes" in shown[0]
    status_command.show_status(run.uri, True, False, shown.append)  # nobody holds it: watching ends
    assert "under way since" not in shown[1]
