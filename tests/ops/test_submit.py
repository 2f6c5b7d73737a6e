"""What `tailor-ray submit` refuses before anything travels, and how a job's end becomes this command's exit code."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ray.job_submission import JobInfo, JobStatus

from tailor_ray.config import RunConfig
from tailor_ray.errors import ConfigError, StageError, Stopped, UserError
from tailor_ray.ops import submit
from tests.integration.clusters import free_port


def config(**settings):
    return RunConfig(**{"name": "try", "storage": "s3://bucket/runs", "teacher": {"base_url": "mock"}, **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"storage": "runs"}, "storage='runs' is relative"),
        ({"student": {"model": "./mine"}}, r"student\.model='\./mine' is relative to this machine"),
        ({"task": {"name": "jsonl", "path": "~/data"}}, r"task\.path='~/data'"),
    ],
)
def test_what_a_job_would_not_find_again_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        submit.submit(config(**settings), "http://127.0.0.1:1", False, print)


class Client:
    """The Jobs API's client, which keeps what would travel."""

    def __init__(self, error=None):
        self.error, self.sent = error, {}

    def submit_job(self, entrypoint, runtime_env, metadata):
        folder = Path(runtime_env["working_dir"])
        self.sent = {str(file.relative_to(folder)): file.read_text() for file in folder.glob("[!t]*") if file.is_file()}
        self.sent |= {f"shipped/{file.name}": file.read_text() for file in (folder / "shipped").glob("*")}
        return "j"

    async def tail_job_logs(self, job):
        yield "a line\n"
        if self.error:
            raise self.error

    def get_job_info(self, job):
        return JobInfo(status=JobStatus.SUCCEEDED, entrypoint="", driver_exit_code=0)


def test_questions_and_a_grading_module_of_the_working_folder_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "train.jsonl").write_text("{}\n")
    (tmp_path / "grading.py").write_text("def judge(text, gold):\n    return True\n")
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda _: client)
    client = Client()
    task = {"name": "jsonl", "path": "data/mine", "answer_kind": "python", "answer_function": "grading:judge"}
    assert submit.submit(config(task=task), "http://127.0.0.1:1", True, print) == "j"
    assert client.sent["shipped/train.jsonl"] == "{}\n"
    assert "def judge" in client.sent["grading.py"]
    assert "path: shipped\n" in client.sent["run.yaml"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionError("gone")])
def test_a_command_that_no_longer_follows_says_that_the_job_runs_on(monkeypatch, error):
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda _: Client(error))
    with pytest.raises(Stopped, match=r"job j runs on; .*`ray job stop j` stops it"):
        submit.submit(config(), "http://127.0.0.1:1", True, print)


def test_an_address_without_a_jobs_api_is_said():
    with pytest.raises(ConfigError, match=r"no Ray Jobs API answers.*RAY_AUTH_TOKEN"):
        submit.submit(config(), f"http://127.0.0.1:{free_port()}", False, print)


@pytest.mark.parametrize("code", [401, 403])
def test_a_cluster_that_refuses_the_token_is_said(code):
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"Unauthorized: the version of this token is old")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ConfigError, match=f"{address} refused the token.*RAY_AUTH_TOKEN"):
            submit.submit(config(), address, False, print)
        server.shutdown()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "http://head:8265"),
        ("head:6379", "http://head:8265"),
        ("auto", "http://127.0.0.1:8265"),
        ("", "http://127.0.0.1:8265"),
        ("http://", "http://127.0.0.1:8265"),
        ("http://head:99999", "http://127.0.0.1:8265"),
    ],
)
def test_an_address_that_cannot_be_a_dashboards_is_refused_before_it_is_asked(address, said):
    with pytest.raises(ConfigError, match=f"--address '{address}'.*{said}"):
        submit.submit(config(), address, False, print)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (JobStatus.FAILED, 2, UserError),
        (JobStatus.FAILED, 3, Stopped),
        (JobStatus.FAILED, 1, StageError),
        (JobStatus.FAILED, None, StageError),
        (JobStatus.STOPPED, None, Stopped),
    ],
)
def test_the_command_exits_as_the_job_did(status, code, error):
    info = JobInfo(status=status, entrypoint="", driver_exit_code=code)
    with pytest.raises(error, match="job j ended as"):
        submit.raise_for(info, "j")
    submit.raise_for(JobInfo(status=JobStatus.SUCCEEDED, entrypoint="", driver_exit_code=0), "j")
