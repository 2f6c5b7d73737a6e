"""SVAMP: one-step problems with numbers that do not belong.

The question is its body and its question joined.
"""

from __future__ import annotations

from tailor_ray.config.task import TaskConfig
from tailor_ray.records import AnswerKind
from tailor_ray.tasks.base import TaskData, demo, plain_number
from tailor_ray.tasks.hub import HubSet, load_public
from tailor_ray.tasks.sources import Row

ANSWER_KIND = AnswerKind.NUMBER
DEMOS = (
    demo(
        "Nina planted 34 tulips and 19 roses in 6 beds. How many more tulips than roses did Nina plant?",
        "The number of beds does not matter. She planted 34 - 19 = 15 more tulips than roses.",
        "15",
    ),
    demo(
        "A ferry made 7 trips on Monday and 9 trips on Tuesday. It carries 40 cars on each trip. How many cars did it "
        "carry on Tuesday?",
        "Only the 9 trips of Tuesday count. The ferry carried 9 * 40 = 360 cars.",
        "360",
    ),
    demo(
        "Omar had some stickers. He gave 28 of them to his sister and has 45 left. How many stickers did he have at "
        "the start?",
        "What he gave away and what he has left make up the start. He had 28 + 45 = 73 stickers.",
        "73",
    ),
    demo(
        "A gardener packs 96 plums into boxes of 8 and 50 pears into boxes of 5. How many boxes of plums are there?",
        "The pears do not matter. There are 96 / 8 = 12 boxes of plums.",
        "12",
    ),
)


def from_hub(row: Row, default_id: str) -> Row:
    body = row["Body"].strip()
    return {
        "id": row.get("ID") or f"svamp-{default_id}",
        "question": f"{body if body.endswith('.') else body + '.'} {row['Question'].strip()}",
        "answer": plain_number(row["Answer"]),
    }


HUB = HubSet("ChilleD/SVAMP", from_hub)


def load(config: TaskConfig, seed: int) -> TaskData:
    return load_public(config, seed, ANSWER_KIND, DEMOS, HUB)
