"""A run's student behind the OpenAI API, asked by the openai client over a swap of weights; a teacher likewise."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tailor_ray.config import RunConfig
from tailor_ray.config.student import TinyConfig
from tailor_ray.errors import ConfigError, CorruptionError
from tailor_ray.layout import QUESTIONS, StageId, stage_folder
from tailor_ray.models import ModelRef, write_model
from tailor_ray.observe.progress import Progress
from tailor_ray.ops.serve import find
from tailor_ray.prompts.teacher import TeacherPrompt
from tailor_ray.records import (
    ATTEMPT_SCHEMA,
    AnswerKind,
    Attempt,
    Lesson,
    Question,
    Verdict,
    from_table,
    to_table,
)
from tailor_ray.rounds import stages
from tailor_ray.rounds.services import Services
from tailor_ray.rounds.stages import Inputs
from tailor_ray.storage import Manifest, Store, commit_manifest, commit_part, committed_parts, read_part
from tailor_ray.teacher.parts import Intake
from tests.integration.clusters import free_port
from tests.integration.engines import write_questions

ROOT = Path(__file__).parents[2]
STREAMS, TOKENS = 16, 48
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
PROMPTS = [f"Question: Nadia has {n} pears and buys {n % 5} more.\nReasoning:" for n in range(STREAMS)]


@pytest.fixture(scope="module")
def port(ray_cluster):
    """Of Ray Serve, which listens at one for as long as it runs."""
    from ray import serve

    yield free_port()
    serve.shutdown()


def commit_student(run, round_, student):
    """What a round's training leaves: the student's folder, then the manifest."""
    stage = stage_folder(run, StageId(round_, "train"))
    folder = Path(stage.path("student"))
    shutil.copytree(student, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    write_model(stage, ModelRef.uploaded(stage, "student", stage.upload_folder(folder, "student")))
    commit_manifest(stage, Manifest("train", round_, "", {}, {}, 1.0))


def greedy(folder, prompts, tokens):
    """What transformers decodes, ignoring the end of sequence."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    model.generation_config.eos_token_id = None
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, attention_mask=ids.new_ones(ids.shape), do_sample=False, max_new_tokens=tokens)
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


class Serve:
    """`tailor-ray serve` on the session's cluster."""

    def __init__(self, *arguments):
        import ray

        self.process = subprocess.Popen(
            [sys.executable, "-m", "tailor_ray", "serve", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
                "PYTHONPATH": str(ROOT),
            },
        )
        self.said = self.process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def answers(client):
    import openai

    try:
        return bool(client.models.list().data)
    except (openai.NotFoundError, openai.APIConnectionError):
        return False


async def stream(client, prompt):
    """Text and finish reason of one streamed completion."""
    text, reason = "", None
    chunks = await client.completions.create(
        model="demo", prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    async for chunk in chunks:
        text += chunk.choices[0].text
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


async def stream_over_a_swap(url, run, students, expected):
    """16 callers stream without a pause; a newer round is committed meanwhile; each goes on until it saw it answer."""
    import openai

    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    old, new = expected
    begun, ended = asyncio.Event(), [0] * STREAMS

    async def caller(number):
        while True:
            text, reason = await stream(client, PROMPTS[number])
            assert reason == "length"
            assert text in (old[number], new[number])  # whole answers of one student, never a mixture
            ended[number] += 1
            if all(ended):
                begun.set()
            if text == new[number]:
                return

    async def train():
        await begun.wait()
        await asyncio.to_thread(commit_student, run, 2, students[1])

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for number in range(STREAMS):
            group.create_task(caller(number))
        group.create_task(train())
    await client.close()
    assert min(ended) >= 2


def ask(url, data=None, **headers):
    """Status, headers and JSON or text of one request."""
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    text = answer.read().decode()
    return answer.status, answer.headers, json.loads(text) if text[:1] == "{" else text


def wrong_requests_are_refused_in_openais_form(url):
    as_json = {"Content-Type": "application/json"}
    good = {"model": "demo", "prompt": "One plus one is", "max_tokens": 1}
    bodies = [
        (json.dumps({**good, "prompt": "\ud800"}).encode(), as_json, 400),  # half of a pair
        (json.dumps({**good, "model": "\ud800"}).encode(), as_json, 400),
        (json.dumps({**good, "model": "gpt-4o"}).encode(), as_json, 404),
        (json.dumps({**good, "prompt": [10**9]}).encode(), as_json, 400),  # no such token
        (json.dumps({**good, "prompt": "long " * 5000}).encode(), as_json, 400),
        (json.dumps({**good, "max_tokens": -1}).encode(), as_json, 400),
        (json.dumps({**good, "temperature": "warm"}).encode(), as_json, 400),
        (json.dumps({**good, "n": 0}).encode(), as_json, 400),
        (json.dumps([good]).encode(), as_json, 400),
        (b"{", as_json, 400),
        (b"\xff", as_json, 400),
        (b"[" * 100_000, as_json, 400),
        (b"x=1", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 400),
    ]
    for body, headers, status in bodies:
        found, _, said = ask(f"{url}/completions", body, **headers)
        assert (found, set(said["error"])) == (status, {"message", "type", "param", "code"}), (body[:80], said)
        assert said["error"]["message"]
    assert ask(f"{url}/nowhere")[0] == 404
    assert ask(f"{url}/completions")[2]["error"]["code"] == 405
    chat = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "\ud800"}]}).encode()
    assert ask(f"{url}/chat/completions", chat, **as_json)[0] == 400
    status, headers, _ = ask(f"{url}/models", Origin="https://elsewhere.example")
    assert status == 200
    assert "access-control-allow-origin" not in headers


def what_vllms_own_server_offers(root):
    assert ask(f"{root}/version")[2]["version"]
    assert ask(f"{root}/health")[0] == 200
    assert "# TYPE" in ask(f"{root}/metrics")[2]
    body = json.dumps({"model": "demo", "prompt": "One plus one"}).encode()
    found = ask(f"{root}/tokenize", body, **{"Content-Type": "application/json"})[2]
    assert "count" in found, found
    assert found["count"] == len(found["tokens"]) > 0
    wrong = json.dumps({"model": "demo", "prompt": [1, [2]]}).encode()
    assert ask(f"{root}/tokenize", wrong, **{"Content-Type": "application/json"})[0] == 400
    assert ask(f"{root}/detokenize", b"[]")[0] == 400
    body = json.dumps({"model": "demo", "tokens": found["tokens"]}).encode()
    assert (
        ask(f"{root}/detokenize", body, **{"Content-Type": "application/json"})[2]["prompt"].strip() == "One plus one"
    )


def nothing_of_it_listens_beyond_loopback():
    """Of Serve's replicas, each of which has a port that takes pickles; the other one is that of Ray's own workers."""
    import psutil

    replicas = [
        one for one in psutil.process_iter(["cmdline"]) if "ServeReplica" in " ".join(one.info["cmdline"] or ())
    ]
    assert len(replicas) == 2
    for replica in replicas:
        opened = [c.laddr.ip for c in replica.net_connections() if c.status == psutil.CONN_LISTEN]
        inside = [ip for ip in opened if ip.removeprefix("::ffff:") == "127.0.0.1"]
        assert inside
        assert len(opened) - len(inside) <= 1, opened


def test_a_damaged_student_is_not_served(tmp_path, students):
    """Not one byte of it, though its size and time are those that this node knows."""
    run = Store.open(str(tmp_path / "demo"))
    run.write_bytes("run.yaml", RunConfig(name="demo", student={"model": str(students[0])}).to_yaml().encode())
    commit_student(run, 1, students[0])
    weights = next(Path(run.path("rounds/01/train/student")).glob("*.safetensors"))
    assert find(run.uri, reload=False)[0].run == run.uri
    before, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptionError, match=weights.name):
        find(run.uri, reload=False)


def test_a_taken_port_is_said(ray_cluster):
    from tailor_ray.serving.deployment import check_port

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="choose another port"):
        check_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="--host"):
        check_port("192.0.2.77", 8000)


def test_a_served_student_follows_its_run_and_drops_no_stream(port, students, tmp_path):
    import openai

    run = Store.open(str(tmp_path / "runs" / "demo"))
    config = RunConfig(name="demo", student={"model": str(students[0]), "max_model_len": 512, "kv_cache_gib": 0.125})
    run.write_bytes("run.yaml", config.to_yaml().encode())
    commit_student(run, 1, students[0])
    expected = [greedy(student, PROMPTS, TOKENS) for student in students]
    assert not set(expected[0]) & set(expected[1])

    with Serve(run.uri, "--reload", "--port", str(port)) as serve:
        url = serve.said.split()[0]
        assert url.startswith("http://127.0.0.1:")
        assert "round 1" in serve.said
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        assert [(model.id, model.max_model_len) for model in client.models.list()] == [("demo", 512)]
        wrong_requests_are_refused_in_openais_form(url)
        what_vllms_own_server_offers(url.removesuffix("/v1"))
        nothing_of_it_listens_beyond_loopback()
        chat = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": PROMPTS[0]}],
            max_tokens=8,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        assert chat.choices[0].message.content == greedy(students[0], [f"{PROMPTS[0]}\n"], 8)[0]
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="gpt-4o", prompt="Hello")
        asyncio.run(stream_over_a_swap(url, run, students, expected))

    deadline = time.monotonic() + 60  # what it deployed ends with it, though it was killed
    while answers(client):
        assert time.monotonic() < deadline, "it is still served"
        time.sleep(0.5)


REPLY = "<rationale>Both numbers together make 7.</rationale>\n<answer>7</answer>"
ASKED = [Question(f"q{n}", f"What is {n} plus {7 - n}?", "7") for n in range(8)]


@pytest.fixture(scope="module")
def open_teacher(tmp_path_factory):
    """A chat model that was schooled on one reply, whatever it is asked."""
    from tailor_ray.demo import tiny

    words = RunConfig(name="try").asked_teacher().max_words
    messages = [TeacherPrompt(AnswerKind.NUMBER, words=words).rationale(question) for question in ASKED]
    config = TinyConfig(hidden_size=64, layers=2, heads=2, school_steps=80, school_batch=4, school_learning_rate=5e-3)
    tokenizer = tiny.make_tokenizer([*(line["content"] for line in messages[0]), *([REPLY] * 50)], 500)
    tokenizer.chat_template = TEMPLATE
    reply = [*tokenizer(REPLY)["input_ids"], tokenizer.eos_token_id]
    prompts = [tokenizer(tokenizer.apply_chat_template(asked, tokenize=False))["input_ids"] for asked in messages]
    model = tiny.make_model(config, tokenizer, seed=0)
    tiny.teach_school(model, [(prompt, reply) for prompt in prompts], config, seed=0, progress=None)
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_open_weight_teacher_on_the_cluster_writes_the_lessons(port, open_teacher, tmp_path):
    import openai

    teacher = {
        "serve": str(open_teacher),
        "serving": {"max_model_len": 512, "kv_cache_gib": 0.125, "port": port},
        "max_tokens": 40,
        "temperature": 0,
        "budget_usd": 0.01,
    }
    config = RunConfig(name="try", student={"engines": 1}, teacher=teacher)
    store = Store.open(str(tmp_path / "try"))
    wrong = [Attempt(q.id, 0, "It is 8.\nAnswer: 8", "stop", "8", Verdict.WRONG, 0, 9, 9) for q in ASKED]
    folders = {stage: stage_folder(store, stage) for stage in (QUESTIONS, StageId(1, "exam"))}
    out = stage_folder(store, StageId(1, "teach"))
    intake = Intake()
    with Progress(10.0) as progress, Services(config, store, progress) as services:
        write_questions(folders[QUESTIONS], ASKED, len(ASKED))
        intake.put(commit_part(folders[StageId(1, "exam")], "attempts", 0, to_table(wrong, ATTEMPT_SCHEMA)))
        intake.end()
        taught = stages.teach(Inputs(1, folders), out, config, services, intake)
    assert taught.metrics["accepted"] == len(ASKED), json.dumps(taught.metrics)
    assert taught.metrics["cost_usd"] == 0
    lessons = [row for part in committed_parts(out, "lessons") for row in from_table(read_part(out, part), Lesson)]
    assert {lesson.text for lesson in lessons} == {"Both numbers together make 7."}
    assert {lesson.model for lesson in lessons} == {str(open_teacher)}
    assert not answers(openai.OpenAI(base_url=f"http://127.0.0.1:{port}/teacher-try-1/v1", api_key="none"))


@pytest.mark.parametrize("gpu", [True, False])
def test_a_configuration_file_names_the_run_alone(ray_cluster, students, tmp_path, gpu):
    """As KubeRay's RayService does: what the engine is like comes from the run."""
    from tailor_ray.serving.deployment import StudentServer, application, configuration, from_arguments

    run = Store.open(str(tmp_path / "demo"))
    student = {"model": str(students[0]), "max_num_seqs": 7, "dtype": "bfloat16", "tensor_parallel": 2}
    run.write_bytes("run.yaml", RunConfig(name="demo", student=student).to_yaml().encode())
    args = {"name": "demo", "run": run.uri, "reload": True, "replicas": 3, "gpu": gpu}
    assert application(args)
    config = configuration(from_arguments(args))
    assert config.engine_kwargs["max_num_seqs"] == 7
    assert config.engine_kwargs["dtype"] == "bfloat16"
    options = StudentServer.get_deployment_options(config)
    assert options["num_replicas"] == 3
    assert sum(bundle["GPU"] for bundle in options["placement_group_bundles"]) == (2 if gpu else 0)
