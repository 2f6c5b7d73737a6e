"""report.json from manifests: finished, unfinished, damaged, hopeless and side by side."""

import json
import re
from html.parser import HTMLParser

import pytest

from tailor_ray.errors import RunFolderError
from tailor_ray.layout import STAGES
from tailor_ray.observe.report import FILTERS, comparison_table, page_file, write_comparison, write_report
from tailor_ray.statistics import accuracy, wilson_interval
from tailor_ray.storage import Manifest, Store, commit_manifest
from tests.observe.runs import make_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "demo")
    return run, write_report(run)


def test_report_holds_the_agreed_document(finished):
    run, document = finished
    assert run.read_json("report/report.json") == json.loads(json.dumps(document))
    assert (document["run"], document["task"]) == ("demo", "arithmetic")
    assert document["student"] == {"path": "tiny", "sha256": "ab" * 32}
    first, second, last = document["rounds"][0], document["rounds"][2], document["rounds"][-1]
    assert [entry["round"] for entry in document["rounds"]] == [0, 1, 2, 3]
    assert first["exam"] is first["teacher"] is first["training"] is first["mistakes"] is None
    assert set(first["seconds"]) == {"questions", "student", "evaluate"}
    evaluation = last["evaluation"]
    assert evaluation["split"] == "test"
    assert evaluation["accuracy"] == evaluation["correct"] / evaluation["total"]
    assert evaluation["ci95"] == pytest.approx(wilson_interval(evaluation["correct"], evaluation["total"]))
    assert (
        last["exam"]["attempts"]
        == 320
        == sum(last["exam"][name] for name in ("correct", "wrong", "unparsed", "truncated", "disputed", "error"))
    )
    teacher = {"requests": 92, "from_ledger": 20, "accepted": 80, "rejected": 8, "failed": 4, "input_tokens": 14720}
    assert teacher.items() <= second["teacher"].items()
    assert second["teacher"]["forecast"]["requests"] == 100
    assert second["training"]["examples"] == 800
    assert sum(second["mistakes"].values()) == 80
    assert document["final_student"]["path"] == f"{run.uri}/rounds/03/train/student"
    assert document["final_student"]["sha256"] == f"{3:064x}"
    assert last["sources"]["train"]["manifest"] == "rounds/03/train/manifest.json"
    counted = [last["sources"][stage]["parts"] for stage in STAGES]
    assert counted == [3, 3, 1, 0, 3]
    assert document["unfinished"] == []


def test_what_the_exam_could_not_decide_is_listed(finished):
    run, document = finished
    page = run.read_bytes("report/index.html").decode()
    for entry in document["rounds"][1:]:
        disputed = entry["undecided"]["disputed_attempts"]
        assert len(disputed) == entry["exam"]["disputed"] > 0
        assert f"Round {entry['round']}: disputed attempts: {len(disputed)}</summary>" in page
        assert f"<code>{disputed[0]['question_id']}</code>, sample {disputed[0]['sample']}: " in page
        assert f"Round {entry['round']}: questions that ended an engine twice: 1</summary>" in page


def test_money_is_divided_by_what_it_fixed(finished):
    _, document = finished
    fixed = sum(entry["mistakes"]["fixed"] for entry in document["rounds"] if entry["mistakes"])
    paid = sum(entry["teacher"]["cost_usd"] for entry in document["rounds"][1:3])  # round 3's has shown no effect yet
    assert document["totals"]["fixed"] == fixed > 0
    assert document["totals"]["usd_per_fixed_question"] == pytest.approx(paid / fixed)


def test_money_and_tokens_are_divided_by_the_points_gained(finished):
    run, document = finished
    first, last = (document["rounds"][at]["evaluation"]["correct"] for at in (0, 3))
    points = (last - first) / 2  # of 200 questions
    assert document["totals"]["usd_per_point"] == pytest.approx(3 * 92 * 0.0001 / points)
    assert document["totals"]["tokens_per_point"] == pytest.approx(3 * 92 * 220 / points)
    shown = FILTERS["per_point"](document["totals"])
    assert shown.startswith("$0.000")
    assert f"each took {shown} of the teacher" in run.read_bytes("report/index.html").decode()


def scored(number, correct, split="test", **teacher):
    costs = {"input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0} | teacher
    return number, {split: accuracy(correct, 100)}, costs


@pytest.mark.parametrize(
    ("rounds", "worth"),
    [
        ([scored(0, 20), scored(1, 24, cost_usd=6.0, input_tokens=10, output_tokens=2)], (1.5, 3.0)),
        ([scored(0, 20), scored(1, 24, input_tokens=10, output_tokens=2)], (0.0, 3.0)),
        ([scored(0, 20), scored(1, 30, cost_usd=6.0), scored(2, 20, cost_usd=1.0)], (None, None)),  # nothing is left
        ([scored(0, 20), scored(1, 19, cost_usd=6.0)], (None, None)),
        ([scored(0, 20)], (None, None)),
        ([scored(1, 24, cost_usd=6.0)], (None, None)),  # round 0 is damaged
        ([scored(0, 20), scored(1, 24, "validation", cost_usd=6.0)], (None, None)),  # other questions
        ([scored(0, 20), (1, scored(1, 24)[1], None)], (None, None)),  # what was paid is damaged
    ],
)
def test_where_no_point_is_gained_there_is_no_price_of_one(tmp_path, rounds, worth):
    run = Store.open(str(tmp_path / "run"))
    run.write_bytes("run.yaml", b"name: run\n")
    for number, scores, costs in rounds:
        commit_manifest(
            run.child("rounds", f"{number:02d}", "evaluate"), Manifest("evaluate", number, "", {}, {}, 1.0, scores)
        )
        if number and costs is not None:
            commit_manifest(
                run.child("rounds", f"{number:02d}", "teach"), Manifest("teach", number, "", {}, {}, 1.0, costs)
            )
    totals = write_report(run)["totals"]
    assert [totals["usd_per_point"], totals["tokens_per_point"]] == [one and pytest.approx(one) for one in worth]


def test_what_was_paid_after_the_last_evaluation_bought_no_point_yet(tmp_path):
    runs = [
        make_run(tmp_path / name, rounds=2, last_stage=stage) for name, stage in (("run", "train"), ("run2", "exam"))
    ]
    totals = [write_report(run)["totals"] for run in runs]
    assert totals[0]["cost_usd"] > totals[1]["cost_usd"]
    assert totals[0]["usd_per_point"] * 92 * 220 == pytest.approx(totals[0]["tokens_per_point"] * 92 * 0.0001)
    gains = [write_report(run)["gain"]["points"] for run in runs]
    assert totals[0]["usd_per_point"] == pytest.approx(92 * 0.0001 / (100 * gains[0]))


@pytest.mark.parametrize(
    ("usd", "tokens", "text"),
    [(None, None, "—"), (0.0183, 9.0, "$0.018"), (0.0, 1234.5, "1,234 tokens"), (0.0, 0.0, "0 tokens")],
)
def test_a_point_costs_dollars_or_where_the_teacher_is_free_tokens(usd, tokens, text):
    assert FILTERS["per_point"]({"usd_per_point": usd, "tokens_per_point": tokens}) == text


def test_gain_is_paired_on_the_same_questions(finished):
    _, document = finished
    gained = document["rounds"][-1]["evaluation"]["accuracy"] - document["rounds"][0]["evaluation"]["accuracy"]
    assert document["gain"]["points"] == pytest.approx(gained)
    assert document["gain"]["gained"] - document["gain"]["lost"] == round(gained * 200)
    assert document["gain"]["p_value"] < 0.001


class Elements(HTMLParser):
    """Every element of a page with its attributes, as a browser would see them."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_page_is_one_file_without_addresses_and_with_text_escaped(finished):
    run, _ = finished
    html = run.read_bytes("report/index.html").decode()
    elements = Elements(html).found
    tags = [tag for tag, _ in elements]
    assert tags.count("script") == 2  # the data and the code, ours
    assert not {"img", "iframe", "object", "embed", "form", "a"} & set(tags)
    addresses = [attributes.get(name) for _, attributes in elements for name in ("src", "href", "srcset", "action")]
    assert set(addresses) == {None, "data:,"}
    assert not any(name.startswith("on") for _, attributes in elements for name in attributes)
    assert "url(" not in page_file("style.css")
    assert len(html) < 1_000_000


def test_accuracy_zero_and_an_unfinished_round_are_said_plainly(tmp_path):
    run = make_run(tmp_path / "zero", rounds=2, base=-1, lift=0.0, last_stage="exam")
    document = write_report(run)
    assert document["unfinished"] == [f"round 2 {stage}" for stage in ("teach", "examples", "train", "evaluate")]
    assert document["rounds"][-1]["evaluation"] is None
    assert document["rounds"][1]["evaluation"]["correct"] == 0
    assert document["rounds"][1]["evaluation"]["ci95"][0] == 0.0
    html = run.read_bytes("report/index.html").decode()
    assert "does not answer a single test question correctly" in html
    assert "This run is not finished." in html


@pytest.mark.parametrize("last_stage", STAGES)
def test_every_moment_of_a_round_has_a_report(tmp_path, last_stage):
    run = make_run(tmp_path / "run", rounds=1, questions=8, last_stage=last_stage)
    assert len(write_report(run)["unfinished"]) == 4 - STAGES.index(last_stage)


def test_a_run_that_has_only_begun(tmp_path):
    run = Store.open(str(tmp_path / "new"))
    run.write_bytes("run.yaml", b"name: new\n")
    document = write_report(run)
    assert document["rounds"] == []
    assert "not measured yet" in run.read_bytes("report/index.html").decode()


def test_no_run_is_refused_and_nothing_is_made(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        write_report(Store.open(str(tmp_path / "typo")))
    assert not (tmp_path / "typo").exists()


def test_damage_is_named_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path / "hurt")
    part = tmp_path / "hurt/rounds/02/exam/attempts-00000.parquet"
    part.write_bytes(part.read_bytes()[:-3] + b"\0\0\0")
    manifest = tmp_path / "hurt/rounds/03/train/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"steps": 150', b'"steps": 151'))
    document = write_report(run)
    assert any("rounds/03/train/manifest.json" in warning for warning in document["warnings"])
    assert any("rounds/02/exam/attempts-00000.parquet" in warning for warning in document["warnings"])
    assert document["rounds"][3]["training"] is None
    assert document["rounds"][3]["evaluation"]["total"] == 200
    assert "attempts-00000.parquet" in run.read_bytes("report/index.html").decode()


@pytest.mark.parametrize("content", [b"", b"name: demo\ntask:\n  name: arith\n  x", b"[1, 2]", b"\xff\xfe", b"3"])
def test_a_damaged_small_file_is_named(tmp_path, content):
    run = make_run(tmp_path / "hurt", rounds=1, questions=4)
    for name in ("run.yaml", "rounds/01/train/manifest.json", "rounds/00/student/manifest.json"):
        run.write_bytes(name, content)
        document = write_report(run)
        assert any(f"{run.uri}/{name} " in warning for warning in document["warnings"])
    assert document["run"] == "hurt"
    assert document["student"] == {"path": "", "sha256": ""}
    assert document["rounds"][1]["evaluation"]["total"] == 200


def test_a_file_of_settings_cut_off_in_the_middle_stops_nothing(tmp_path):
    run = make_run(tmp_path / "hurt", rounds=0)
    whole = run.read_bytes("run.yaml")
    for length in range(0, len(whole), 4):
        run.write_bytes("run.yaml", whole[:length])
        assert len(write_report(run)["rounds"]) == 1


def test_nan_losses_stay_valid_json(tmp_path):
    run = make_run(tmp_path / "nan", rounds=1, questions=4)
    metrics = {"examples": 1, "steps": 2, "loss_first": float("nan"), "loss_last": float("inf")}
    commit_manifest(run.child("rounds", "01", "train"), Manifest("train", 1, "", {}, {}, 1.0, metrics))
    write_report(run)

    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads(run.read_bytes("report/report.json"), parse_constant=refuse)
    assert document["rounds"][1]["training"]["loss_first"] is None


def test_runs_side_by_side(tmp_path):
    runs = [make_run(tmp_path / folder / "demo", lift=lift) for folder, lift in (("a", 0.17), ("b", 0.02))]
    out = Store.open(str(tmp_path / "out"))
    document = write_comparison(runs, out)
    assert out.read_json("comparison.json") == document
    assert [run["name"] for run in document["runs"]] == ["demo (1)", "demo (2)"]
    first, second = document["runs"]
    assert first["against_first"] is None
    assert second["against_first"]["points"] == pytest.approx(second["final"]["accuracy"] - first["final"]["accuracy"])
    assert second["against_first"]["p_value"] < 0.05
    assert [line["setting"] for line in document["settings"]] == ["training.learning_rate"]
    html = out.read_bytes("comparison.html").decode()
    assert "training.learning_rate" in html
    assert first["totals"]["usd_per_point"] > 0
    assert f'<td class="n">{FILTERS["per_point"](first["totals"])}</td>' in html
    assert not any((tmp_path / name / "demo" / "report").exists() for name in "ab")
    head, *lines = [re.split(r"  +", line.strip()) for line in comparison_table(document).splitlines()]
    one, other = (dict(zip(head, line, strict=True)) for line in lines)
    assert (one["run"], one["to the first"], one["p"], one["cost"]) == ("demo (1)", "—", "—", "$0.028")
    assert other["to the first"] == FILTERS["points"](second["against_first"]["points"])
    assert one["accuracy"] == f"{100 * first['final']['accuracy']:.1f} %"
    assert one["teacher tokens"] == "60,720"
    assert one["per point"] == FILTERS["per_point"](first["totals"])


def test_an_unfinished_run_is_compared_by_what_it_has(tmp_path):
    runs = [make_run(tmp_path / name, rounds=1, questions=4, last_stage="exam") for name in ("a", "b")]
    (tmp_path / "b/rounds/00/evaluate/manifest.json").unlink()
    document = write_comparison(runs, Store.open(str(tmp_path / "out")))
    *_, line = comparison_table(document).splitlines()
    assert re.split(r"  +", line.strip()) == ["b", "—", "—", "—", "—", "—", "0", "$0.00", "—"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "—"), (0.0, "$0.00"), (12.345, "$12.35"), (1234.5, "$1,234.50"), (0.183, "$0.18"), (0.00035, "$0.00035")],
)
def test_dollars_read_well(value, text):
    assert FILTERS["dollars"](value) == text
