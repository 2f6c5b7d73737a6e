"""What `tailor-ray submit` refuses before anything travels, and how a job's end becomes this command's exit code."""

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


def test_an_address_without_a_jobs_api_is_said():
    with pytest.raises(ConfigError, match=r"no Ray Jobs API answers.*RAY_AUTH_TOKEN"):
        submit.submit(config(), f"http://127.0.0.1:{free_port()}", False, print)


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
