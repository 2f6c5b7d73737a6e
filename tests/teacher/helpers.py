"""Requests, questions and endpoints that the teacher's tests share."""

from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.records import Attempt, Question, Verdict
from tailor_ray.teacher.client import make_request

QUESTION = Question("q1", "Tom has 3 apples. He buys 4 more. How many apples does Tom have?", "7")


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
