"""The tiny student: any text tokenizes, the folder is plain Hugging Face, the same seed gives the same weights."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailor_ray.config.student import TinyConfig
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import AnswerKind, Question

torch = pytest.importorskip("torch")
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from tailor_ray.demo.tiny import make_tiny_student  # noqa: E402

CONFIG = TinyConfig(hidden_size=64, layers=1, heads=2, school_questions=200, school_steps=60, school_batch=16)
DEMO = Question("demo", "What is 1 + 1?", "2", rationale="1 + 1 = 2.")


def make(folder: Path, seed: int = 1, demos: tuple[Question, ...] = ()):
    told = []
    prompt = StudentPrompt("plain", AnswerKind.NUMBER, demos)
    figures = make_tiny_student(CONFIG, prompt, seed, folder, lambda *step: told.append(step))
    return figures, told


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    figures, told = make(folder)
    return folder, figures, told


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_schooling_learns_and_tells_each_step(student):
    _, figures, told = student
    assert [step for step, _, _ in told] == list(range(1, CONFIG.school_steps + 1))
    assert {steps for _, steps, _ in told} == {CONFIG.school_steps}
    assert figures["steps"] == CONFIG.school_steps
    assert figures["loss_last"] == told[-1][2] < 0.6 * figures["loss_first"]
    assert figures["seconds"] > 0


def test_the_folder_is_what_transformers_and_vllm_expect(student):
    folder, figures, _ = student
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    } <= names
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config
    assert not config["tie_word_embeddings"], "on a CPU vLLM packs a tied output head once and never swaps it"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert model.num_parameters() == figures["parameters"]
    assert model.dtype == torch.float32
    ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(ids) == 3
    for holder in (config, model.generation_config.to_dict()):
        assert holder["eos_token_id"] == tokenizer.eos_token_id
        assert holder["pad_token_id"] == tokenizer.pad_token_id
    written = tokenizer("Question: What is 2 + 2?\nReasoning:", return_tensors="pt")
    assert model.generate(**written, max_new_tokens=4, do_sample=False).shape[1] <= written["input_ids"].shape[1] + 4


def test_the_default_sizes_are_about_a_million_parameters_that_vllm_can_run_on_a_cpu():
    config = TinyConfig()
    assert config.hidden_size / config.heads in (32, 64, 80, 96, 112, 128, 160, 192, 256)
    block = 4 * config.hidden_size**2 + 3 * 3 * config.hidden_size**2
    assert 0.7e6 < config.layers * block < 3e6


@pytest.fixture(scope="module")
def tokenizer(student):
    return AutoTokenizer.from_pretrained(student[0])


@given(st.text(max_size=200))
def test_any_text_comes_back_unchanged(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_digits_are_apart_and_words_of_the_task_whole(tokenizer):
    pieces = tokenizer.tokenize("Anna has 120 apples + 7.")
    assert [piece.replace("Ġ", " ") for piece in pieces] == ["Anna", " has", " 1", "2", "0", " apples", " +", " 7", "."]


def test_prompt_and_completion_tokenize_apart_as_together(tokenizer):
    prompt, completion = "Question: What is 2 + 20?\nReasoning:", " 2 + 20 = 22.\nAnswer: 22"
    apart = tokenizer(prompt)["input_ids"] + tokenizer(completion)["input_ids"]
    assert tokenizer(prompt + completion)["input_ids"] == apart


def test_the_same_seed_gives_the_same_student_with_or_without_demos(student, tmp_path):
    make(tmp_path / "again", demos=(DEMO,))
    assert weights(tmp_path / "again") == weights(student[0])
    make(tmp_path / "other", seed=2)
    assert weights(tmp_path / "other") != weights(student[0])


def test_threads_are_given_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        make(tmp_path)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
