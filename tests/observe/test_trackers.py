"""Each tracker's own reader finds what was sent; a restart sends nothing twice; an unreachable one stops nothing."""

import socket

import pytest

from tailor_ray.config.run import parse_config
from tailor_ray.errors import ConfigError
from tailor_ray.observe.summary import load_run
from tailor_ray.observe.trackers import SENT, Trackers, scalars
from tests.observe.runs import make_run

FIGURES = {"evaluate/test/accuracy", "exam/wrong", "teach/cost_usd", "train/loss_last"}


def observe(**settings):
    return parse_config({"observe": settings}, "test").observe


def send(config, run, times=1):
    for _ in range(times):  # each time a driver of its own
        trackers = Trackers(config, run)
        trackers.sync()
        trackers.close()


def test_scalars_are_the_finite_numbers():
    metrics = {"a": 1, "b": {"c": 0.5, "d": {"e": 2}}, "nan": float("nan"), "yes": True, "text": "x", "ci95": [0, 1]}
    assert dict(scalars(metrics)) == {"a": 1.0, "b/c": 0.5, "b/d/e": 2.0}


def test_no_trackers_write_nothing(tmp_path):
    run = make_run(tmp_path / "run", rounds=1, questions=4)
    send(observe(), run)
    assert not run.exists(SENT)


def test_tensorboard_reads_every_figure_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(tmp_path / "run", rounds=2, questions=8)
    send(observe(trackers=["tensorboard"]), run, times=2)
    events = EventAccumulator(str(tmp_path / "run/trackers/tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    assert set(events.Tags()["tensors"]) >= FIGURES | {"train/mle", "train/reflection"}
    accuracy = events.Tensors("evaluate/test/accuracy")
    assert [event.step for event in accuracy] == [0, 1, 2]
    expected = load_run(run).stages[2, "evaluate"].metrics["test"]["accuracy"]
    assert accuracy[2].tensor_proto.float_val[0] == pytest.approx(expected)
    assert [event.step for event in events.Tensors("train/loss")] == list(range(1, 301))  # steps over both rounds


def test_mlflow_keeps_one_run_with_settings_and_figures(tmp_path):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    run = make_run(tmp_path / "run", rounds=1, questions=8)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    send(observe(trackers=["mlflow"], mlflow_uri=uri, tracker_project="trial"), run, times=2)
    client = MlflowClient(tracking_uri=uri)
    (kept,) = client.search_runs([client.get_experiment_by_name("trial").experiment_id])
    assert kept.data.params["task.name"] == "arithmetic"
    assert set(kept.data.metrics) >= FIGURES
    assert len(client.get_metric_history(kept.info.run_id, "train/mle")) == 150
    assert [metric.step for metric in client.get_metric_history(kept.info.run_id, "evaluate/test/accuracy")] == [0, 1]


def test_wandb_works_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    run = make_run(tmp_path / "run", rounds=1, questions=4)
    config = observe(trackers=["wandb"], wandb_mode="offline", tracker_folder=str(tmp_path / "wb"))
    send(config, run)
    (file,) = (tmp_path / "wb").rglob("run-*.wandb")
    data = file.read_bytes()
    assert b"evaluate/test/accuracy" in data
    assert b"train/reflection" in data
    assert not any(b"f" * 40 in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(run.read_json(SENT)["wandb"]) == 9  # 3 + 5 stages and a curve


def test_a_tracker_out_of_reach_is_warned_about_and_served_later(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = make_run(tmp_path / "run", rounds=0)
    send(observe(trackers=["mlflow"], mlflow_uri=f"http://127.0.0.1:{port}"), run)
    assert "the tracker mlflow failed" in caplog.text
    assert run.read_json(SENT) == {"mlflow": []}
    send(observe(trackers=["mlflow"], mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db"), run)
    assert run.read_json(SENT) == {"mlflow": ["0 evaluate", "0 questions", "0 student"]}


def test_damaged_small_files_are_warned_about_and_stop_no_run(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    run = make_run(tmp_path / "run", rounds=1, questions=4)
    run.delete("rounds/01/train/log")
    for content in (b"", b"[1]", b'{"tensorboard": 3}'):
        run.write_bytes(SENT, content)
        send(observe(trackers=["tensorboard"]), run)
        assert len(run.read_json(SENT)["tensorboard"]) == 8  # all stages; the curve is sent once it is back
    assert caplog.text.count("sent.json is damaged") == 3
    assert "steps-00000.json is missing" in caplog.text


def test_a_missing_library_is_refused_at_load(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"not installed here: wandb; pip install 'tailor-ray\[trackers\]'"):
        observe(trackers=["wandb"])


def test_a_password_in_the_mlflow_address_is_refused():
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD"):
        observe(mlflow_uri="https://user:secret@mlflow.example")
