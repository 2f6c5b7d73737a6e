"""Which checkpoint is resumed from: the last that is whole and of this job."""

import logging
import threading

import pytest
import torch

from tailor_ray.errors import StageError
from tailor_ray.storage import Store
from tailor_ray.training.checkpoint import SHARE, Checkpoints, Pace
from tailor_ray.training.steps import History


def steps_done(count):
    history = History()
    figures = {"mle": 0.5, "reflection": 0.25, "learning_rate": 1e-3, "tokens": 700, "seconds": 0.1}
    for step in range(count):
        row = {"step": step, "loss": 1.0 / (step + 1), **figures}
        history.append(row if step % 3 != 1 else {**row, "validation": -1.0})
    return history


def save(checkpoints, step, tmp_path):
    checkpoints.save(step, steps_done(step), tensors(step), {"steps": step}, tmp_path / f"scratch-{checkpoints.rank}")
    checkpoints.wait()


def tensors(step):
    return {"a weight": torch.full((40,), float(step)), "a exp_avg": torch.zeros(40)}


def test_the_last_whole_one_is_found_and_few_are_kept(tmp_path, caplog):
    store = Store.open(str(tmp_path / "train"))
    checkpoints = Checkpoints(store, "job", keep=2)
    assert checkpoints.latest() is None
    for step in (3, 6, 9):
        save(checkpoints, step, tmp_path)
    assert checkpoints.latest().step == 9
    found = checkpoints.latest().history
    assert found.table() == steps_done(9).table()
    assert found.table().column("validation").to_pylist() == [None, -1.0, None] * 3
    assert store.folders("checkpoints") == ["step-00000006", "step-00000009"]
    torn = tmp_path / "train/checkpoints/step-00000009/rank-00000.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest().step == 6
    assert "rank-00000.safetensors" in caplog.text
    record = tmp_path / "train/checkpoints/step-00000006.json"
    record.write_bytes(record.read_bytes().replace(b'"step": 6', b'"step": 7'))
    assert checkpoints.latest() is None


def test_another_job_is_not_resumed(tmp_path):
    store = Store.open(str(tmp_path / "train"))
    save(Checkpoints(store, "one", keep=2), 3, tmp_path)
    assert Checkpoints(store, "two", keep=2).latest() is None
    assert Checkpoints(store, "one", keep=2).latest().step == 3


def test_a_checkpoint_without_its_record_does_not_exist_and_is_written_over(tmp_path):
    store = Store.open(str(tmp_path / "train"))
    checkpoints = Checkpoints(store, "job", keep=2)
    save(checkpoints, 3, tmp_path)
    store.delete("checkpoints/step-00000003.json")
    assert checkpoints.latest() is None
    save(checkpoints, 3, tmp_path)
    assert checkpoints.latest().step == 3


def test_what_was_saved_is_found_again_by_any_number_of_workers(tmp_path):
    store = Store.open(str(tmp_path / "train"))
    two = [Checkpoints(store, "job", 2, rank, workers=2, attempt="now") for rank in range(2)]
    begun = threading.Thread(target=save, args=(two[0], 3, tmp_path))
    begun.start()  # its record waits for the other's file
    two[1].save(3, steps_done(3), {"b weight": torch.ones(7)}, {}, tmp_path / "other")
    two[1].wait()
    begun.join()
    alone = Checkpoints(store, "job", 2)
    found = alone.latest()
    assert found.figures == {"steps": 3}
    assert {name: value.sum().item() for name, value in alone.tensors(found.name)} == {
        "a weight": 120.0,
        "a exp_avg": 0.0,
        "b weight": 7.0,
    }


def test_a_file_of_an_attempt_that_was_cut_off_is_not_taken_for_this_ones(tmp_path, monkeypatch):
    store = Store.open(str(tmp_path / "train"))
    old = Checkpoints(store, "job", 2, 1, workers=2, attempt="old")
    old.save(3, steps_done(3), {"b weight": torch.ones(7)}, {}, tmp_path / "old")
    old.wait()
    monkeypatch.setattr("tailor_ray.training.checkpoint.WAIT_S", 0.0)
    with pytest.raises(StageError, match="worker 1 did not write"):
        save(Checkpoints(store, "job", 2, 0, workers=2, attempt="new"), 3, tmp_path)
    assert Checkpoints(store, "job", 2).latest() is None


def test_the_dearer_a_checkpoint_the_rarer(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tailor_ray.training.checkpoint.time.monotonic", lambda: now[0])
    pace = Pace(every_s=60, every_steps=None, step=0)
    assert not pace.due(5)
    now[0] += 60
    assert pace.due(5)
    pace.saved(5, cost=30.0)
    now[0] += 30 / SHARE - 1
    assert not pace.due(9)
    now[0] += 1
    assert pace.due(9)
    by_steps = Pace(every_s=60, every_steps=7, step=14)
    assert not by_steps.due(20)
    assert by_steps.due(21)
