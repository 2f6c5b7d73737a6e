"""Schooling on the cluster: an actor that dies costs a start, not the run."""

import psutil
import pytest

from tailor_ray.config.student import TinyConfig
from tailor_ray.demo import schooling
from tailor_ray.errors import StageError
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import AnswerKind
from tailor_ray.storage import Store
from tests.integration.engines import ref

pytestmark = pytest.mark.usefixtures("ray_cluster")
PROMPT = StudentPrompt("plain", AnswerKind.NUMBER)
CONFIG = TinyConfig(hidden_size=64, layers=1, heads=2, school_steps=30, school_questions=100)


def kill_schoolroom(_):
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::Schoolroom"):
            process.kill()


def test_a_killed_schoolroom_starts_again(tmp_path, caplog):
    said = []

    def strike_once(steps):
        if not said:
            kill_schoolroom(steps)
        said.append(steps)

    made, _ = schooling.school_tiny_student(CONFIG, PROMPT, 1, Store.open(str(tmp_path)), strike_once)
    assert "schooling is lost and starts again (1 of at most 4)" in caplog.text
    assert made == ref(tmp_path / "student")


def test_a_schoolroom_that_always_dies_ends_the_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(schooling, "STARTS", 1)
    with pytest.raises(StageError, match="schooling was lost 1 times"):
        schooling.school_tiny_student(CONFIG, PROMPT, 1, Store.open(str(tmp_path)), kill_schoolroom)
