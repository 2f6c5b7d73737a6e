"""Requests, rows, questions and endpoints that the teacher's tests share, and a driver that is killed."""

import multiprocessing
import os
import signal
from dataclasses import replace

from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.records import Attempt, Question, Verdict
from tailor_ray.teacher import ledger as ledger_module
from tailor_ray.teacher.client import make_request
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import LedgerRow

QUESTION = Question("q1", "Tom has 3 apples. He buys 4 more. How many apples does Tom have?", "7")

ROW = LedgerRow("", "answered", "m", "q", 1, '{"a":1}', "reply é\u0000 <b>", "stop", sent=1.0, settled=2.0, attempts=1)


def row(number, **changes):
    return replace(ROW, key=f"{number:064x}", sent=float(number), **changes)


def write(store, rows, close=True):
    ledger = Ledger(store)
    ledger.stage(rows)
    ledger.commit()
    if close:
        ledger.close()
    return ledger


def killed(work, *values):
    """Do `work(*values)` in a driver of its own, which SIGKILL ends there; both are of a module, to be pickled."""
    driver = multiprocessing.get_context("spawn").Process(target=_die_after, args=(work, values))
    driver.start()
    driver.join()
    assert driver.exitcode == -signal.SIGKILL


def _die_after(work, values):
    ledger_module.FLUSH_S = 3600.0  # what it did not flush itself is on the node alone
    kept = work(*values)  # noqa: F841  open until the end
    os.kill(os.getpid(), signal.SIGKILL)


def commit_and_flush(store, rows, unflushed=()):
    """Of a driver to be killed: `rows` are in storage too, `unflushed` on the node alone."""
    ledger = write(store, rows, close=False)
    ledger.flush()
    ledger.stage(unflushed)
    ledger.commit()
    return ledger


def request(endpoint=None, number=0, priority=None, text=None):
    endpoint = endpoint or EndpointConfig()
    if isinstance(endpoint, TeacherConfig):
        endpoint = endpoint.teachers[0]
    messages = [{"role": "user", "content": text or f"<question>\nWhat is {number} plus 1?\n</question>"}]
    return make_request(
        endpoint,
        messages,
        None,
        sample=0,
        question_id=f"q{number}",
        round_=1,
        priority=priority or (0.0, 0, f"{number:06d}"),
    )


def config(**settings):
    return TeacherConfig(**{"base_url": "http://127.0.0.1:9/v1", **settings})


def mistake(question=QUESTION, sample=0, text="3 + 4 = 8. Answer: 8"):
    return Attempt(question.id, sample, text, "stop", "8", Verdict.WRONG, 1, 10, 10)


def reply(rationale="There are 3 + 4 = 7.", answer="7", feedback=None):
    first = f"<feedback>{feedback}</feedback>\n" if feedback else ""
    return f"{first}<rationale>{rationale}</rationale>\n<answer>{answer}</answer>"
