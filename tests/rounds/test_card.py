"""The model card says what the student learnt from and with which settings."""

import yaml

from tailor_ray.config import load_config
from tailor_ray.rounds.stages import model_card


def test_the_card_names_data_rounds_and_settings():
    config = load_config(None, ["name=try", "seed=9", "training.epochs=3", "teacher.model=gpt|x\ny"])
    trained = {"examples": 70, "with_pair": 31, "steps": 40, "step_kept": 30}
    card = model_card(config, {1: {"accepted": 77}, 2: {"accepted": 12}}, trained)
    head, _, body = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head)["library_name"] == "transformers"
    assert "# try, round 2" in body
    assert "- Teacher: gpt|x y" in body
    assert "- Lessons accepted, by round: 77, 12" in body
    assert "- Examples of this round: 70, 31 of them with a mistake" in body
    assert "- Training steps of this round: 30 of 40" in body
    settings = yaml.safe_load(body.partition("```yaml")[2].partition("```")[0])
    assert settings["training"]["epochs"] == 3
    assert set(settings) == {"task", "student", "exam", "teacher", "training"}
