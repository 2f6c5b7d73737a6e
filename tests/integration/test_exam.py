"""The exam on real engines: what they answer, that each sample is one row, and that kills lose and double nothing."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from jobs.benchmarks.stand_ins import make_student
from tailor_ray.config.student import StudentConfig
from tailor_ray.errors import StageError
from tailor_ray.records import Question, Verdict
from tailor_ray.storage import Store, committed_parts
from tailor_ray.student.exam import run_exam
from tailor_ray.student.pool import EnginePool
from tailor_ray.student.sampling import Sampling, sample_seed
from tailor_ray.student.supervisor import EngineLease
from tests.integration.engines import attempts, exam_job, ref, write_questions

QUESTIONS = [Question(f"q{i}", f"Ann has {i} pens and buys {i % 7} more. How many now?", str(i)) for i in range(40)]


def ignore(part):
    """For an exam whose parts nobody waits for."""


GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=24)


def greedy_by_transformers(folder, prompts, new_tokens):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens)
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def test_swapped_weights_answer_as_transformers_does_on_them(engine_pool, students):
    prompts = [f"Question: {question.text}\nReasoning:" for question in QUESTIONS[:6]]
    ids, seeds = [f"q{i}" for i in range(6)], [[0]] * 6
    said = {}
    engines = engine_processes()
    for folder in (students[1], students[0], students[1]):
        started = time.perf_counter()
        checksum = engine_pool.serve(ref(folder))
        assert time.perf_counter() - started < 2.0
        assert checksum == ref(folder).sha256
        for _ in range(2):  # on both engines, and once from the prefix cache
            said.setdefault(folder, []).append(engine_pool.answer(ids, prompts, seeds, GREEDY).texts)
    for folder, answers in said.items():
        expected = greedy_by_transformers(folder, prompts, GREEDY.max_new_tokens)
        assert all(texts == expected for texts in answers)
    assert said[students[0]][0] != said[students[1]][0]
    assert engine_processes() == engines != []  # swapped in place: none was started anew


HOSTILE = {
    "empty": ("", "empty"),
    "blank": (" \n\t ", "empty"),
    "nul": ("How many\0 pens?", "NUL"),
    "long": ("pens " * 20_000, "student.max_model_len is 512"),
}


def test_every_question_is_one_row_a_sample_whatever_is_asked(engine_pool, students, tmp_path):
    engine_pool.serve(ref(students[0]))
    questions = list(QUESTIONS[:10])
    for place, (name, (text, _)) in enumerate(HOSTILE.items()):
        questions.insert(2 * place, Question(name, text, "1"))
    write_questions(Store.open(str(tmp_path / "questions")), questions, size=6)
    job = exam_job(samples=3)
    metrics, _ = run_exam(engine_pool, job, Store.open(str(tmp_path / "questions")), Store.open(str(tmp_path)), print)
    rows = attempts(Store.open(str(tmp_path)))
    assert [(row.question_id, row.sample) for row in rows] == [(q.id, k) for q in questions for k in range(3)]
    for row in rows:
        assert row.seed == sample_seed(7, 1, row.question_id, row.sample)
        reason = HOSTILE.get(row.question_id, (None, None))[1]
        if reason is None:
            assert row.verdict != Verdict.ERROR
            assert 0 < row.output_tokens <= 16
        else:
            assert (row.verdict, row.finish_reason, row.text) == (Verdict.ERROR, "error", "")
            assert reason in row.detail
    assert metrics["error"] == 3 * len(HOSTILE)
    assert (metrics["questions"], metrics["attempts"]) == (14, 42)
    assert metrics["output_tokens"] == sum(row.output_tokens for row in rows)
    torn = engine_pool.answer(["torn"], ["half \ud800 a pair"], [[1, 2]], GREEDY)  # parquet would not even hold it
    assert torn.finish_reasons == ["error", "error"]
    assert "lone surrogate at character 5" in torn.errors[0]


def test_same_seed_gives_the_same_attempts_whatever_the_shards(engine_pool, students, tmp_path):
    engine_pool.serve(ref(students[0]))
    said = []
    for size, order in ((40, QUESTIONS), (7, QUESTIONS[::-1])):
        questions, out = Store.open(str(tmp_path / f"q{size}")), Store.open(str(tmp_path / f"out{size}"))
        write_questions(questions, order, size)
        run_exam(engine_pool, exam_job(), questions, out, ignore)
        said.append({(row.question_id, row.sample): row.text for row in attempts(out)})
    assert said[0] == said[1]
    assert len(set(said[0].values())) > 60  # of 80: samples of one question differ


def test_a_committed_part_is_not_run_again(engine_pool, students, tmp_path):
    engine_pool.serve(ref(students[0]))
    questions, out = Store.open(str(tmp_path / "questions")), Store.open(str(tmp_path / "out"))
    write_questions(questions, QUESTIONS, size=10)
    seen = []
    first, _ = run_exam(engine_pool, exam_job(), questions, out, seen.append)
    before = attempts(out)
    out.delete("attempts-00002.json")  # as after a kill between the rows and their record
    stamps = {name: Path(out.path(name)).stat().st_mtime_ns for name in out.files() if "00002" not in name}
    second, _ = run_exam(engine_pool, exam_job(), questions, out, seen.append)
    assert {name: Path(out.path(name)).stat().st_mtime_ns for name in stamps} == stamps
    assert attempts(out) == before
    assert [part.index for part in sorted(seen[4:], key=lambda part: part.index)] == [0, 1, 2, 3]
    timing = {"seconds_engine"}
    assert {k: v for k, v in first.items() if k not in timing} == {k: v for k, v in second.items() if k not in timing}


def engine_processes():
    """Pids of the engine actors below this process: Ray's own daemons are its children."""
    import psutil

    return [p.pid for p in psutil.Process().children(recursive=True) if "ray::StudentEngine" in " ".join(p.cmdline())]


def test_a_killed_engine_is_replaced_and_its_work_asked_again(engine_pool, students, tmp_path):
    engine_pool.serve(ref(students[1]))
    questions, out = Store.open(str(tmp_path / "questions")), Store.open(str(tmp_path / "out"))
    write_questions(questions, QUESTIONS, size=4)  # some have not begun when the first ends
    job = exam_job(samples=16, max_new_tokens=64)
    killed = []

    def kill_one(part):
        if not killed:
            killed.append(engine_processes()[0])
            os.kill(killed[0], signal.SIGKILL)

    metrics, _ = run_exam(engine_pool, job, questions, out, kill_one)
    rows = attempts(out)
    assert [(row.question_id, row.sample) for row in rows] == [(q.id, k) for q in QUESTIONS for k in range(16)]
    assert metrics["error"] == 0
    assert metrics["engine_restarts"] == 1
    assert killed[0] not in engine_processes()
    assert engine_pool.serve(ref(students[1])) == ref(students[1]).sha256


class Hung:
    """An engine that took its work and makes no step any more."""

    def generate(self, *_):
        threading.Event().wait()

    def progress(self):
        return 7


class Lender:
    """A supervisor with one such engine."""

    def __init__(self, *_):
        import ray

        self.engine = ray.remote(Hung).options(num_cpus=0, max_concurrency=2).remote()

    def begin_stage(self, most, room): ...

    def stop(self): ...

    def load(self, model, run):
        """Returns its process in place of the model's hash."""
        return str(os.getpid())

    def lease(self, alone):
        return EngineLease(0, 1, self.engine, alone)

    def lost(self, lease, why):
        raise StageError(why)


def test_a_pool_whose_supervisor_is_gone_stops(ray_cluster, tmp_path, monkeypatch):
    """As after a SIGTERM to the whole process group; an error here would hide what the run ended of."""
    monkeypatch.setattr("tailor_ray.student.pool.Supervisor", Lender)
    pool = EnginePool(StudentConfig(), seed=7)
    os.kill(int(pool.serve(ref(make_student(tmp_path / "student")))), signal.SIGKILL)
    pool.stop()
    assert not pool.is_started


def test_an_engine_that_makes_no_step_counts_as_dead(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("tailor_ray.student.pool.Supervisor", Lender)
    pool = EnginePool(StudentConfig(engine_timeout_s=1.0), seed=7)
    pool.serve(ref(make_student(tmp_path / "student")))
    with pytest.raises(StageError, match=r"no step within student\.engine_timeout_s=1\.0"):
        pool.answer(["q1"], ["How many?"], [[0]], GREEDY)
    pool.stop()


def test_a_prompt_that_kills_its_engine_is_quarantined_and_restarts_are_bounded(ray_cluster, tmp_path):
    folder = make_student(tmp_path / "student", unknown_token="<boom>")
    config = StudentConfig(engines=1, kv_cache_gib=0.125, max_model_len=512, max_num_seqs=4)  # batches of one question
    pool = EnginePool(config, seed=7)
    questions, out = Store.open(str(tmp_path / "questions")), Store.open(str(tmp_path / "out"))
    asked = [*QUESTIONS[:5], Question("poison", "How many <boom> has Ann?", "3"), *QUESTIONS[5:8]]
    write_questions(questions, asked, size=20)
    pool.serve(ref(folder))
    try:
        metrics, _ = run_exam(pool, exam_job(), questions, out, ignore)
        with pytest.raises(StageError, match=r"exam\.max_engine_restarts=0"):
            run_exam(pool, exam_job(prefix="again", max_engine_restarts=0), questions, out, ignore)
        with pytest.raises(StageError, match=r"student\.max_num_seqs"):  # what to lower if it was memory
            pool.answer(["q"], ["How many?"], [[1]], GREEDY)
    finally:
        pool.stop()
    rows = attempts(out)
    assert [row.question_id for row in rows] == [q.id for q in asked for _ in range(2)]
    assert {row.question_id for row in rows if row.verdict == Verdict.ERROR} == {"poison"}
    assert "quarantined" in next(row.detail for row in rows if row.question_id == "poison")
    assert (metrics["quarantined"], metrics["engine_restarts"]) == (["poison"], 2)
    assert committed_parts(out, "again") == []
