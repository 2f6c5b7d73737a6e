"""Settings that contradict each other are refused when they are read, with what to change."""

import pytest
import torch

from tailor_ray.config import load_config
from tailor_ray.errors import ConfigError
from tailor_ray.training.deepspeed_engine import choose_dtype


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["offload_optimizer=true", "zero_stage=0"], r"offload_optimizer needs training\.zero_stage of 1"),
        (["offload_parameters=true", "zero_stage=2"], r"offload_parameters needs training\.zero_stage=3"),
        (["batch_size=4", "workers=2", "accumulation=4"], r"batch_size=4 .*raise batch_size or lower"),
        (
            ["attention=separate", "triplet_prompt_gradient=detached"],
            r"detached needs the tree: set training\.attention",
        ),
        (["final_learning_rate=0.1"], r"final_learning_rate .*set training\.schedule"),
        (["choose=fit"], r"choose=fit needs training\.rationales"),
        (["critique=true", "feedback=false"], r"critique .*set training\.feedback=true"),
        (["replay_share=1.5"], r"training\.replay_share.*less than 1"),
        (["candidates=1"], r"training\.candidates.*greater than or equal to 2"),
    ],
)
def test_conflicts_are_refused_with_the_cure(settings, said):
    with pytest.raises(ConfigError, match=said):
        load_config(None, [f"training.{setting}" for setting in settings])


def test_without_the_triplet_term_its_gradient_conflicts_with_nothing():
    changed = ["training.attention=separate", "training.triplet_prompt_gradient=detached", "training.triplet_weight=0"]
    assert load_config(None, changed).training.attention == "separate"


@pytest.mark.parametrize("reflection", ["orpo", "redi", "none"])
def test_the_triplet_terms_settings_bind_that_term_alone(reflection):
    """The paper's configurations may be run with another reflection and nothing else changed."""
    changed = ["attention=separate", "triplet_prompt_gradient=detached", f"reflection={reflection}"]
    training = load_config(None, [f"training.{one}" for one in changed]).training
    assert not training.detached
    assert training.pairs == ("none" if reflection == "none" else "likelihood")


def test_a_reflection_of_no_weight_compares_nothing():
    for reflection in ("triplet", "orpo", "redi"):
        training = load_config(None, [f"training.reflection={reflection}", f"training.{reflection}_weight=0"]).training
        assert (training.pairs, training.reflection_weight) == ("none", 0)


def test_half_precision_with_loss_scaling_needs_a_gpu():
    with pytest.raises(ConfigError, match="set it to float32 or bfloat16"):
        choose_dtype("float16", torch.device("cpu"))
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
