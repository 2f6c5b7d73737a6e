"""Which checkpoint is resumed from: the last that is whole and of this job."""

import json
import logging

from tailor_ray.storage import Store
from tailor_ray.training.checkpoint import Checkpoints
from tailor_ray.training.history import History


class Engine:
    """DeepSpeed's two calls, on a file: what lies in a checkpoint is not this module's matter."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def save_checkpoint(self, folder, tag, save_latest, exclude_frozen_parameters):
        from pathlib import Path

        target = Path(folder) / tag
        target.mkdir(parents=True, exist_ok=True)
        (target / "weights.pt").write_text(json.dumps(self.value) * 50)


def steps_done(count):
    history = History()
    figures = {"mle": 0.5, "triplet": 0.25, "learning_rate": 1e-3, "tokens": 700, "seconds": 0.1}
    for step in range(count):
        row = {"step": step, "loss": 1.0 / (step + 1), **figures}
        history.append(row if step % 3 != 1 else {**row, "validation": -1.0})
    return history


def save(checkpoints, step, tmp_path):
    history = steps_done(step)
    checkpoints.save(step, history, Engine(step), tmp_path, 0, False, lambda entries: entries)


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
    torn = tmp_path / "train/checkpoints/step-00000009/state/weights.pt"
    torn.write_bytes(torn.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest().step == 6
    assert "weights.pt" in caplog.text
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
