"""MultiArith: two-step arithmetic problems. Six test questions are in train word for word: the gate drops them."""

from __future__ import annotations

from tailor_ray.config.task import TaskConfig
from tailor_ray.records import AnswerKind
from tailor_ray.tasks.base import TaskData, demo, plain_number
from tailor_ray.tasks.hub import HubSet, load_public
from tailor_ray.tasks.sources import Row

ANSWER_KIND = AnswerKind.NUMBER
DEMOS = (
    demo(
        "Hugo baked 48 muffins and ate 6 of them. He puts the rest into bags of 7. How many bags does he fill?",
        "After eating there are 48 - 6 = 42 muffins. He fills 42 / 7 = 6 bags.",
        "6",
    ),
    demo(
        "A library has 5 shelves of novels and 3 shelves of poetry, with 12 books on each shelf. How many books are "
        "there in all?",
        "There are 5 + 3 = 8 shelves. They hold 8 * 12 = 96 books.",
        "96",
    ),
    demo(
        "Vera earned 9 dollars for each of 11 lawns that she was asked to mow, but she forgot 4 of them. How many "
        "dollars did she earn?",
        "She mowed 11 - 4 = 7 lawns. She earned 7 * 9 = 63 dollars.",
        "63",
    ),
)


def from_hub(row: Row, default_id: str) -> Row:
    return {
        "id": f"multiarith-{default_id}",
        "question": row["question"].strip(),
        "answer": plain_number(row["final_ans"]),
    }


HUB = HubSet("ChilleD/MultiArith", from_hub)


def load(config: TaskConfig, seed: int) -> TaskData:
    return load_public(config, seed, ANSWER_KIND, DEMOS, HUB)
