"""The built-in task: its wordings write and read, its solver works from the text alone, its splits are apart."""

import re
from random import Random

import pytest

from tailor_ray.config.task import TaskConfig
from tailor_ray.demo.arithmetic import first_fault, generate, other_ways, school_questions, solve
from tailor_ray.demo.arithmetic.families import FAMILIES
from tailor_ray.demo.arithmetic.language import Family, Step, Wording
from tailor_ray.demo.arithmetic.school import CHAINS, KNOWN, SCHOOL
from tailor_ray.demo.arithmetic.solver import read
from tailor_ray.records import Verdict
from tailor_ray.tasks import grader_for, load_task

APPLES = "Tom has 20 apples. Anna gives Tom 7 more, and then he loses 5. How many apples does Tom have now?"


def test_there_are_at_least_ten_families_of_one_to_three_steps():
    assert len({family.name for family in FAMILIES}) >= 10
    assert {len(family.steps) for family in FAMILIES} == {1, 2, 3}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_wording_is_read_back_by_itself_alone(family: Family):
    rng = Random(0)
    for _ in range(20):
        slots, steps = family.draw(rng)
        for wording in family.wordings:
            text = wording.write(slots)
            assert "{" not in text
            readers = [other for other in FAMILIES for w in other.wordings if w.read(text) is not None]
            assert readers == [family], text
            found = wording.read(text)
            assert found is not None
            assert found == {slot: slots[slot] for slot in found}
            assert family.solve({slot: int(slots[slot]) for slot in family.numbers}) == steps
            assert set(family.numbers) <= set(found), "a wording that hides a number cannot be solved"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_style_of_rationale_shows_every_step_and_no_other_equation(family: Family):
    text = family.wordings[0].write(family.draw(Random(1))[0])
    written = set()
    for style in range(len(family.rationales)):
        solution = solve(text, style)
        assert solution is not None
        shown = re.findall(r"\d+ [-+*/] \d+ = \d+", solution.rationale)
        assert shown == [str(step) for step in solution.steps]
        assert eval(shown[-1].split("=")[0]) == int(solution.answer)
        written.add(solution.rationale)
    assert len(written) == len(family.rationales)


def test_a_problem_worked_by_hand():
    solution = solve(APPLES)
    assert solution is not None
    assert solution.family == "gain_and_loss"
    assert solution.steps == (Step(20, "+", 7, 27), Step(27, "-", 5, 22))
    assert solution.answer == "22"
    assert solution.rationale == "First there are 20 + 7 = 27 apples. Then 5 go away, so 27 - 5 = 22 are left."


def test_the_solver_goes_by_the_text_and_not_by_what_was_generated():
    changed = solve(APPLES.replace("loses 5", "loses 6"))
    assert changed is not None
    assert changed.answer == "21"
    assert solve("  " + APPLES.replace(" ", "\n ") + " ") == solve(APPLES), "white space does not matter"


@pytest.mark.parametrize("text", ["", "Why?", APPLES + " Why?", APPLES.replace("20", "twenty"), "What is 7 / 2?"])
def test_what_is_no_question_of_the_task_is_not_solved(text: str):
    assert solve(text) is None


def test_styles_go_round_for_any_number():
    assert solve(APPLES, 10**30) == solve(APPLES, 10**30 % 3)


def test_a_repeated_slot_must_hold_the_same_word():
    assert Wording("{name} and {name}").read("Tom and Tom") == {"name": "Tom"}
    assert Wording("{name} and {name}").read("Tom and Ben") is None
    assert read(APPLES.replace("does Tom", "does Ben")) is None


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        ("I do not know. Answer: 3", "The attempt shows no calculation. It should begin with 20 + 7 = 27."),
        ("20 + 7 = 28. 28 - 5 = 23. Answer: 23", "The calculation 20 + 7 = 28 is wrong: it should give 27."),
        ("20 / 7 = 3. Answer: 3", "The calculation 20 / 7 = 3 is wrong: 20 is not divisible by 7."),
        ("20 - 7 = 13. Answer: 13", "Step 1 should be 20 + 7 = 27, but the attempt calculates 20 - 7 = 13."),
        ("20 + 7 = 27. 27 + 5 = 32.", "Step 2 should be 27 - 5 = 22, but the attempt calculates 27 + 5 = 32."),
        ("7 + 20 = 27. Answer: 27", "The attempt stops after 7 + 20 = 27. The step 27 - 5 = 22 is missing."),
        (
            "20 + 7 = 27. 27 - 5 = 22. 22 - 1 = 21. Answer: 21",
            "The problem is solved after 27 - 5 = 22, but the attempt goes on with 22 - 1 = 21.",
        ),
        (
            "20 + 7 = 27. 27 - 5 = 22.\nAnswer: 27",
            "The steps are right, but the attempt concludes 27 and not 22.",
        ),
        ("20 + 7 = 27. 27 - 5 = 22", "The steps are right, but the attempt does not conclude that the answer is 22."),
    ],
)
def test_the_first_error_of_an_attempt_is_found(attempt: str, says: str):
    solution = solve(APPLES)
    assert solution is not None
    assert first_fault(solution, attempt).said == says


@pytest.mark.parametrize(
    ("attempt", "step", "done"),
    [
        ("There are 20 + 7 = 27. Then 27 - 5 = 21.\nAnswer: 21", "27 - 5 = 21", 1),
        ("There are 20 + 7 = 27. Then add 27 + 5 = 32.\nAnswer: 32", "Then add 27 + 5 = 32", 1),
        ("20 + 7 = 27. 27 - 5 = 22.\nAnswer: 27", "Answer: 27", 2),
        ("20 + 7 = 27.\nAnswer: 27", "Answer: 27", 1),
        ("20 + 7 = 27 apples are left. That is it.\nAnswer: 27", "That is it.", 1),
        ("20 + 7 = 27. 27 - 5 = 22. 22 - 1 = 21. Answer: 21", "22 - 1 = 21", 2),
        (" I guess.\nAnswer: 3", "I guess.", 0),
    ],
)
def test_the_first_wrong_step_is_named_to_the_letter(attempt: str, step: str, done: int):
    solution = solve(APPLES)
    assert solution is not None
    fault = first_fault(solution, attempt)
    assert (fault.step, fault.done) == (step, done)
    assert attempt[fault.start :].startswith(step)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_other_ways_are_right_and_none_of_the_first(family: Family):
    rng, found = Random(1), 0
    for _ in range(20):
        slots, steps = family.draw(rng)
        question = rng.choice(family.wordings).write(slots)
        first = {solve(question, style).rationale for style in range(len(family.rationales))}
        for way in other_ways(question):
            assert way.answer == str(steps[-1].result)
            assert all(eval(str(step).replace("=", "==")) for step in way.steps)
            assert all(str(step) in way.rationale for step in way.steps)
            assert way.rationale not in first
            found += 1
    assert found >= 20


def test_the_splits_share_no_text_and_no_id():
    task = load_task(TaskConfig(limit_train=3000, limit_test=500), seed=7)
    train, validation, test = list(task.train), list(task.validation), list(task.test)
    assert (len(train), len(validation), len(test)) == (3000, 300, 500)
    everything = [*train, *validation, *test, *task.demos]
    assert len({question.text for question in everything}) == len(everything)
    assert len({question.id for question in everything}) == len(everything)


def test_the_seed_decides_and_a_longer_train_leaves_the_others():
    first, again, other = (load_task(TaskConfig(limit_train=200), seed) for seed in (1, 1, 2))
    assert list(first.train) == list(again.train)
    assert list(first.test) != list(other.test)
    longer = load_task(TaskConfig(limit_train=400, max_validation=20), 1)
    assert list(longer.test) == list(first.test)
    assert list(longer.validation) == list(first.validation)


def test_names_objects_and_numbers_vary():
    task = load_task(TaskConfig(limit_train=2000), seed=1)
    found = [read(question.text) for question in task.train]
    assert {family.name for family, _ in filter(None, found)} == {family.name for family in FAMILIES}
    assert len({slots.get("name") for _, slots in filter(None, found)}) > 20
    assert len({slots.get("item") for _, slots in filter(None, found)}) > 15
    answers = [question.answer for question in task.train]
    assert max(answers.count(answer) for answer in set(answers)) < 0.1 * len(answers)


def test_the_tasks_grader_accepts_every_gold_rationale_with_its_answer():
    config = TaskConfig(limit_train=100)
    task, grader = load_task(config, seed=3), grader_for(config)
    for question in [*task.train, *task.demos]:
        grade = grader.grade(question, f" {question.rationale}\nAnswer: {question.answer}", "stop")
        assert grade.verdict is Verdict.CORRECT


def test_school_is_simpler_and_shares_no_question_with_the_task():
    assert 0 < len(KNOWN) < len(FAMILIES) / 2, "most families are left to the rounds"
    assert all(len(family.steps) <= 2 for family in SCHOOL if family not in CHAINS)
    task = {question.text for question in generate(FAMILIES, 20000, 1, "train", set())}
    assert not task & {question.text for question in school_questions(5000, seed=1)}


@pytest.mark.parametrize("family", {one.name: one for one in SCHOOL}.values(), ids=lambda family: family.name)
def test_school_solves_rightly(family: Family):
    slots, steps = family.draw(Random(0))
    rationale = family.rationale(slots, steps, style=0)
    assert all(str(step) in rationale for step in steps)
    assert all(eval(str(step).replace("=", "==")) for step in steps)
    if family in CHAINS:
        assert rationale == " ".join(f"{step}." for step in steps)
        asked = family.wordings[0].write(slots).removeprefix("What is ").removesuffix("?")
        assert eval(asked) == steps[-1].result, "from left to right is how the chain is meant and how it is read"
