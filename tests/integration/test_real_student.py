"""A pretrained instruct student, through its own chat template: from its first exam to the served result."""

import json
import shutil

import pytest

from tailor_ray.answers import Grader
from tailor_ray.config import RunConfig
from tailor_ray.layout import BASE_STUDENT, StageId, stage_folder
from tailor_ray.models import identify, read_model, resolve
from tailor_ray.models.texts import ChatTemplate
from tailor_ray.ops import trial
from tailor_ray.ops.doctor import Finding
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import AnswerKind, Attempt, Question, Verdict, from_table
from tailor_ray.rounds.loop import run
from tailor_ray.rounds.services import WorkerPools
from tailor_ray.storage import Store, committed_parts, read_manifest, read_part
from tailor_ray.student.sampling import Sampling
from tailor_ray.tasks.public import SVAMP_DEMOS
from tests.integration.clusters import free_port
from tests.integration.test_serve import Serve
from tests.smollm2 import EXPECTED, Unavailable, smollm2

TOKENS = 24


@pytest.fixture(scope="module")
def student():
    try:
        return smollm2()
    except Unavailable as error:
        pytest.skip(str(error))


def config(folder, student, **more):
    return RunConfig(
        name="real",
        storage=str(folder),
        task={"name": "arithmetic", "limit_train": 6, "limit_test": 4, "validation_share": 0.3, "max_validation": 2},
        student={
            "model": str(student),
            "prompt_style": "chat",
            "engines": 1,
            "kv_cache_gib": 0.25,
            "max_model_len": 512,
            "max_num_seqs": 16,
        },
        exam={"samples": 1, "max_new_tokens": TOKENS},
        evaluation={"max_new_tokens": TOKENS},
        teacher={"teachers": [{"base_url": "mock"}], "rationales": 2},
        training={
            "steps": 2,
            "batch_size": 4,
            "learning_rate": 1e-4,
            "max_length": 256,
            "greedy_check": 2,
            "lora": {"rank": 4},
        },
        rounds={"max_rounds": 1},
        **more,
    )


@pytest.fixture(scope="module")
def finished(ray_cluster, student, tmp_path_factory):
    """A run of one round, its folder, and its engines, which by now answer from the trained student."""
    settings = config(tmp_path_factory.mktemp("real"), student)
    pools = WorkerPools(settings)
    said = run(settings, pools)
    yield Store.open(settings.storage).child("real"), pools, said
    pools.close()


def test_the_student_is_what_the_hub_has(student):
    """Its shape, its end of a turn, and digits that are tokens of their own."""
    from transformers import AutoTokenizer

    known = json.loads((student / "config.json").read_text())
    assert {name: known[name] for name in EXPECTED} == EXPECTED
    tokenizer = AutoTokenizer.from_pretrained(student)
    assert tokenizer.tokenize("In 1,234\n\n5 days") == ["In", "Ġ", "1", ",", "2", "3", "4", "ĊĊ", "5", "Ġdays"]
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True)
    assert turn.endswith("<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n")


def evaluated(store, round_):
    folder = stage_folder(store, StageId(round_, "evaluate"))
    return [row for part in committed_parts(folder, "test") for row in from_table(read_part(folder, part), Attempt)]


@pytest.mark.timeout(600)
def test_a_round_is_examined_taught_trained_merged_swapped_and_reported(finished, student):
    store, pools, said = finished
    trained = stage_folder(store, StageId(1, "train"))
    metrics = read_manifest(stage_folder(store, StageId(1, "evaluate"))).metrics
    assert metrics["agreement"]["prompts"] == 2  # engines and transformers say the same of the merged student
    assert (
        metrics["student_sha256"] == read_model(trained).sha256 != read_model(stage_folder(store, BASE_STUDENT)).sha256
    )
    assert pools.engines.restarts() == 0  # the weights of a hub student were swapped in place
    report = json.loads(store.read_bytes("report/report.json"))
    assert [entry["evaluation"]["total"] for entry in report["rounds"]] == [4, 4]
    assert report["rounds"][1]["shares"]["truncated"] >= 0
    assert report["rounds"][1]["training"]["examples"] > 0
    assert "real, round 1" in trained.read_bytes("student/README.md").decode()
    assert "report:" in said


@pytest.mark.timeout(300)
def test_the_exported_student_answers_alike_in_plain_transformers(finished):
    """Loaded as anybody would, through the same template: what the evaluation recorded, token for token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store, _, _ = finished
    folder = resolve(read_model(stage_folder(store, StageId(1, "train"))))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = StudentPrompt("chat", AnswerKind.NUMBER, chat=ChatTemplate(identify(str(folder))))
    texts = {row.question_id: row.text for row in evaluated(store, 1)}
    questions = stage_folder(store, StageId(0, "questions"))
    asked = [
        row for part in committed_parts(questions, "test") for row in from_table(read_part(questions, part), Question)
    ]
    for question in asked[:2]:
        ids = tokenizer(prompt.render(question), return_tensors="pt", add_special_tokens=False)
        out = model.generate(**ids, do_sample=False, max_new_tokens=TOKENS)
        said = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert said == texts[question.id]


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("demos", [(), SVAMP_DEMOS[:2]], ids=["zero-shot", "few-shot"])
def test_both_styles_are_asked_with_and_without_demos(finished, student, style, demos):
    _, pools, _ = finished
    prompt = StudentPrompt(style, AnswerKind.NUMBER, demos, ChatTemplate(identify(str(student))))
    question = SVAMP_DEMOS[3]
    asked = prompt.render(question)
    assert asked.startswith(prompt.prefix)
    assert bool(prompt.prefix) == bool(demos)
    sampling = Sampling(0.0, 1.0, TOKENS, prompt.stop, style == "plain")
    said = pools.engines.answer(["q"], [asked], [[0]], sampling)
    assert said.errors == [None]
    assert said.prompt_tokens[0] > 30
    grade = Grader(AnswerKind.NUMBER).grade(question, said.texts[0], said.finish_reasons[0])
    assert grade.verdict is not Verdict.ERROR


def test_the_doctor_shows_what_student_and_teacher_read_and_write(ray_cluster, student, tmp_path):
    """On a cluster that is there; a mistake goes to the teacher, and the lesson is shown as it is learnt."""
    settings = config(tmp_path, student)
    found = list(trial.student(settings))
    lines = {line.topic: line for line in found if isinstance(line, Finding)}
    assert "<|im_start|>user" in lines["student is asked"].found
    assert "tokens read" in lines["student writes"].found
    assert "gold is" in lines["grader says"].found
    taught = {line.topic: line.found for line in trial.lesson(settings, found[-1])}
    assert "<question>" in taught["teacher is asked"]
    assert "<rationale>" in taught["teacher writes"]
    assert "Answer: " in taught["student is to learn"]


@pytest.mark.timeout(300)
def test_the_finished_run_is_served_with_streaming(finished):
    import openai
    from ray import serve

    store, pools, _ = finished
    pools.close()  # its engines hold the cores
    port = free_port()
    try:
        with Serve(store.uri, "--port", str(port)) as served:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
            assert f":{port}/v1 answers for model 'real', round 1" in served.said
            asked = {"model": "real", "messages": [{"role": "user", "content": "What is 2 plus 3?"}], "max_tokens": 12}
            whole = client.chat.completions.create(**asked, temperature=0)
            pieces = list(client.chat.completions.create(**asked, temperature=0, stream=True))
            streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
            assert whole.choices[0].message.content == streamed != ""
            assert pieces[-1].choices[0].finish_reason in ("stop", "length")
    finally:
        serve.shutdown()
    shutil.rmtree(store.path(), ignore_errors=True)
