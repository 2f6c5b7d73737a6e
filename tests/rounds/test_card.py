"""The model card says what the manifests say, and what was measured on the way."""

import yaml

from tailor_ray.config import load_config
from tailor_ray.rounds.card import write_card
from tailor_ray.rounds.spec import StageId
from tailor_ray.statistics import accuracy
from tailor_ray.storage import Manifest, Store, commit_manifest


def commit(store, number, name, metrics):
    folder = store.child(*StageId(number, name).folder)
    commit_manifest(folder, Manifest(name, number, "", {}, (), 1.0, metrics))


def test_the_card_names_data_rounds_settings_and_accuracies(tmp_path):
    store = Store.open(str(tmp_path))
    config = load_config(None, ["name=try", "seed=9", "training.epochs=3", "teacher.model=gpt|x\ny"])
    commit(store, 0, "evaluate", {"validation": accuracy(1, 10), "test": accuracy(4, 20)})
    commit(store, 1, "teach", {"accepted": 77})
    commit(store, 1, "train", {"examples": 70, "with_pair": 31, "steps": 40, "step_kept": 30})
    write_card(
        store, config, 1, {"validation": accuracy(6, 10), "test": accuracy(10, 20), "agreement": {"prompts": 32}}
    )
    card = (tmp_path / "rounds/01/train/student/README.md").read_text()
    head, _, body = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head)["library_name"] == "transformers"
    assert "# try, round 1" in body
    assert "- Teacher: gpt|x y" in body
    assert "| 0 |  |  |  |  | 10.0% (1.8% – 40.4%) of 10 | 20.0% (8.1% – 41.6%) of 20 |" in body
    assert "| 1 | 77 | 70 | 31 | 30 of 40 | 60.0% (31.3% – 83.2%) of 10 | 50.0% (29.9% – 70.1%) of 20 |" in body
    settings = yaml.safe_load(body.partition("```yaml")[2].partition("```")[0])
    assert settings["training"]["epochs"] == 3
    assert set(settings) == {"task", "student", "exam", "teacher", "training"}
