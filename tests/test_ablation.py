"""The ablation: every variant's settings are valid, differ as they should, and the figures are right."""

import importlib.util
import json
import os
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import pytest

from tailor_ray.config import load_config
from tailor_ray.config.run import METHODS
from tailor_ray.layout import stage_folder
from tailor_ray.rounds.loop import Commits
from tailor_ray.rounds.spec import stages_of
from tailor_ray.storage import Manifest, Store, commit_manifest, read_manifest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("ablation", ROOT / "jobs/benchmarks/ablation.py")
assert spec is not None
assert spec.loader is not None
ablation = importlib.util.module_from_spec(spec)
sys.modules["ablation"] = ablation  # its dataclass asks for its module
spec.loader.exec_module(ablation)


def resolved(variant: str, seed: int = 2):
    return load_config(ROOT / "jobs/ablation.yaml", ablation.overrides(variant, seed, "/store", ["task.limit_test=9"]))


@pytest.mark.parametrize("variant", ablation.VARIANTS)
def test_each_variant_is_a_run_of_its_own_with_equal_steps(variant: str):
    config = resolved(variant)
    assert (config.name, config.seed, config.storage, config.task.limit_test) == (f"{variant}-2", 2, "/store", 9)
    assert config.training.steps is not None, "variants have different numbers of lessons, so passes would differ"


def test_variants_differ_from_the_full_method_by_what_their_names_say():
    full = resolved("full").training
    assert full.feedback
    assert full.triplet_weight > 0
    without = {"feedback": False, "triplet_weight": 0.0}
    tailored = {name.removeprefix("training.") for name in METHODS["tailored"]}
    expected = {
        "without_feedback": {"feedback": False},
        "without_reflection": {"triplet_weight": 0.0},
        "plain": without,
        "orpo": {"reflection": "orpo"},
        "redi": {"reflection": "redi", "redi_weight": 0.2},
        "own_correct": {"triplet_weight": 0.0, "own_correct": 1, "own_correct_weight": 0.5},
        "critique": {"triplet_weight": 0.0, "critique": True},
        "continue": {"triplet_weight": 0.0},
        "fit": {"triplet_weight": 0.0, "rationales": 1, "choose": "fit"},
        "hinted": {"triplet_weight": 0.0},
        "replay": {"triplet_weight": 0.0, "lessons": "replay", "replay_share": 0.5},
        "own_correct_orpo": {"reflection": "orpo", "own_correct": 1, "own_correct_weight": 0.5},
        "own_correct_replay": {
            "triplet_weight": 0.0,
            "lessons": "replay",
            "replay_share": 0.5,
            "own_correct": 1,
            "own_correct_weight": 0.5,
        },
        "continue_orpo": {"reflection": "orpo"},
        "own_correct_plain": {**without, "own_correct": 1, "own_correct_weight": 0.5},
        "orpo_plain": {"feedback": False, "reflection": "orpo"},
        "tailored": load_config(None, ["method=tailored"]).training.model_dump(include=tailored),
        "plain_equal_tokens": without,
    }
    assert {"full", *expected} == ablation.VARIANTS.keys()
    for variant, changed in expected.items():
        assert resolved(variant).training == full.model_copy(update=changed)
    assert all(resolved(name).exam == resolved("full").exam for name in expected)
    taught = {name for name in expected.keys() - {"tailored"} if resolved(name).teacher != resolved("full").teacher}
    assert taught == {"continue", "continue_orpo", "fit", "hinted"}


def test_lanes_share_the_runs_out_and_each_waits_for_earlier_ones_only():
    lanes = ablation.lanes_of(list(ablation.VARIANTS), [1, 2, 3], 2)
    assert sorted(task for lane in lanes for task in lane) == sorted(
        (variant, seed) for variant in ablation.VARIANTS for seed in (1, 2, 3)
    )
    assert [len(lane) for lane in ablation.lanes_of(list(ablation.PARTS), [1, 2, 3], 2)] == [6, 6]
    done = set()
    while any(lanes):  # a lane goes on when what its next run begins as is done
        ready = [lane for lane in lanes if lane and _begun(lane[0], done)]
        assert ready, f"each waits for another: {lanes}"
        done |= {lane.pop(0) for lane in ready}


def _begun(task, done):
    other = ablation.BEGINS_AS.get(task[0])
    return other is None or (other[0], task[1]) in done


def test_one_variant_alone_brings_what_it_begins_as():
    runs = [("plain", 5), ("full", 5), ("without_feedback", 5)]
    assert ablation.lanes_of(["without_feedback"], [5], 1) == [runs]
    assert ablation.lanes_of(["plain"], [5], 2) == [[("plain", 5)], []]


@pytest.mark.parametrize("variant", ablation.BEGINS_AS)
def test_what_is_copied_is_what_the_variant_would_do_itself(tmp_path, variant):
    """A runner that finds the copied stages takes them for its own and goes on behind them."""
    other, stages = ablation.BEGINS_AS[variant]
    extra = [f"student.model={tmp_path}"]
    give, take = (
        load_config(ROOT / "jobs/ablation.yaml", ablation.overrides(name, 2, str(tmp_path), extra))
        for name in (other, variant)
    )
    store = Store.open(give.storage).child(give.name)
    for number in (0, 1):
        for stage in stages_of(give, number):
            if stage.id in stages:
                inputs = {str(one): read_manifest(stage_folder(store, one)).digest() for one in stage.after}
                metrics = {"validation": {"accuracy": 0.5}}
                manifest = Manifest(stage.id.name, number, stage.digest(), inputs, {}, 1.0, metrics)
                commit_manifest(stage_folder(store, stage.id), manifest)
    ablation.begin(take, (variant, 2))
    group = Commits(take, Store.open(take.storage).child(take.name)).missing()
    next_ones = {
        ablation.STUDENT: "round 1 exam",
        ablation.EXAMINED: "round 1 exam",
        ablation.BEGUN: "round 1 examples",
        ablation.ROUND_1: "round 2 exam",
    }
    assert str(group[0].id) == next_ones[stages]


def result(variant, seed, right, questions=10, begun=0, tokens=100):
    return ablation.Result(variant, seed, "", right, questions, begun, tokens)


def test_summary_by_hand():
    right = {"full": (9, 10), "without_feedback": (9, 10), "without_reflection": (8, 10), "plain": (1, 10)}
    found = ablation.summary({name: [result(name, 1, one), result(name, 2, two)] for name, (one, two) in right.items()})
    assert found["full"]["accuracy_mean"] == 0.95
    assert found["full"]["seeds"] == [0.9, 1.0]
    low, high = found["full"]["ci95"]
    assert 0.7 < low < 0.95 < high < 1
    assert found["full"]["to_plain"]["seeds"] == [0.8, 0.0]
    assert "to_plain" not in found["plain"]
    assert not any("to_plain_equal_tokens" in row for row in found.values())
    rows = ablation.table(found).splitlines()
    assert len(rows) == 2 + 4
    assert "95.0%" in rows[2]
    assert "| +40.0 | (-468.2 – +548.2) | (+0.0 – +80.0) |" in rows[2]  # 0.4 ± 12.706 · 0.5657 / √2
    json.dumps(found)


def test_teacher_tokens_make_a_point_dear_or_cheap():
    right = {"full": (4, 2), "plain": (3, 1), "plain_equal_tokens": (4, 1)}
    results = {
        name: [result(name, 1, one, 4, 1, 300), result(name, 2, two, 4, 1, 500)] for name, (one, two) in right.items()
    }
    found = ablation.summary(results)
    assert found["full"]["teacher_tokens"] == 400
    assert found["full"]["gain_over_round_0"] == 0.5
    assert found["full"]["tokens_per_point"] == 8
    assert found["full"]["to_plain_equal_tokens"]["seeds"] == [0.0, 0.25]
    assert "to_plain_equal_tokens" not in found["plain"]
    assert ablation.summary({"full": [result("full", 1, 4, 4, 4)]})["full"]["tokens_per_point"] is None


def test_one_seed_has_a_difference_and_no_interval():
    found = ablation.summary({"full": [result("full", 1, 4, 4)], "plain": [result("plain", 1, 3, 4)]})
    assert found["full"]["to_plain"] == {
        "mean": 0.25,
        "t95": [None, None],
        "bootstrap95": [None, None],
        "seeds": [0.25],
    }
    assert "| +25.0 |  |  |" in ablation.table(found)
    json.dumps(found, allow_nan=False)


def given(*extra, against="without_reflection", config="jobs/ablation.yaml"):
    return Namespace(config=str(ROOT / config), extra=list(extra), against=against)


def test_a_result_is_found_by_all_that_changes_it(tmp_path):
    path, key = tmp_path / "results.jsonl", ablation.key_of(given(), ("plain", 3))
    others = [(given(), ("plain", 4)), (given(), ("full", 3)), (given("training.steps=9"), ("plain", 3))]
    assert len({key, *(ablation.key_of(*one) for one in others)}) == 4
    same = [given("training.threads=2", "name=other"), given(against="full")]
    assert {ablation.key_of(one, ("plain", 3)) for one in same} == {key}
    old, new = ablation.Result(*key, 1, 4, 1, 300), ablation.Result(*key, 2, 4, 1, 300)
    path.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in (old, new)))
    assert ablation.read_results(path) == {key: new}
    assert ablation.read_results(tmp_path / "none") == {}


def test_what_equals_another_ones_tokens_is_found_by_that_other_one():
    keys = {ablation.key_of(given(against=name), ("plain_equal_tokens", 3)) for name in ("full", "continue", "fit")}
    assert len(keys) == 3


def test_seeds_that_have_their_results_are_not_run_again(tmp_path, capsys, monkeypatch):
    path = tmp_path / "results.jsonl"
    found = [
        ablation.Result(*ablation.key_of(given(), (name, seed)), right, 4, 1, 300)
        for name, right in (("plain", 2), ("full", 3))
        for seed in (1, 2)
    ]
    path.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in found))
    command = ["ablation.py", "--config", given().config, "--variants", "plain", "full", "--seeds", "1", "2"]
    monkeypatch.setattr("sys.argv", [*command, "--results", str(path), "--storage", str(tmp_path / "runs")])
    ablation.main()
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["full"]["to_plain"]["mean"] == 0.25
    assert not (tmp_path / "runs").exists()


def test_on_a_gpu_a_pretrained_student_has_the_machine_to_itself(tmp_path, capsys, monkeypatch):
    on_gpu = given(config=ablation.GPU_CONFIG)
    found = [ablation.Result(*ablation.key_of(on_gpu, (name, 1)), 2, 4, 1, 300) for name in ("plain", "full")]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in found))
    monkeypatch.chdir(ROOT)
    command = ["ablation.py", "--gpu", "--variants", "plain", "full", "--seeds", "1", "--results", str(path)]
    monkeypatch.setattr("sys.argv", command)
    ablation.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["full"]["to_plain"]["mean"] == 0.0
    as_given = load_config(on_gpu.config)
    alone = load_config(on_gpu.config, ablation.overrides("full", 1, "/store", []))
    assert (alone.student, alone.training, alone.cluster) == (as_given.student, as_given.training, as_given.cluster)
    assert alone.student.is_given


@pytest.mark.parametrize("variant", ablation.VARIANTS)
def test_each_variant_suits_a_pretrained_student(variant):
    config = load_config(ROOT / "jobs/ablation-real.yaml", ablation.overrides(variant, 1, "/store", [], lanes=2))
    assert config.student.is_given
    assert (config.student.engines, config.training.threads) == (max(1, (os.cpu_count() or 1) // 2),) * 2


def test_a_run_that_ended_has_its_counts_and_tokens(tmp_path):
    store = Store.open(str(tmp_path))
    write_teaching(store, "full-3", 2, [99, 149])
    for number, right in ((0, 1), (1, 2), (2, 3)):
        folder = stage_folder(store.child("full-3"), ablation.StageId(number, "evaluate"))
        metrics = {"test": {"correct": right, "total": 4}}
        commit_manifest(folder, Manifest("evaluate", number, "", {}, {}, 1.0, metrics))
    config = load_config(ROOT / "jobs/ablation.yaml", ablation.overrides("full", 3, str(tmp_path), []))
    assert ablation.result_of(config, ("full", 3, "x")) == ablation.Result("full", 3, "x", 3, 4, 1, 250)


def write_teaching(store, name, rounds, tokens):
    run = store.child(name)
    run.write_bytes("run.yaml", f"rounds: {{max_rounds: {rounds}}}\n".encode())
    for number, paid in enumerate(tokens, 1):
        metrics = {"input_tokens": paid, "output_tokens": 1}
        folder = stage_folder(run, ablation.StageId(number, "teach"))
        commit_manifest(folder, Manifest("teach", number, "", {}, {}, 1.0, metrics))


def test_plain_distillation_spends_as_many_tokens_or_more(tmp_path):
    store = Store.open(str(tmp_path))
    write_teaching(store, "full-3", 2, [99, 149])
    write_teaching(store, "plain-3", 2, [99, 149])
    assert ablation.teacher_tokens(store.child("full-3"), "full") == 250
    assert ablation.teacher_tokens(store.child("plain-3"), "plain") == 100, "what it leaves out it need not have paid"
    assert ablation.as_many_rationales(str(tmp_path), 3, "full") == 3
    write_teaching(store, "redi-3", 2, [99])
    assert ablation.teacher_tokens(store.child("redi-3"), "redi") is None, "its last round is to come"
    assert ablation.teacher_tokens(store.child("none-3"), "redi") is None


def test_equal_tokens_come_after_what_they_are_measured_by():
    (lane,) = ablation.lanes_of(["plain_equal_tokens"], [5], 1, "redi")
    names = [name for name, _ in lane]
    assert names[-1] == "plain_equal_tokens"
    assert {"plain", "redi"} < set(names)
    assert set(ablation.CHOICE).isdisjoint(ablation.SHOW)
