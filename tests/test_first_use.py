"""Whatever is imported or made at its first use may be used first by many threads at once: in fresh processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmarks.stand_ins import make_student

ROOT = Path(__file__).parent.parent
THREADS = 16
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)

# Each ends with a function `use(number)`, which THREADS threads call at the same moment.
PLACES = {
    "chat template": """
from tailor_ray.models import identify
from tailor_ray.models.texts import ChatTemplate
template = ChatTemplate(identify(os.environ["STUDENT"]))
def use(number):
    assert template([{"role": "user", "content": str(number)}], True) == f"<|user|>{number}<|a|>"
""",
    "chat prompt, unpickled in each thread": """
import pickle
from tailor_ray.models import identify
from tailor_ray.models.texts import ChatTemplate
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import Question
data = pickle.dumps(StudentPrompt("chat", "number", chat=ChatTemplate(identify(os.environ["STUDENT"]))))
def use(number):
    assert f"How many {number}?" in pickle.loads(data).render(Question("q", f"How many {number}?", "1"))
""",
    "grader of numbers": r"""
from tailor_ray.answers import Grader
from tailor_ray.records import Question, Verdict
grader = Grader("number")
TEXTS = ["The answer is \\frac{24}{2}", "Answer: 12.0", "It is \\boxed{\\sqrt{144}}", "The answer is 24/2 apples",
         "The answer is 11 1/2", "The answer is 50%"]
def use(number):
    grade = grader.grade(Question("q", "How many?", "12"), TEXTS[number % len(TEXTS)])
    assert grade.verdict in (Verdict.CORRECT, Verdict.WRONG, Verdict.DISPUTED)
""",
    "grader by a user's function": """
from tailor_ray.answers import Grader
from tailor_ray.records import Question, Verdict
grader = Grader("python", "slow_module:judge")
def use(number):
    assert grader.grade(Question("q", "How many?", "12"), "12").verdict is Verdict.CORRECT
    import slow_module
    assert slow_module.loaded == 1
""",
    "a part of the exam": """
import tempfile
from tests.student.test_exam import Sums, exam_job, one_part
from pathlib import Path
from tailor_ray.storage import Store
from tailor_ray.student.examiner import Examiner, Parallelism
from tailor_ray.models import identify
from tailor_ray.models.texts import ChatTemplate
from tailor_ray.prompts.student import StudentPrompt
from dataclasses import replace
folder = Path(tempfile.mkdtemp())
store, part = one_part(folder)
prompt = StudentPrompt("chat", "number", chat=ChatTemplate(identify(os.environ["STUDENT"])))
def use(number):
    out = Store.open(str(folder / str(number)))
    made = Examiner(Sums(), replace(exam_job(), prompt=prompt), store, out, Parallelism(1, 8, 2, 1)).examine(part)
    assert made.rows == 36
""",
    "objects in remote storage": """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Empty(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)
    def log_message(self, *_): ...
server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
threading.Thread(target=server.serve_forever, daemon=True).start()
place = f"127.0.0.1:{server.server_port}"
os.environ |= {"AWS_ENDPOINT_URL": f"http://{place}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "x",
               "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
from tailor_ray.storage import Store
store = Store.open(f"s3://bucket/run?endpoint_override={place}&scheme=http&region=x")
def use(number):
    try:
        store.read_json("run.json")
    except FileNotFoundError:
        return
    raise AssertionError("nothing was there")
""",
    "a hub student": """
from tailor_ray.errors import ModelError
from tailor_ray.models import identify
def use(number):
    try:
        identify("owner/no-such-model")
    except ModelError as error:
        assert "could not be loaded from the hub" in str(error)
""",
    "a metric": """
import ray
from tailor_ray.observe import metrics
from ray.util import metrics as ray_metrics
ray.is_initialized = lambda: True
made, counter = [], ray_metrics.Counter
ray_metrics.Counter = lambda *a, **k: made.append(1) or counter(*a, **k)
def use(number):
    metrics.count("engine_restarts")
    assert len(made) == 1
""",
    "the report's page": """
from tailor_ray.observe.report import page_file, render
def use(number):
    assert page_file("style.css")
    import jinja2
""",
    "a client of the teacher": """
import asyncio
from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.teacher.client import Sender
def use(number):
    async def ask():
        sender = Sender(EndpointConfig(base_url="http://127.0.0.1:9/v1"), connections=1)
        try:
            return await sender.attempt("key", "{}")
        finally:
            await sender.close()
    assert asyncio.run(ask()).code == "refused_connection"
""",
    "progress": """
import io
from tailor_ray.observe.progress import Progress
progress = Progress(stream=io.StringIO(), live=True)
def use(number):
    with progress.stage(f"stage {number}", total=1) as bar:
        bar.advance()
""",
}
DRIVER = """
import os, sys, threading, traceback
{place}
failed, start = [], threading.Barrier({threads})
def run(number):
    start.wait()
    try:
        use(number)
    except BaseException:
        failed.append(traceback.format_exc())
threads = [threading.Thread(target=run, args=(number,)) for number in range({threads})]
for thread in threads: thread.start()
for thread in threads: thread.join()
if failed:
    print(len(failed), "of", {threads}, "threads failed; the first:", failed[0], sep="\\n")
os._exit(bool(failed))
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = make_student(tmp_path_factory.mktemp("first-use") / "student")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_many_threads_of_a_fresh_process_may_be_the_first(place, student, tmp_path):
    (tmp_path / "slow_module.py").write_text(
        "import time\nloaded = 0\ntime.sleep(0.1)\nloaded += 1\ndef judge(text, gold):\n    return text == gold\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "STUDENT": str(student),
        "TAILOR_RAY_CACHE": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    driver = DRIVER.format(place=PLACES[place], threads=THREADS)
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
