"""GSM8K: grade-school word problems of two to eight steps; every answer is an integer."""

from __future__ import annotations

from tailor_ray.config.task import TaskConfig
from tailor_ray.records import AnswerKind
from tailor_ray.tasks.base import TaskData, demo, split_solution
from tailor_ray.tasks.hub import HubSet, load_public
from tailor_ray.tasks.sources import Row

ANSWER_KIND = AnswerKind.NUMBER
DEMOS = (
    demo(
        "A bakery fills 6 trays with 15 rolls each. By noon it has sold two thirds of the rolls, and in the afternoon "
        "it sells 12 more. How many rolls are left?",
        "The bakery has 6 * 15 = 90 rolls.\nBy noon it has sold 90 * 2 / 3 = 60 rolls.\n"
        "With the afternoon it has sold 60 + 12 = 72 rolls.\nSo 90 - 72 = 18 rolls are left.",
        "18",
    ),
    demo(
        "Mira rents a kayak for $9 an hour and a life vest for $4 a day. She paddles 3 hours on Saturday and 2 hours "
        "on Sunday, and needs the vest on both days. How many dollars does she pay?",
        "She paddles 3 + 2 = 5 hours.\nThe kayak costs 5 * 9 = 45 dollars.\nThe vest costs 2 * 4 = 8 dollars.\n"
        "Together she pays 45 + 8 = 53 dollars.",
        "53",
    ),
    demo(
        "A water tank holds 240 liters and is 25% full. A pump adds 12 liters a minute. How many minutes does it take "
        "until the tank is full?",
        "The tank already holds 240 * 25 / 100 = 60 liters.\nIt lacks 240 - 60 = 180 liters.\n"
        "The pump needs 180 / 12 = 15 minutes.",
        "15",
    ),
    demo(
        "Tomas is 4 years older than Lea. Lea is half as old as their cousin Ruben, who is 22. How old will Tomas be "
        "in 5 years?",
        "Lea is 22 / 2 = 11 years old.\nTomas is 11 + 4 = 15 years old.\nIn 5 years he will be 15 + 5 = 20.",
        "20",
    ),
)


def from_hub(row: Row, default_id: str) -> Row:
    rationale, answer = split_solution(row["answer"])
    return {"id": f"gsm8k-{default_id}", "question": row["question"], "answer": answer, "rationale": rationale}


HUB = HubSet("openai/gsm8k", from_hub, subset="main")


def load(config: TaskConfig, seed: int) -> TaskData:
    return load_public(config, seed, ANSWER_KIND, DEMOS, HUB)
