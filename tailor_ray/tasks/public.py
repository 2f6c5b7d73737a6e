"""The five public sets: local files where `task.path` or $TAILOR_RAY_DATA says so, else the hub.

A set is its demos, its data set on the hub, and a function from a row of that to a row with our column names. Such a
function takes the hub's row and an id of the form "<split>-<index>" for sets whose rows have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from tailor_ray.config.task import TaskConfig
from tailor_ray.records import AnswerKind, Question
from tailor_ray.tasks.base import TaskData, demo, plain_number, split_solution
from tailor_ray.tasks.sources import HubRows, Row, local_files
from tailor_ray.tasks.splits import assemble


@dataclass(frozen=True)
class PublicSet:
    """A task whose data set is on the hub."""

    answer_kind: AnswerKind
    demos: tuple[Question, ...]
    dataset: str
    convert: Callable[[Row, str], Row]  # (hub row, "<split>-<index>") -> {"id", "question", "answer", …}
    subset: str | None = None
    test: str = "test"  # the split that serves as test

    def load(self, config: TaskConfig, seed: int) -> TaskData:
        """The set's splits, of local files where there are any.

        Raises DataError as `assemble` does.
        """
        train, test = local_files(config) or (
            HubRows(self.dataset, self.subset, split, self.convert) for split in ("train", self.test)
        )
        kind, demos = config.answer_kind or self.answer_kind, config.own_demos() or self.demos
        return assemble(config, seed, kind, demos, train, test)


# GSM8K: grade-school word problems of two to eight steps; every answer is an integer.
GSM8K_DEMOS = (
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


def gsm8k_row(row: Row, default_id: str) -> Row:
    rationale, answer = split_solution(row["answer"])
    return {"id": f"gsm8k-{default_id}", "question": row["question"], "answer": answer, "rationale": rationale}


# SVAMP: one-step problems with numbers that do not belong. The question is its body and its question joined.
SVAMP_DEMOS = (
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


def svamp_row(row: Row, default_id: str) -> Row:
    body = row["Body"].strip()
    return {
        "id": row.get("ID") or f"svamp-{default_id}",
        "question": f"{body if body.endswith('.') else body + '.'} {row['Question'].strip()}",
        "answer": plain_number(row["Answer"]),
    }


# MultiArith: two-step problems. Six test questions are in train word for word, and are kept out of it.
MULTIARITH_DEMOS = (
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


def multiarith_row(row: Row, default_id: str) -> Row:
    return {
        "id": f"multiarith-{default_id}",
        "question": row["question"].strip(),
        "answer": plain_number(row["final_ans"]),
    }


# CommonsenseQA: one of five choices. The hub's test split has no answers, so its validation split is the test.
def _choice_demo(text: str, choices: tuple[str, str, str, str, str], rationale: str, answer: str) -> Question:
    return demo(text, rationale, answer, json.dumps(dict(zip("abcde", choices, strict=True))))


CSQA_DEMOS = (
    _choice_demo(
        "Where would you most likely keep milk so that it stays fresh?",
        ("cupboard", "refrigerator", "garage", "window sill", "bookshelf"),
        "Milk turns sour when it is warm. Of these places only the refrigerator is cold.",
        "b",
    ),
    _choice_demo(
        "What does a person who is out of breath after running want to do?",
        ("read", "shout", "rest", "eat soup", "sprint"),
        "Running tires the body, and being out of breath shows it. Someone who is tired wants to recover, "
        "which is to rest.",
        "c",
    ),
    _choice_demo(
        "The hikers heard thunder, so what did they look for?",
        ("a lake", "a tall tree", "shelter", "a kite", "the summit"),
        "Thunder means that lightning is near. A lake, a tall tree and the summit draw lightning, and a kite is no "
        "help. Shelter protects them.",
        "c",
    ),
    _choice_demo(
        "What do you use to cut a slice of bread?",
        ("spoon", "napkin", "plate", "cup", "knife"),
        "Cutting needs a sharp edge. A knife is the only thing here that has one.",
        "e",
    ),
)


def csqa_row(row: Row, default_id: str) -> Row:
    return {
        "id": row.get("id") or f"csqa-{default_id}",
        "question": row["question"].strip(),
        "answer": row["answerKey"],
        "choices": row["choices"],  # {"label": ["A", …], "text": […]}
    }


# StrategyQA: yes/no questions whose steps are implied. The rationale of a row is evidence, not an argument.
STRATEGYQA_DEMOS = (
    demo(
        "Could a penguin meet a polar bear in the wild?",
        "Penguins live in the southern hemisphere. Polar bears live in the Arctic, in the far north. "
        "So they never share a place.",
        "no",
    ),
    demo(
        "Would a grand piano be too heavy for one person to carry?",
        "A grand piano weighs 250 kilograms or more. Even trained people can hardly carry 200 kilograms.",
        "yes",
    ),
    demo(
        "Did Mozart ever listen to music on the radio?",
        "Mozart died in 1791. Radio broadcasts began in the twentieth century, long after his death.",
        "no",
    ),
    demo(
        "Can a vegetarian eat a dish of lentils and rice?",
        "Vegetarians eat no meat. Lentils and rice are plants.",
        "yes",
    ),
)


def strategyqa_row(row: Row, default_id: str) -> Row:
    facts = row.get("facts") or []
    facts = [facts] if isinstance(facts, str) else facts
    stripped = [fact.strip() for fact in facts if fact.strip()]
    return {
        "id": row.get("qid") or f"strategyqa-{default_id}",
        "question": row["question"].strip(),
        "answer": row["answer"],
        "rationale": " ".join(fact if fact.endswith(".") else f"{fact}." for fact in stripped) or None,
    }


SETS = {
    "gsm8k": PublicSet(AnswerKind.NUMBER, GSM8K_DEMOS, "openai/gsm8k", gsm8k_row, subset="main"),
    "svamp": PublicSet(AnswerKind.NUMBER, SVAMP_DEMOS, "ChilleD/SVAMP", svamp_row),
    "multiarith": PublicSet(AnswerKind.NUMBER, MULTIARITH_DEMOS, "ChilleD/MultiArith", multiarith_row),
    "csqa": PublicSet(AnswerKind.CHOICE, CSQA_DEMOS, "tau/commonsense_qa", csqa_row, test="validation"),
    "strategyqa": PublicSet(AnswerKind.YES_NO, STRATEGYQA_DEMOS, "ChilleD/StrategyQA", strategyqa_row),
}
