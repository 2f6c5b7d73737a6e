"""The loop's decisions, on real manifests: what is next, when to stop, and what is refused."""

from dataclasses import replace

import pytest

from tailor_ray.config import load_config
from tailor_ray.errors import CorruptionError, RunFolderError
from tailor_ray.layout import QUESTIONS, StageId, stage_folder
from tailor_ray.rounds.loop import Commits, claim_folder
from tailor_ray.rounds.spec import plain, stages_of
from tailor_ray.storage import Manifest, PartsDigest, Store, commit_manifest, read_manifest


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "run"))


def commit(store, config, number, names=None, accuracy=0.5):
    """Commit the stages of a round as the loop does."""
    for earlier in range(number + 1):
        for spec in stages_of(config, earlier):
            if earlier == number and (names is None or spec.id.name in names):
                inputs = {str(stage): read_manifest(stage_folder(store, stage)).digest() for stage in spec.after}
                metrics = {"validation": {"accuracy": accuracy}}
                parts = {"rows": PartsDigest(1, 1, f"{spec.id}")}
                settings = plain(spec.settings)
                manifest = Manifest(spec.id.name, number, spec.digest(), inputs, parts, 1.0, metrics, settings=settings)
                commit_manifest(stage_folder(store, spec.id), manifest)


def following(store, config):
    return [str(spec.id) for spec in Commits(config, store).missing()]


def test_it_goes_on_with_the_first_stage_without_a_manifest(store):
    config = load_config(None, ["rounds.max_rounds=2"])
    assert following(store, config) == ["round 0 questions"]
    commit(store, config, 0)
    assert following(store, config) == ["round 1 exam", "round 1 teach"]
    commit(store, config, 1, {"exam"})
    assert following(store, config) == ["round 1 exam", "round 1 teach"]
    commit(store, config, 1, {"exam", "teach"})
    assert following(store, config) == ["round 1 examples"]
    commit(store, config, 1, {"exam", "teach", "examples"})
    assert following(store, config) == ["round 1 train"]
    commit(store, config, 1)
    commit(store, config, 2)
    assert following(store, config) == []


def test_raising_the_number_of_rounds_goes_on_with_a_finished_run(store):
    config = load_config(None, ["rounds.max_rounds=1"])
    commit(store, config, 0)
    commit(store, config, 1)
    assert following(store, config) == []
    assert following(store, load_config(None, ["rounds.max_rounds=2"])) == ["round 2 exam", "round 2 teach"]


def test_it_stops_when_validation_gains_less_than_asked(store):
    config = load_config(None, ["rounds.max_rounds=9", "rounds.min_gain=0.02", "rounds.patience=2"])
    commit(store, config, 0, accuracy=0.2)
    for number, score in enumerate((0.5, 0.51, 0.60, 0.61), start=1):
        commit(store, config, number, accuracy=score)
        assert following(store, config), number
    commit(store, config, 5, accuracy=0.615)
    assert following(store, config) == []


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"stage": "student", "sealed": "00"}'])
def test_a_damaged_manifest_stops_the_run_with_its_name(store, data):
    config = load_config(None)
    commit(store, config, 0)
    store.write_bytes("rounds/00/student/manifest.json", data)
    with pytest.raises(CorruptionError, match=r"rounds/00/student/manifest\.json"):
        following(store, config)


def test_stages_made_from_other_inputs_are_refused(store):
    config = load_config(None)
    commit(store, config, 0)
    commit(store, config, 1)
    spec = next(spec for spec in stages_of(config, 1) if spec.id.name == "exam")
    commit_manifest(stage_folder(store, spec.id), Manifest("exam", 1, spec.digest(), {}, {}, 1.0))
    with pytest.raises(RunFolderError, match="other inputs"):
        following(store, config)


def test_a_stage_is_given_the_folders_that_it_names_and_no_other(store):
    config = load_config(None)
    exam = next(spec for spec in stages_of(config, 1) if spec.id.name == "exam")
    inputs = Commits(config, store).inputs(exam)
    assert inputs.round == 1
    assert inputs[QUESTIONS].uri == stage_folder(store, QUESTIONS).uri
    with pytest.raises(KeyError):
        inputs[StageId(1, "teach")]


def test_a_folder_of_another_configuration_is_refused_naming_the_settings(store):
    claim_folder(store, load_config(None))
    claim_folder(store, load_config(None, ["teacher.actors=2", "rounds.max_rounds=7"]))
    with pytest.raises(RunFolderError, match=r"exam\.samples: 4 → 5\n.*training\.epochs") as caught:
        claim_folder(store, load_config(None, ["exam.samples=5", "training.epochs=3"]))
    assert "--name" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"- a\n", b"{", b"\xff\xfe", b"name"])
def test_a_damaged_run_file_is_not_taken_for_changed_settings(store, data):
    claim_folder(store, load_config(None))
    store.write_bytes("run.yaml", data)
    store.delete("run.yaml.copy")
    with pytest.raises(CorruptionError, match=r"run\.yaml is damaged"):
        claim_folder(store, load_config(None))


@pytest.mark.parametrize("length", [0, 40, 300, -1])
def test_a_run_file_that_was_cut_off_is_read_from_its_copy(store, length, caplog):
    """Cut off in the middle it is YAML still, with fewer settings."""
    claim_folder(store, load_config(None, ["exam.samples=9"]))
    whole = store.read_bytes("run.yaml")
    store.write_bytes("run.yaml", whole[:length])
    with pytest.raises(RunFolderError, match=r"exam\.samples: 9 → 4\n") as caught:
        claim_folder(store, load_config(None))
    assert str(caught.value).count("→") == 1
    assert "run.yaml is damaged" in caplog.text
    claim_folder(store, load_config(None, ["exam.samples=9"]))
    assert store.read_bytes("run.yaml") == whole


def test_a_stage_of_other_settings_names_them(store):
    """The run file says nothing: it was replaced or deleted."""
    config = load_config(None)
    commit(store, config, 0)
    commit(store, config, 1, {"exam"})
    with pytest.raises(RunFolderError, match=r"exam\.samples: 4 → 7\n"):
        following(store, load_config(None, ["exam.samples=7"]))
    student = stage_folder(store, StageId(0, "student"))
    commit_manifest(student, replace(read_manifest(student), parts={"rows": PartsDigest(1, 1, "another")}))
    with pytest.raises(RunFolderError, match="round 0 student was made again since"):
        following(store, config)
