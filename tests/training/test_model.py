"""Loading a student: what makes it trainable, and how the tree is tried before it is trusted."""

import json

import pytest
import torch

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import ModelError
from tailor_ray.training.model import load_student, student_without_weights
from tests.training.students import KINDS, make_student, make_tokenizer


def load(folder, **settings):
    return load_student(folder, TrainingConfig(**settings), torch.float32, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_works_for(tmp_path, kind):
    student = load(make_student(tmp_path, kind))
    assert student.attention is not None, student.layout_note
    assert student.max_length == 256  # the model's, less than training.max_length


def test_a_window_shorter_than_the_sequences_falls_back_and_says_so(tmp_path):
    make_student(tmp_path, "mistral", sliding_window=48)
    student = load(tmp_path)
    assert student.attention is None
    assert "sliding_window=48" in student.layout_note
    assert load(tmp_path, max_length=48).attention is not None


def test_a_recurrent_student_falls_back(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    size = len(make_tokenizer(tmp_path))
    MambaForCausalLM(MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2)).save_pretrained(tmp_path)
    student = load(tmp_path)
    assert student.attention is None
    assert "Mamba" in student.layout_note
    with pytest.raises(ModelError, match=r"training\.attention=tree"):
        load(tmp_path, attention="tree")
    with pytest.raises(ModelError, match="triplet_prompt_gradient=detached"):
        load(tmp_path, triplet_prompt_gradient="detached")


def test_dropout_is_off(tmp_path):
    student = load(make_student(tmp_path, "gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5))
    student.model.train()
    assert torch.equal(_hidden(student), _hidden(student))


def _hidden(student):
    from tailor_ray.training.exactness import trial_examples
    from tailor_ray.training.forward import hidden_states
    from tailor_ray.training.packing import PackSettings, pack_tree

    pack = pack_tree(trial_examples(student.model.config.vocab_size), PackSettings(0.1, "last", 192))
    return hidden_states(student.model, student.attention, pack)


def test_a_missing_pad_token_is_the_end_token(tmp_path):
    student = load(make_student(tmp_path))
    assert student.tokenizer.pad_token_id is None
    assert student.pad_id == student.tokenizer.eos_token_id


def test_a_tokenizer_with_more_words_than_the_model_grows_it(tmp_path):
    make_student(tmp_path)
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(tmp_path)
    student = load(tmp_path)
    assert student.model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_lora_trains_the_adapters_alone(tmp_path):
    student = load(make_student(tmp_path), lora={"rank": 2})
    trained = [name for name, p in student.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_adapters_of_named_modules(tmp_path):
    student = load(make_student(tmp_path), lora={"rank": 2, "targets": ["q_proj", "v_proj"]})
    adapted = {name.partition(".lora_")[0].rpartition(".")[2] for name, p in student.model.named_parameters()
               if p.requires_grad}  # fmt: skip
    assert adapted == {"q_proj", "v_proj"}


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"student\.model"):
        load(tmp_path)


def test_a_student_that_lacks_weights_is_refused(tmp_path):
    """They would be random, and transformers only says so in its log."""
    from safetensors.torch import load_file, save_file

    file = make_student(tmp_path) / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for 1 of its parameters, first model\.layers\.1\.mlp\.up_proj"):
        load(tmp_path)


def test_a_quantized_student_is_refused_before_its_weights_are_read(tmp_path):
    make_student(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": "fp8"}}))
    for read in (load, student_without_weights):
        with pytest.raises(ModelError, match=r"is quantized .*set student\.model to the model that it was made of"):
            read(tmp_path)


def test_a_kernel_that_is_not_installed_is_refused_with_the_cure(tmp_path):
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(ModelError, match=r"training\.attention_kernel=flash_attention_2 .*set it to sdpa"):
            load(make_student(tmp_path), attention_kernel="flash_attention_2")
    else:
        pytest.skip("it is installed here")


def test_a_fallback_is_a_warning(tmp_path, caplog):
    make_student(tmp_path, "mistral", sliding_window=48)
    load(tmp_path)
    assert [record.levelname for record in caplog.records if "separate passes" in record.getMessage()] == ["WARNING"]
    caplog.clear()
    load(tmp_path, attention="separate")
    assert not [
        record for record in caplog.records if record.levelname == "WARNING" and "passes" in record.getMessage()
    ]
