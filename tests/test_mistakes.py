"""The classes of mistakes on the built-in task, by attempts classed by hand, and their counts by round."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tailor_ray.layout import ATTEMPTS, QUESTIONS, StageId, stage_folder
from tailor_ray.records import ATTEMPT_SCHEMA, QUESTION_SCHEMA, Attempt, Question, Verdict, to_table
from tailor_ray.statistics import wilson_interval
from tailor_ray.storage import Manifest, PartsDigest, Store, commit_manifest, commit_part

SCRIPT = Path(__file__).parent.parent / "jobs/benchmarks/mistakes.py"
spec = importlib.util.spec_from_file_location("mistakes", SCRIPT)
mistakes = importlib.util.module_from_spec(spec)
sys.modules["mistakes"] = mistakes  # where its dataclass looks for its types
spec.loader.exec_module(mistakes)

PEARS = "Ivy has 11 pears. Hugo has 6 more, and then finds 4. How many pears does Hugo have now?"
PAGES = "Hugo reads 18 pages on Monday and half as many on Tuesday. How many pages does he read in all?"


def attempt(text, verdict=Verdict.WRONG, question="q", sample=0):
    return Attempt(question, sample, text, "stop", None, verdict, 0, 9, 9)


@pytest.mark.parametrize(
    ("question", "text", "kind"),
    [
        (PEARS, "Add 6 to 11: 11 + 6 = 16. Add 4 more: 16 + 4 = 20.\nAnswer: 20", "slip"),  # goes on with its own 16
        (PEARS, "11 + 6 = 17. 17 + 4 = 20.\nAnswer: 20", "slip"),
        (PEARS, "Both gains make 6+4=11. Put to 11 it is 11 + 11 = 22.\nAnswer: 22", "slip"),  # the other way
        (PEARS, "6 + 11 = 18. 4 + 18 = 22.\nAnswer: 22", "slip"),  # in another order
        (PEARS, "11 + 6 = 17. 17 + 4 = 21.\nAnswer: 20", "slip"),  # of the conclusion
        (PAGES, "18 / 2 = 8. 18 + 8 = 26.\nAnswer: 26", "slip"),
        (PEARS, "12 + 6 = 18. 18 + 4 = 22.\nAnswer: 22", "misreading"),  # there is no 12
        (PEARS, "11 + 4 = 15. 15 + 4 = 19.\nAnswer: 19", "misreading"),
        (PEARS, "11 + 6 = 17. 16 + 4 = 20.\nAnswer: 20", "misreading"),  # does not go on with its 17
        (PAGES, "2 / 18 = 9. 18 + 9 = 27.\nAnswer: 2", "misreading"),  # here the order matters
        (PEARS, "11 - 6 = 5. 5 + 4 = 9.\nAnswer: 9", "wrong plan"),
        (PEARS, "11 + 6 = 17.\nAnswer: 17", "wrong plan"),
        (PEARS, "11 + 6 = 17. 17 + 4 = 21. 21 - 6 = 15.\nAnswer: 15", "wrong plan"),
        (PAGES, "18 + 9 = 27. 18 / 2 = 9.\nAnswer: 9", "wrong plan"),
        (PEARS, "It is 20.\nAnswer: 20", "other"),
        (PEARS, "11 + pears = 17. 17 + 4 = 20.\nAnswer: 20", "other"),
        (PEARS, "11 + 6 + 4 = 20.\nAnswer: 20", "other"),
        ("What is 3 + 4?", "3 + 4 = 8.\nAnswer: 8", "other"),
    ],
)
def test_a_mistake_is_classed_as_by_hand(question, text, kind):
    assert mistakes.classify(question, attempt(text)) == kind


@pytest.mark.parametrize("verdict", [Verdict.UNPARSED, Verdict.TRUNCATED])
def test_an_attempt_without_an_answer_is_of_no_class(verdict):
    assert mistakes.classify(PEARS, attempt("11 + 6 = 18. 18 + 4 = 22.", verdict)) == "other"


def commit(run, stage, prefix, table):
    folder = stage_folder(run, stage)
    digest = PartsDigest.of([commit_part(folder, prefix, 0, table)])
    commit_manifest(folder, Manifest(stage.name, stage.round, "", {}, {prefix: digest}, 1.0, {}))


@pytest.fixture
def run(tmp_path):
    """Two exams of one question, asked three times: a slip and a plan, of which the second exam has the plan right."""
    store = Store.open(str(tmp_path / "run"))
    commit(store, QUESTIONS, "train", to_table([Question("q", PEARS, "21")], QUESTION_SCHEMA))
    slip, plan, right = "11 + 6 = 18. 18 + 4 = 22.\nAnswer: 22", "11 + 6 = 17.\nAnswer: 17", "Answer: 21"
    for number, texts in ((1, (slip, plan, right)), (2, (slip, right, "It is"))):
        verdicts = [{right: Verdict.CORRECT, "It is": Verdict.TRUNCATED}.get(text, Verdict.WRONG) for text in texts]
        rows = [attempt(text, verdicts[sample], sample=sample) for sample, text in enumerate(texts)]
        commit(store, StageId(number, "exam"), ATTEMPTS, to_table(rows, ATTEMPT_SCHEMA))
    return store


def test_classes_are_counted_by_round_with_intervals_and_what_became_of_them(run):
    rows = {(row["round"], row["class"]): row for row in mistakes.count(run)}
    assert {key: row["count"] for key, row in rows.items() if row["count"]} == {
        (1, "slip"): 1, (1, "wrong plan"): 1, (2, "slip"): 1, (2, "other"): 1,
    }  # fmt: skip
    assert all((row["attempts"], row["mistakes"], row["stage"]) == (3, 2, "exam") for row in rows.values())
    assert rows[1, "slip"]["share"] == 0.5
    assert rows[1, "slip"]["share_ci95"] == pytest.approx(wilson_interval(1, 2), abs=1e-4)
    assert [rows[1, kind]["corrected"] for kind in ("slip", "wrong plan", "misreading")] == [0.0, 1.0, None]
    assert rows[2, "slip"]["corrected"] is None  # there is no later exam


def test_the_command_prints_samples_a_table_and_a_last_line_for_programs(run):
    command = [sys.executable, str(SCRIPT), run.uri, "--samples", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"slip: {PEARS} [21]" in done.stdout
    assert "| 1 | exam | 2 of 3 | slip | 1 | 50.0% (9.5% – 90.5%) | 0.0% (0.0% – 79.3%) |" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["mistakes"] == mistakes.count(run)


def test_a_folder_without_a_run_is_refused(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no committed exam or evaluation" in done.stderr
