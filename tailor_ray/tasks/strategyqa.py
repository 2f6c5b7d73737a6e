"""StrategyQA: yes/no questions whose steps are implied.

The rationale given with a row is evidence, not an argument.
"""

from __future__ import annotations

from tailor_ray.config.task import TaskConfig
from tailor_ray.records import AnswerKind
from tailor_ray.tasks.base import TaskData, demo
from tailor_ray.tasks.hub import HubSet, load_public
from tailor_ray.tasks.sources import Row

ANSWER_KIND = AnswerKind.YES_NO
DEMOS = (
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


def from_hub(row: Row, default_id: str) -> Row:
    facts = row.get("facts") or []
    facts = [facts] if isinstance(facts, str) else facts
    stripped = [fact.strip() for fact in facts if fact.strip()]
    return {
        "id": row.get("qid") or f"strategyqa-{default_id}",
        "question": row["question"].strip(),
        "answer": row["answer"],
        "rationale": " ".join(fact if fact.endswith(".") else f"{fact}." for fact in stripped) or None,
    }


HUB = HubSet("ChilleD/StrategyQA", from_hub)


def load(config: TaskConfig, seed: int) -> TaskData:
    return load_public(config, seed, ANSWER_KIND, DEMOS, HUB)
