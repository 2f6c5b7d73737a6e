"""The whole loop through the command line, stopped in each of its stages, and on real GSM8K text."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tailor_ray.errors import Stopped
from tailor_ray.records import Question, Verdict, from_table
from tailor_ray.storage import Store, committed_parts, read_manifest, read_part

IN_FLIGHT = 8
TINY = {"hidden_size": 64, "layers": 2, "heads": 2, "school_steps": 40, "school_questions": 400}
SETTINGS = {
    "task": {"name": "arithmetic", "limit_train": 96, "limit_test": 40, "max_validation": 16},
    "student": {"tiny": TINY, "engines": 1, "max_model_len": 256, "max_num_seqs": 64},
    "exam": {"samples": 2, "max_new_tokens": 48, "shard_questions": 32},
    "evaluation": {"max_new_tokens": 48},
    "training": {
        "steps": 40,
        "checkpoint_every_steps": 5,
        "learning_rate": 1e-3,
        "batch_size": 16,
        "warmup_steps": 2,
        "max_length": 256,
    },
    "rounds": {"max_rounds": 1},
    "cluster": {"dashboard": False, "object_store_gib": 0.3, "num_cpus": 2},
    "observe": {"log_every_s": 0.5},
}


class Command:
    """One `tailor-ray run` from a folder of its own, which all that it starts has as its working folder."""

    def __init__(self, folder, settings):
        self.config = folder / "run.yaml"
        self.config.write_text(json.dumps(settings))
        self.store = Store.open(settings["storage"]).child(settings["name"])
        self.folder = folder / "from-here"
        self.folder.mkdir()

    def start(self, *arguments):
        self.shown = (self.folder.parent / "stderr.txt").open("w+")
        return subprocess.Popen(
            [sys.executable, "-m", "tailor_ray", "run", str(self.config), *arguments],
            stdout=subprocess.PIPE,
            stderr=self.shown,
            text=True,
            cwd=self.folder,
            env={**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def stderr(self):
        return Path(self.shown.name).read_text()

    def interrupt(self, number, happened, seconds=200):
        """Start the command, send it a signal once `happened()`, and see that nothing it started lives on."""
        process = self.start()
        deadline = time.monotonic() + seconds
        while not happened():
            assert process.poll() is None, self.stderr()[-3000:]
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.05)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
        self.wait_until_gone()
        assert out == ""
        return process.returncode

    def finish(self, *arguments):
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=280)
        assert process.returncode == 0, self.stderr()[-3000:]
        self.wait_until_gone()
        return out

    def processes(self):
        """Ids of the live processes that this command started: Ray's rename themselves, but stay in its folder."""
        return [
            entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit() and _lives_in(entry, self.folder)
        ]

    def wait_until_gone(self, seconds=30):
        deadline = time.monotonic() + seconds
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert self.processes() == []


def _lives_in(entry, folder):
    try:
        zombie = "\nState:\tZ" in (entry / "status").read_text()
        return not zombie and (entry / "cwd").resolve() == folder
    except OSError:
        return False


@pytest.mark.timeout(900)
@pytest.mark.xdist_group("stopped")  # each start has a cluster of its own, so whichever test worker is free takes it
def test_a_run_stopped_in_every_stage_goes_on_and_its_report_is_true(tmp_path):
    """By SIGTERM in schooling, SIGKILL in the exam, its budget in teaching, SIGKILL in training and in evaluation."""
    log = tmp_path / "access.jsonl"
    mock = {"access_log": str(log), "wrong_share": 0.1, "malformed_share": 0.1, "latency_s": 0.5}
    teacher = {"base_url": "mock", "mock": mock, "max_in_flight": IN_FLIGHT}
    command = Command(tmp_path, {"name": "try", "storage": str(tmp_path / "runs"), "teacher": teacher, **SETTINGS})
    student = command.store.child("rounds", "00", "student")
    exam, teach, train, evaluate = (
        command.store.child("rounds", "01", name) for name in ("exam", "teach", "train", "evaluate")
    )

    def schooling():
        return "round 0 schooling: " in command.stderr()

    def mistake_mining():
        return committed_parts(exam, "attempts", verify=False)

    def training():
        return train.exists("checkpoints/step-00000010.json")

    def evaluation():
        return committed_parts(evaluate, "validation", verify=False)

    assert command.interrupt(signal.SIGTERM, schooling) == Stopped.exit_code
    assert "the same command goes on" in command.stderr()
    assert not student.exists("manifest.json")

    assert command.interrupt(signal.SIGKILL, mistake_mining) == -signal.SIGKILL
    made, shards = read_manifest(student).digest(), _committed(exam)
    assert not exam.exists("manifest.json")

    stopped = command.start("--set=teacher.budget_tokens=6000")  # of some 20,000
    stopped.communicate(timeout=200)
    assert stopped.returncode == Stopped.exit_code, command.stderr()[-3000:]
    assert "teacher.budget_tokens allows 6000 tokens" in command.stderr()
    command.wait_until_gone()
    assert not teach.exists("manifest.json")
    assert shards.items() <= _committed(exam).items()  # with their times: they were not done again

    assert command.interrupt(signal.SIGKILL, training) == -signal.SIGKILL
    assert not train.exists("manifest.json")
    taught, history = read_manifest(teach).digest(), _latest_history(train)
    assert len(history) >= 10

    assert command.interrupt(signal.SIGKILL, evaluation) == -signal.SIGKILL
    assert not evaluate.exists("manifest.json")
    trained = read_manifest(train).digest()
    steps = pq.read_table(train.path("log/steps-00000.parquet")).to_pylist()
    assert [row["seconds"] for row in steps[: len(history)]] == [row["seconds"] for row in history]  # not done again

    table = command.finish()
    assert len(table.splitlines()) == 4  # a head, rounds 0 and 1, the report's path
    kept = [read_manifest(stage).digest() for stage in (student, teach, train)]
    assert kept == [made, taught, trained]
    _each_request_was_answered_once(log, kills=3)
    _report_is_what_transformers_says(command.store)
    assert command.finish() == table  # a finished run says so again and starts nothing
    refused = subprocess.run(
        [sys.executable, "-m", "tailor_ray", "run", str(command.config), "--set", "exam.samples=3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "exam.samples: 2 → 3" in refused.stderr


def _latest_history(train):
    names = sorted(name for name in train.child("checkpoints").files() if name.endswith(".json") and "step-" in name)
    return pq.read_table(train.path(f"checkpoints/{names[-1].removesuffix('.json')}/history.parquet")).to_pylist()


def _committed(stage):
    parts = committed_parts(stage, "attempts")
    return {part.index: (part.entry.sha256, Path(stage.path(part.entry.path)).stat().st_mtime_ns) for part in parts}


def _each_request_was_answered_once(log, kills):
    """Answered means paid for; a request in flight at a kill may be answered twice."""
    answered = Counter()
    for line in log.read_text().splitlines():
        row = json.loads(line)
        if row["status"] == 200 and row["outcome"] in ("answered", "wrong"):
            answered[row["request"]] += 1
    assert len(answered) >= 96
    assert sum(answered.values()) - len(answered) <= kills * IN_FLIGHT


def _report_is_what_transformers_says(store):
    """Decode the test questions greedily with plain transformers: the report's count, within 1 %."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tailor_ray.answers import Grader
    from tailor_ray.prompts.student import StudentPrompt
    from tailor_ray.records import AnswerKind

    report = store.read_json("report/report.json")
    folder = store.local_folder("rounds/01/train/student")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    questions = store.child("rounds", "00", "questions")
    grader, prompt = Grader(AnswerKind.NUMBER), StudentPrompt("plain", AnswerKind.NUMBER)
    correct = total = 0
    for part in committed_parts(questions, "test"):
        for question in from_table(read_part(questions, part), Question):
            ids = tokenizer(prompt.render(question), return_tensors="pt")["input_ids"]
            with torch.no_grad():
                out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=48)
            new = out[0, ids.shape[1] :]
            reason = "stop" if int(new[-1]) == tokenizer.eos_token_id else "length"
            text = tokenizer.decode(new, skip_special_tokens=True)
            correct += grader.grade(question, text, reason).verdict == Verdict.CORRECT
            total += 1
    score = report["rounds"][-1]["evaluation"]
    assert score["total"] == total == 40
    assert abs(score["correct"] - correct) <= 0.01 * total


@pytest.mark.timeout(600)
def test_gsm8k_runs_two_rounds_with_recorded_rationales(tmp_path, data_folder, ray_cluster):
    """On the session's cluster. A student that never saw such text: the accuracy may be 0, and the report says so."""
    import ray

    job = Path(__file__).parents[2] / "jobs" / "gsm8k.yaml"
    settings = [
        *(f"storage={tmp_path}/runs", "name=gsm8k", f"task.path={data_folder}/gsm8k", "task.limit_train=64"),
        *("task.limit_test=16", "task.max_validation=8", "student.model=tiny", "student.few_shot=false"),
        *("student.max_model_len=512", "student.max_num_seqs=64", "student.engines=1", "student.tiny.school_steps=20"),
        *("student.tiny.hidden_size=64", "student.tiny.layers=2", "student.tiny.heads=2"),
        *("exam.samples=2", "exam.max_new_tokens=48", "evaluation.max_new_tokens=48"),
        *("teacher.base_url=mock", f"teacher.mock.answers={data_folder}/gsm8k/train.jsonl"),
        *("training.epochs=1", "training.zero_stage=1", "training.offload_optimizer=false", "training.workers=1"),
        *("training.offload_parameters=false", "training.max_length=512", "training.precision=float32"),
        *("rounds.max_rounds=2", "cluster.dashboard=false", "cluster.object_store_gib=0.3", "cluster.num_cpus=2"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tailor_ray", "run", str(job), *(f"--set={setting}" for setting in settings)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={
            **os.environ,
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "runs" / "gsm8k" / "report" / "report.json").read_text())
    assert [entry["round"] for entry in report["rounds"]] == [0, 1, 2]
    first, second = (entry["teacher"] for entry in report["rounds"][1:])
    assert first["accepted"] >= 60  # of 64: a few gold rationales do not end in the answer
    assert second["requests"] + second["from_ledger"] > 0
    last = report["rounds"][-1]["evaluation"]
    assert last["total"] == 16
    page = (tmp_path / "runs" / "gsm8k" / "report" / "index.html").read_text()
    assert f"{last['correct']} of 16" in page
