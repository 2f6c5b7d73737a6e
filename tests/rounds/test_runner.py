"""The loop's decisions, on real manifests: what is next, when to stop, and what is refused."""

import pytest

from tailor_ray.config import load_config
from tailor_ray.errors import CorruptionError, RunFolderError
from tailor_ray.rounds.runner import Runner, claim_folder
from tailor_ray.rounds.spec import stages_of
from tailor_ray.storage import Manifest, Store, commit_manifest


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "run"))


def commit(store, config, number, names=None, accuracy=0.5):
    """Commit the stages of a round as the runner does, each with one file."""
    for earlier in range(number + 1):
        for spec in stages_of(config, earlier):
            if earlier == number and (names is None or spec.id.name in names):
                folder = store.child(*spec.id.folder)
                entry = folder.write_bytes("data", f"{spec.id}".encode())
                inputs = {str(stage): _digest(store, stage) for stage in spec.after}
                metrics = {"validation": {"accuracy": accuracy}}
                commit_manifest(folder, Manifest(spec.id.name, number, spec.digest(), inputs, (entry,), 1.0, metrics))


def _digest(store, stage):
    from tailor_ray.storage import read_manifest

    return read_manifest(store.child(*stage.folder)).digest()


def following(store, config):
    group = Runner(config, store).next_group()
    return None if group is None else [str(spec.id) for spec in group]


def test_it_goes_on_with_the_first_stage_without_a_manifest(store):
    config = load_config(None, ["rounds.max_rounds=2"])
    assert following(store, config) == ["round 0 questions"]
    commit(store, config, 0)
    assert following(store, config) == ["round 1 exam", "round 1 teach"]
    commit(store, config, 1, {"exam"})
    assert following(store, config) == ["round 1 exam", "round 1 teach"]
    commit(store, config, 1, {"exam", "teach"})
    assert following(store, config) == ["round 1 train"]
    commit(store, config, 1)
    commit(store, config, 2)
    assert following(store, config) is None


def test_raising_the_number_of_rounds_goes_on_with_a_finished_run(store):
    config = load_config(None, ["rounds.max_rounds=1"])
    commit(store, config, 0)
    commit(store, config, 1)
    assert following(store, config) is None
    assert following(store, load_config(None, ["rounds.max_rounds=2"])) == ["round 2 exam", "round 2 teach"]


def test_it_stops_when_validation_gains_less_than_asked(store):
    config = load_config(None, ["rounds.max_rounds=9", "rounds.min_gain=0.02", "rounds.patience=2"])
    commit(store, config, 0, accuracy=0.2)
    for number, score in enumerate((0.5, 0.51, 0.60, 0.61), start=1):
        commit(store, config, number, accuracy=score)
        assert following(store, config) is not None, number
    commit(store, config, 5, accuracy=0.615)
    assert following(store, config) is None


def test_a_damaged_file_stops_the_run_with_its_name(store):
    config = load_config(None)
    commit(store, config, 0)
    store.write_bytes("rounds/00/student/data", b"round 0 studenT")
    with pytest.raises(CorruptionError, match="rounds/00/student/data"):
        following(store, config)


def test_stages_made_from_other_inputs_are_refused(store):
    config = load_config(None)
    commit(store, config, 0)
    commit(store, config, 1)
    folder = store.child("rounds", "01", "exam")
    spec = next(spec for spec in stages_of(config, 1) if spec.id.name == "exam")
    entry = folder.write_bytes("data", b"another exam")
    commit_manifest(folder, Manifest("exam", 1, spec.digest(), {}, (entry,), 1.0, {}))
    with pytest.raises(RunFolderError, match="other inputs"):
        following(store, config)


def test_a_folder_of_another_configuration_is_refused_naming_the_settings(store):
    claim_folder(store, load_config(None))
    claim_folder(store, load_config(None, ["teacher.actors=2", "rounds.max_rounds=7"]))
    with pytest.raises(RunFolderError, match=r"exam\.samples: 4 → 5\n.*training\.epochs") as caught:
        claim_folder(store, load_config(None, ["exam.samples=5", "training.epochs=3"]))
    assert "--name" in str(caught.value)
