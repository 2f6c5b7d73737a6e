"""The exported folder loads without us and answers as the trained student does."""

import json

import pytest
import torch

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import ModelError, StageError
from tailor_ray.models.folder import architecture
from tailor_ray.storage import Store
from tailor_ray.training.export import export_student, try_export
from tailor_ray.training.model import load_student, student_without_weights
from tests.training.students import KINDS, make_model, make_student, make_tokenizer


def export(folder, tmp_path, change=None, max_shard_size="4GB", **settings):
    student = load_student(folder, TrainingConfig(**settings), torch.float32, seed=0)
    if change is not None:
        with torch.no_grad():
            change(student)
    weights = {f"student.{name}": value for name, value in student.model.state_dict().items()}
    store = Store.open(str(tmp_path / "stage"))
    return student, export_student(student, weights, store, tmp_path / "scratch", max_shard_size)


def logits(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(2, 40)[None]).logits


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_again_with_the_same_logits(tmp_path, kind):
    make_student(tmp_path / "given", kind)
    export(tmp_path / "given", tmp_path)
    assert torch.allclose(logits(tmp_path / "stage/student"), logits(tmp_path / "given"), atol=1e-6)
    config = json.loads((tmp_path / "stage/student/config.json").read_text())
    assert "tailor" not in json.dumps(config)  # the tree's attention is ours alone


def test_adapters_are_merged(tmp_path):
    make_student(tmp_path / "given")

    def train(student):
        for name, p in student.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)

    export(tmp_path / "given", tmp_path, train, lora={"rank": 4})
    assert not torch.allclose(logits(tmp_path / "stage/student"), logits(tmp_path / "given"), atol=1e-3)
    names = [path.name for path in (tmp_path / "stage/student").iterdir()]
    assert "adapter_config.json" not in names


def test_a_candidate_with_adapters_can_be_trained_on(tmp_path):
    make_student(tmp_path / "given")
    student = load_student(tmp_path / "given", TrainingConfig(lora={"rank": 4}), torch.float32, seed=0)
    names = list(student.model.state_dict())
    weights = {f"student.{name}": value for name, value in student.model.state_dict().items()}
    store = Store.open(str(tmp_path / "stage"))
    export_student(student, weights, store, tmp_path / "scratch", "4GB", "candidates/step-1")
    assert list(student.model.state_dict()) == names
    assert torch.allclose(logits(tmp_path / "stage/candidates/step-1"), logits(tmp_path / "given"), atol=1e-6)


def test_weights_are_split_above_a_size(tmp_path):
    make_student(tmp_path / "given")
    _, files = export(tmp_path / "given", tmp_path, max_shard_size="20KB")
    assert sum(entry.path.endswith(".safetensors") for entry in files) > 1
    assert torch.allclose(logits(tmp_path / "stage/student"), logits(tmp_path / "given"), atol=1e-6)


def test_nan_is_never_exported(tmp_path):
    make_student(tmp_path / "given")

    def spoil(student):
        next(student.model.parameters())[3, 3] = float("nan")

    with pytest.raises(StageError, match="embed_tokens"):
        export(tmp_path / "given", tmp_path, spoil)
    assert not (tmp_path / "stage/student").exists()


def test_generation_config_and_chat_template_go_along(tmp_path):
    make_student(tmp_path / "given")
    tokenizer = make_tokenizer(tmp_path / "given")
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "given")
    _, files = export(tmp_path / "given", tmp_path)
    assert {entry.path for entry in files} >= {"student/chat_template.jinja", "student/generation_config.json"}
    settings = json.loads((tmp_path / "stage/student/generation_config.json").read_text())
    assert settings["eos_token_id"] == tokenizer.eos_token_id


@pytest.mark.parametrize("habit", [{"temperature": 0.7}, {"do_sample": True, "top_k": 20, "repetition_penalty": 1.1}])
def test_habits_of_sampling_stay_behind(tmp_path, habit):
    """A temperature without do_sample (Vicuna) is what transformers reads but does not write."""
    make_student(tmp_path / "given")
    file = tmp_path / "given/generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [7, 1], **habit}))
    export(tmp_path / "given", tmp_path)
    settings = json.loads((tmp_path / "stage/student/generation_config.json").read_text())
    assert not settings.keys() & {"temperature", "top_k", "top_p", "repetition_penalty"}
    assert settings["do_sample"] is False
    assert sorted(settings["eos_token_id"]) == [1, 7]


def test_noise_that_training_leaves_out_is_left_in_the_configuration(tmp_path):
    make_student(tmp_path / "given", "gpt2", resid_pdrop=0.3)
    student, _ = export(tmp_path / "given", tmp_path)
    assert json.loads((tmp_path / "stage/student/config.json").read_text())["resid_pdrop"] == 0.3
    assert student.model.config.resid_pdrop == 0.0


@pytest.mark.parametrize("kind", [*KINDS, "mixtral", "qwen3_moe"])
def test_a_student_is_tried_without_its_weights(tmp_path, kind):
    folder = make_student(tmp_path / "given", kind)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": 0.7}))
    student = student_without_weights(folder)
    try_export(student, tmp_path / "scratch")
    assert all(p.is_meta for p in student.model.parameters())
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("whole", [True, False])
def test_what_cannot_be_saved_is_found_before_anything_is_trained(tmp_path, monkeypatch, whole):
    from transformers import PreTrainedModel

    folder = make_student(tmp_path / "given")
    student = student_without_weights(folder)
    if whole:
        student = load_student(folder, TrainingConfig(), torch.float32, seed=0)
    try_export(student, tmp_path / "scratch")
    assert not list((tmp_path / "scratch").iterdir())

    def refuse(*_, **__):
        raise ValueError("no safe name for this tensor")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", refuse)
    with pytest.raises(ModelError, match="no safe name for this tensor"):
        try_export(student, tmp_path / "scratch")


OLD = {  # as the hub holds them: before transformers 5
    "llama": {"rope_theta": 500000.0, "rope_scaling": None, "torch_dtype": "bfloat16"},
    "qwen2": {"rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 2},
    "qwen3": {"rope_theta": 1e6},
    "mistral": {"rope_theta": 1e4, "sliding_window": None},
    "gemma": {"rope_theta": 1e4, "hidden_act": "gelu", "hidden_activation": None},
    "phi": {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "gpt2": {"n_ctx": 256, "task_specific_params": {"text-generation": {"do_sample": True}}},
}


@pytest.mark.parametrize("kind", OLD)
def test_a_trained_student_of_an_old_configuration_has_its_architecture(tmp_path, kind):
    make_tokenizer(tmp_path / "given")
    make_model(kind).save_pretrained(tmp_path / "given")
    file = tmp_path / "given/config.json"
    config = json.loads(file.read_text())
    for new in ("rope_parameters", "layer_types", "dtype"):
        config.pop(new, None)
    file.write_text(json.dumps(config | OLD[kind]))
    export(tmp_path / "given", tmp_path)
    assert architecture(tmp_path / "stage/student") == architecture(tmp_path / "given")
    file.write_text(json.dumps(config | OLD[kind] | {"vocab_size": 40}))
    assert architecture(tmp_path / "stage/student") != architecture(tmp_path / "given")


def test_an_engine_never_reads_a_student_by_the_vocabulary_of_another(tmp_path):
    """Two students of one shape whose tokens stand for other texts: swapped weights would answer in the wrong words."""
    for name in ("given", "other"):
        make_tokenizer(tmp_path / name)
        make_model("llama").save_pretrained(tmp_path / name)
    assert architecture(tmp_path / "given") == architecture(tmp_path / "other")
    file = tmp_path / "other/tokenizer.json"
    content = json.loads(file.read_text())
    first, second, *_ = content["model"]["vocab"]
    content["model"]["vocab"] |= {first: content["model"]["vocab"][second], second: content["model"]["vocab"][first]}
    file.write_text(json.dumps(content))
    assert architecture(tmp_path / "given") != architecture(tmp_path / "other")
    export(tmp_path / "given", tmp_path)
    assert architecture(tmp_path / "stage/student") == architecture(tmp_path / "given")


def test_a_part_of_a_configuration_is_compared_as_the_whole_is(tmp_path):
    """MPT keeps its attention's in one of its own, with noise and a precision that training changes."""
    from jobs.benchmarks.families import family_model

    make_tokenizer(tmp_path / "given")
    family_model("mpt").save_pretrained(tmp_path / "given")
    export(tmp_path / "given", tmp_path)
    assert architecture(tmp_path / "stage/student") == architecture(tmp_path / "given")
    file = tmp_path / "given/config.json"
    config = json.loads(file.read_text())
    config["attn_config"]["clip_qkv"] = 3.0
    file.write_text(json.dumps(config))
    assert architecture(tmp_path / "stage/student") != architecture(tmp_path / "given")
