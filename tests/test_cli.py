"""What a user sees when the input is wrong: one message that helps, exit code 2, no traceback; before Ray starts."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.command import tailor

ROWS = [{"id": f"q{n}", "question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(40)]


def refused(done, *said):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in done.stderr
    assert done.stdout == ""


@pytest.fixture
def run(tmp_path):
    """Write a data folder and a config for it; return the arguments of `run`."""

    def make(train=ROWS[:30], test=ROWS[30:], **settings):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for name, rows in (("train", train), ("test", test)):
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        config = {
            "name": "try",
            "storage": str(tmp_path / "runs"),
            "task": {"name": "jsonl", "path": str(folder)},
            "teacher": {"base_url": "mock"},
            **settings,
        }
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(config))
        return ["run", path]

    return make


def test_help_and_each_commands_help_answer():
    done = tailor("--help")
    assert done.returncode == 0
    commands = (
        "run",
        "plan",
        "status",
        "report",
        "exam",
        "evaluate",
        "submit",
        "serve",
        "doctor",
        "ledger",
        "grade",
        "mock-teacher",
    )
    for command in commands:
        assert f"  {command} " in done.stdout
        assert "Example: tailor-ray" in tailor(command, "--help").stdout, command


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "nothing.yaml"),
        ("plan", "nothing.yaml"),
        ("status", "nothing"),
        ("logs", "nothing"),
        ("doctor", "nothing.yaml"),
        ("submit", "nothing.yaml", "--address", "http://127.0.0.1:1"),
        ("exam", "tiny", "arithmetic", "--set=exam.samples=0"),
        ("evaluate", "tiny", "arithmetic", "--set=exam.samples=0"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_mistake_is_answered_before_anything_heavy_is_imported(tmp_path, arguments):
    done = tailor(*arguments, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 2
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tailor_ray.errors" in imported
    assert not imported & {"ray", "torch", "openai", "transformers"}


def test_serving_what_is_not_there(tmp_path):
    refused(tailor("serve", tmp_path / "nowhere"), "no run.yaml", "<storage>/<name>", "hub id")
    (tmp_path / "run.yaml").write_text("name: demo")
    refused(tailor("serve", tmp_path), "no student yet")
    refused(tailor("serve", f"{tmp_path}@3", "--reload"), "--reload")
    refused(tailor("serve", f"{tmp_path}@²"), "'²' is not the number of one of its rounds")
    refused(tailor("serve", tmp_path, "--route", "student"), "--route", "/student")


@pytest.mark.parametrize(("port", "bound"), [("-1", "greater than or equal to"), ("65536", "equal to 65535")])
@pytest.mark.parametrize("command", [["serve", "runs/demo"], ["mock-teacher"]])
def test_a_port_that_is_none(command, port, bound):
    refused(tailor(*command, "--port", port), "--port", bound)


def test_a_mock_teacher_whose_access_log_cannot_be_written():
    refused(tailor("mock-teacher", "--port", "0", "--access-log", "/proc/nobody/log"), "/proc/nobody/log")


def test_unknown_key(run):
    refused(tailor(*run(), "--set", "training.epocs=3"), "training.epocs", "did you mean 'epochs'")


def test_missing_config(tmp_path):
    refused(tailor("run", tmp_path / "nowhere.yaml"), "cannot read the configuration", "nowhere.yaml")


def test_missing_data_file(run, tmp_path):
    arguments = run()
    (tmp_path / "data" / "train.jsonl").unlink()
    refused(tailor(*arguments), "train", str(tmp_path / "data"), "task.path")


def test_row_without_answer(run):
    rows = [*ROWS[:30], {"id": "bad", "question": "What is this?"}]
    refused(tailor(*run(train=rows), "--set", "task.max_bad_share=0"), "31", "answer")


def test_duplicate_ids(run):
    refused(tailor(*run(train=[*ROWS[:30], ROWS[3]]), "--set", "task.max_bad_share=0"), "q3", "id")


def test_empty_data_set(run):
    refused(tailor(*run(train=[])), "train")


def test_student_without_tokenizer(run, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"")
    refused(tailor(*run(student={"model": str(folder)})), "tokenizer", "student.model")


def test_student_that_is_no_folder(run):
    refused(tailor(*run(student={"model": "./nowhere"})), "./nowhere", "student.model")


def test_teacher_that_refuses_connections(run):
    done = tailor(*run(teacher={"base_url": "http://127.0.0.1:9/v1", "model": "m"}), OPENAI_API_KEY="k" * 20)
    refused(done, "http://127.0.0.1:9/v1", "teacher.base_url")


@pytest.mark.parametrize("command", ["exam", "evaluate"])
def test_one_stage_alone_is_refused_for_its_data_and_not_for_want_of_a_teacher(run, tmp_path, command):
    run(train=[*ROWS[:30], {"id": "bad", "question": "What is this?"}])
    settings = [f"task.path={tmp_path / 'data'}", "teacher.base_url=http://127.0.0.1:9/v1"]
    done = tailor(command, "tiny", "jsonl", "--out", tmp_path / "out", *(f"--set={one}" for one in settings))
    refused(done, "train.jsonl, line 31: there is no 'answer'", "task.max_bad_share")
    assert "teacher" not in done.stderr


def test_teacher_that_refuses_the_key(run, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "tailor_ray", "mock-teacher", "--port", "0", "--key-env", "MOCK_KEY"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MOCK_KEY": "the-right-key"},
    ) as server:
        url = server.stdout.readline().split()[-1]
        try:
            done = tailor(*run(teacher={"base_url": url, "model": "m"}), OPENAI_API_KEY="wrong-canary-key")
        finally:
            server.terminate()
    refused(done, "401", "teacher.api_key_env")
    assert "canary" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_with_a_code_of_its_own(run, number):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        command = [sys.executable, "-m", "tailor_ray", *map(str, run(teacher={"base_url": url, "model": "m"}))]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            silent.accept()  # it asks whether the teacher is there, and waits
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
    assert process.returncode == 3
    assert said.splitlines()[-1] == f"tailor-ray: stopped by {number.name}; the same command goes on"
    assert "Traceback" not in said


def test_no_key_at_all(run):
    done = tailor(*run(teacher={"base_url": "https://teacher.example/v1", "model": "m"}), OPENAI_API_KEY="")
    refused(done, "OPENAI_API_KEY", "teacher.api_key_env")


def test_run_folder_of_another_config(run, tmp_path):
    from tailor_ray.config import load_config
    from tailor_ray.rounds.loop import claim_folder
    from tailor_ray.storage import Store

    arguments = run()
    claim_folder(Store.open(str(tmp_path / "runs" / "try")), load_config(arguments[1], ["exam.samples=9"]))
    refused(tailor(*arguments), "exam.samples: 9 → 4", "--name")


def test_run_folder_in_use(run, tmp_path):
    from tailor_ray.storage import Lease, Store

    with Lease.acquire(Store.open(str(tmp_path / "runs" / "try"))):
        refused(tailor(*run()), "in use", f"process {os.getpid()}")


def test_status_of_a_folder_that_is_no_run(tmp_path):
    refused(tailor("status", tmp_path), "run.yaml")


def test_status_answers_while_a_run_is_held(run, tmp_path):
    from tailor_ray.config import load_config
    from tailor_ray.rounds.loop import claim_folder
    from tailor_ray.storage import Lease, Store

    store = Store.open(str(tmp_path / "runs" / "try"))
    claim_folder(store, load_config(run()[1]))
    with Lease.acquire(store):
        done = tailor("status", store.uri)
    assert done.returncode == 0
    assert "round 0 questions: not committed yet" in done.stdout
    assert f"held by process {os.getpid()}" in done.stdout


def test_the_reference_prints_every_section():
    done = tailor("config-reference")
    assert done.returncode == 0
    assert "| `training.triplet_margin` | `1.0` | ● |" in done.stdout
