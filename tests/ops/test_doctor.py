"""What the doctor says of one thing after the other, and that each failing line says what to do."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from tailor_ray.config import RunConfig, load_config
from tailor_ray.config.teacher import MockConfig
from tailor_ray.demo.mock_server import MockOptions, MockProcess
from tailor_ray.models.folder import Shape
from tailor_ray.ops import doctor
from tests.training.students import make_model


def config(tmp_path, **settings):
    given = {"name": "try", "storage": str(tmp_path / "runs"), "teacher": {"base_url": "mock"}}
    return RunConfig(**{**given, **settings})


def test_versions_name_every_package_and_the_engine(tmp_path):
    lines = list(doctor.versions(config(tmp_path)))
    assert {"python", "ray", "torch", "transformers", "deepspeed"} <= {line.topic for line in lines}
    assert any(line.topic.startswith("vllm") for line in lines)
    assert all(str(line).startswith("ok") for line in lines)


def test_python_that_keeps_no_bytecode_is_said(tmp_path, monkeypatch):
    """A warning, for all works: the cache below is empty, as after an installation that compiles nothing."""
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    for kept in (True, False):
        monkeypatch.setattr(sys, "dont_write_bytecode", not kept)
        python = next(line for line in doctor.versions(config(tmp_path)) if line.topic == "python")
        assert python.todo is None
        assert ("PYTHONDONTWRITEBYTECODE" in python.found) is not kept


def test_storage_is_tried_and_left_as_it_was(tmp_path):
    (line,) = doctor.storage(config(tmp_path))
    assert line.todo is None
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    (tmp_path / "file").write_text("")
    (line,) = doctor.storage(config(tmp_path, storage=str(tmp_path / "file" / "below")))
    assert "storage" in line.todo
    assert str(line).startswith("FAIL")


def test_a_teacher_that_answers_and_one_that_does_not(tmp_path, monkeypatch):
    (line,) = doctor.teacher(config(tmp_path))
    assert line.todo is None
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    log = MockConfig(access_log=str(tmp_path / "access.jsonl"))
    with MockProcess(MockOptions(log, key="sk-test")) as mock:
        settings = {"base_url": mock.base_url, "model": "mock-teacher"}
        (line,) = doctor.teacher(config(tmp_path, teacher=settings))
        assert line.todo is None
        assert "the request for a lesson" in line.found
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
        (line,) = doctor.teacher(config(tmp_path, teacher=settings))
        assert "teacher.api_key_env" in line.todo
    calls = [json.loads(text) for text in (tmp_path / "access.jsonl").read_text().splitlines()]
    assert [call["status"] for call in calls].count(200) == 1, "one paid call, and what looks a model up is none"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        (line,) = doctor.teacher(
            config(tmp_path, teacher={"base_url": f"http://127.0.0.1:{taken.getsockname()[1]}/v1"})
        )
    assert "did not answer" in line.found


def test_a_teacher_that_cannot_answer_although_it_knows_us(tmp_path):
    with MockProcess(MockOptions(faults=(("empty", 1.0),))) as mock:
        settings = {"base_url": mock.base_url, "model": "mock-teacher"}
        (line,) = doctor.teacher(config(tmp_path, teacher=settings))
    assert "no_choices" in line.todo


def test_a_teacher_to_be_served_must_be_there(tmp_path):
    (line,) = doctor.teacher(config(tmp_path, student={"engines": 1}, teacher={"serve": str(tmp_path / "nowhere")}))
    assert "teacher.serve" in line.todo


def test_clocks_differ_by_what_the_way_there_cannot_explain():
    assert doctor.skew(10.0, 10.4, 11.0) == 0.0
    assert doctor.skew(10.0, 13.0, 11.0) == 2.0
    assert doctor.skew(10.0, 7.0, 11.0) == 3.0
    assert doctor.clock_line(0.1).todo is None
    assert "NTP" in doctor.clock_line(3.0).todo


def test_compiler_and_gpus_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    (compiler,) = doctor.compiler(config(tmp_path))
    assert "g++" in compiler.todo
    (gpus,) = doctor.gpus(config(tmp_path))
    assert gpus.todo is None


SHAPES = {  # the two that jobs/modern.yaml is written for
    "1.5b": ("qwen2", {"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                           "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "8b": ("qwen3", {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                         "num_attention_heads": 32, "num_key_value_heads": 8,
                    "head_dim": 128, "tie_word_embeddings": False}),
}  # fmt: skip
MODERN = Path(__file__).parents[2] / "jobs/modern.yaml"
EIGHT = [f"training.{setting}" for setting in ("workers=8", "zero_stage=3")]


@pytest.fixture
def gpu_of_80_gb(tmp_path, monkeypatch):
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 81559\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("size", "changed", "training", "engines"),
    [
        ("1.5b", [], True, True),
        ("1.5b", ["training.gradient_checkpointing=false", "training.micro_batch_tokens=65536"], False, True),
        ("8b", [], False, True),
        ("8b", EIGHT, True, True),
        ("8b", ["training.lora.rank=16"], True, True),
        ("8b", [*EIGHT, "student.gpu_memory_utilization=0.2"], True, False),
    ],
)
def test_whether_a_student_fits_is_said_before_anything_is_spent(
    tmp_path, gpu_of_80_gb, size, changed, training, engines
):
    from transformers import AutoConfig

    kind, shape = SHAPES[size]
    AutoConfig.for_model(kind, **shape).save_pretrained(tmp_path / size)
    given = load_config(MODERN, [f"student.model={tmp_path / size}", *changed])
    lines = {line.topic: line for line in doctor.memory(given)}
    assert (lines["memory, training"].todo is None) == training, str(lines["memory, training"])
    assert (lines["memory, engines"].todo is None) == engines, str(lines["memory, engines"])
    assert "GiB" in lines["memory, training"].found


def test_parameters_are_those_of_the_model(tmp_path):
    """By its files where there are some, else by its configuration: biases and norms are what is left out there."""
    model = make_model("qwen2", hidden_size=64, tie_word_embeddings=True)
    shape = Shape.of(tmp_path, model.config)
    whole = sum(p.numel() for p in model.parameters())
    assert 0.97 * whole < shape.parameters < whole
    model.save_pretrained(tmp_path)
    assert Shape.of(tmp_path, model.config).parameters == whole
