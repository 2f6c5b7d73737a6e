"""A configuration is refused with the value, the rule and the setting to change; what changes results is hashed."""

import json
import re
from typing import get_args, get_origin

import pytest
import yaml

from tailor_ray.config import RunConfig, load_config
from tailor_ray.config.base import CONSTANTS, Section, reference
from tailor_ray.config.run import METHODS, parse_config, parse_run_file
from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import ConfigError, UserError


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {epocs: 3}", r"training\.epocs: unknown setting; did you mean 'epochs'"),
        ("examm: {samples: 3}", r"examm: unknown setting; did you mean 'exam'"),
        ("exam: {samples: 0}", r"exam\.samples: .*greater than or equal to 1 \(given: 0\)"),
        ("exam: {samples: many}", r"exam\.samples: .*integer.*many"),
        ("teacher: {serve: some/model}", r"student\.engines=auto takes every GPU"),
        ("teacher: {base_url: 'ftp://x'}", r"teacher\.teachers\.0\.base_url: base_url must be an http"),
        ("- a\n- b", "must hold a mapping of settings, not a list"),
        ("a: [", "not valid YAML"),
        ("training: {steps: 5, epochs: 3, steps: 9}", r"(?s)not valid YAML: steps is set twice.*line 1, column 33"),
        ("seed: 1\nname: a\nseed: 2", r"(?s)seed is set twice.*line 3"),
        ("a: 2026-13-45", "not valid YAML"),
        ("seed: 1" + "0" * 5000, "not valid YAML"),
        ("[" * 3000, "not valid YAML.*nested too deeply"),
        ("training: {learning_rate: .nan}", r"training\.learning_rate: .*finite"),
        ("cluster: {object_store_gib: .inf}", r"cluster\.object_store_gib: .*finite"),
        ("storage: 's3://key:secret@bucket/x'", "must not carry user info"),
        ("exam: {max_new_tokens: 512}\nevaluation: {max_new_tokens: 16}", r"evaluation\.max_new_tokens=16"),
    ],
)
def test_refusals_name_setting_rule_and_value(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://me:canary-key@api.example.com/v1", "user info"),
        ("https://api.example.com/v1?api_key=canary-key", "end with its path"),
        ("api.example.com/v1?api_key=canary-key", "http"),
    ],
)
@pytest.mark.parametrize("where", ["{{base_url: '{}'}}", "{{also: [{{model: other, base_url: '{}'}}]}}"])
def test_a_key_in_a_url_is_refused_and_not_echoed(tmp_path, where, url, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(write(tmp_path, f"teacher: {where.format(url)}"))
    assert "canary" not in str(caught.value)


def test_a_missing_file_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="cannot read the configuration"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_file_that_extends_another_has_its_settings_where_it_gives_none_itself(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "base.yaml").write_text("seed: 1\nexam: {samples: 2, temperature: 0.5}\ntask: {name: gsm8k}")
    (tmp_path / "middle.yaml").write_text("extends: shared/base.yaml\nseed: 2\nteacher: {base_url: mock, model: a}")
    path = write(tmp_path, "extends: middle.yaml\nexam: {samples: 3}\nteacher: {teachers: [{model: b}]}")
    config = load_config(path, ["task.name=svamp"])
    assert (config.seed, config.exam.samples, config.exam.temperature, config.task.name) == (2, 3, 0.5, "svamp")
    assert [one.model for one in config.teacher.teachers] == ["b"]  # a list takes the place of a list
    assert "extends" not in config.to_yaml()
    assert parse_config(yaml.safe_load(config.to_yaml()), "run.yaml") == config


@pytest.mark.parametrize(
    ("extends", "said"),
    [
        ("nowhere.yaml", r"nowhere\.yaml.*which .*run\.yaml extends"),
        ("run.yaml", r"run\.yaml extends itself, by run\.yaml → run\.yaml"),
        ("round.yaml", r"run\.yaml extends itself, by run\.yaml → round\.yaml → run\.yaml"),
        ("[a.yaml, b.yaml]", r"extends must be the path of one YAML file.*\['a\.yaml', 'b\.yaml'\]"),
        ("''", "extends must be the path of one YAML file"),
    ],
)
def test_a_file_that_extends_none_or_itself_is_refused(tmp_path, extends, said):
    (tmp_path / "round.yaml").write_text("extends: run.yaml")
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, f"extends: {extends}"))


def test_overrides_apply_in_order_and_take_yaml_values(tmp_path):
    path = write(tmp_path, "exam: {samples: 2}")
    config = load_config(path, ["exam.samples=3", "exam.samples=5", "task.path=/data/x", "student.few_shot=true"])
    assert (config.exam.samples, config.task.path, config.student.few_shot) == (5, "/data/x", True)


@pytest.mark.parametrize("override", ["exam.samples", "=3", "exam.samples.deep=1"])
def test_a_malformed_override_says_its_form(tmp_path, override):
    with pytest.raises(ConfigError, match="--set"):
        load_config(write(tmp_path, "exam: {samples: 2}"), [override])


def test_yaml_round_trip_gives_the_same_run():
    config = load_config(None, ["seed=7", "training.epochs=2"])
    again = RunConfig.model_validate(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert again.results() == config.results()


def flat(section, path=""):
    for name, value in section.items():
        yield from flat(value, f"{path}{name}.") if isinstance(value, dict) else [(f"{path}{name}", value)]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_stands_for_defaults_that_the_resolved_settings_show(method):
    config = load_config(None, [f"method={method}"])
    resolved, usual = (dict(flat(yaml.safe_load(one.to_yaml()))) for one in (config, load_config(None)))
    assert {name: resolved[name] for name in METHODS[method]} == METHODS[method]
    assert {name for name in usual if resolved[name] != usual[name]} - {"method"} <= METHODS[method].keys()
    assert RunConfig.model_validate(yaml.safe_load(config.to_yaml())) == config


def test_the_paper_is_the_default_and_plain_learns_from_rationales_alone():
    assert load_config(None) == load_config(None, ["method=paper"])
    assert METHODS["paper"] == {}
    plain = load_config(None, ["method=plain"])
    assert (plain.training.feedback, plain.training.pairs, plain.training.own_correct) == (False, "none", 0)
    assert len({str(load_config(None, [f"method={method}"]).results()) for method in METHODS}) == len(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_set_wins_over_the_method(tmp_path, method):
    usual = dict(flat(yaml.safe_load(load_config(None).to_yaml())))
    for name in METHODS[method]:
        section, _, setting = name.partition(".")
        own = write(tmp_path, yaml.safe_dump({section: {setting: usual[name]}, "method": method}))
        for config in (load_config(own), load_config(None, [f"{name}={json.dumps(usual[name])}", f"method={method}"])):
            assert dict(flat(config.model_dump(mode="json")))[name] == usual[name]
            for other in METHODS[method].keys() - {name}:
                assert dict(flat(config.model_dump(mode="json")))[other] == METHODS[method][other]


def test_a_section_made_in_python_keeps_what_it_was_given():
    config = RunConfig(method="plain", training=TrainingConfig(feedback=True, epochs=2))
    assert (config.training.feedback, config.training.epochs, config.training.reflection) == (True, 2, "none")


@pytest.mark.parametrize("value", ["papr", "[plain]", "null", "{plain: 1}"])
def test_an_unknown_method_is_refused(value):
    with pytest.raises(ConfigError, match=r"method: .*'paper'"):
        load_config(None, [f"method={value}"])


def test_the_reference_says_what_each_method_sets():
    lines = reference(RunConfig, METHODS).splitlines()
    for method, defaults in METHODS.items():
        for name, value in defaults.items():
            cells = next(line for line in lines if line.startswith(f"| {method} | `{name}`")).split("|")
            assert yaml.safe_load(cells[3].strip(" `")) == value


def test_where_feedback_teaches_nothing_none_is_asked_for():
    assert load_config(None).asked_teacher().max_mistakes > 0
    assert load_config(None, ["training.feedback=false"]).asked_teacher().max_mistakes == 0


def test_only_settings_that_change_results_are_hashed():
    base = load_config(None).results()
    for same in ("name=other", "storage=/elsewhere", "teacher.actors=4", "rounds.max_rounds=9", "training.workers=2"):
        assert load_config(None, [same]).results() == base, same
    for other in ("seed=1", "exam.samples=8", "teacher.model=gpt", "training.triplet_weight=0", "task.name=jsonl"):
        assert load_config(None, [other]).results() != base, other


def sections(section, path=""):
    yield path, section
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from sections(kind, f"{path}{name}{'[]' if get_origin(field.annotation) is tuple else ''}.")


def test_every_setting_is_documented_and_in_the_reference():
    text = reference(RunConfig, METHODS)
    for path, section in sections(RunConfig):
        for name, field in section.model_fields.items():
            assert field.description, f"{path}{name} has no text below it"
            assert f"`{path}{name}`" in text


def test_the_reference_marks_what_changes_results():
    """Of a section that is operational as a whole no setting does: changing it resumes the run."""
    marks = dict(re.findall(r"^\| `([\w.\[\]]+)` \| `.*?` \| (●?) ?\|", reference(RunConfig, METHODS), re.MULTILINE))
    assert (marks["exam.samples"], marks["rounds.min_gain"]) == ("●", "●")
    for name in ("teacher.actors", "cluster.address", "observe.trackers", "teacher.teachers[].serving.port"):
        assert marks[name] == "", name
    base = load_config(None).results()
    assert load_config(None, ["cluster.num_cpus=7", "observe.log_every_s=3"]).results() == base


def test_the_reference_begins_with_ten_settings():
    first, _, rest = reference(RunConfig, METHODS).partition("## the ten to start with")[2].partition("## top level")
    names = re.findall(r"^\| `([\w.\[\]]+)` \|", first, re.MULTILINE)
    assert len(names) == 10
    assert all(f"| `{name}` |" in rest for name in names)


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_setting_that_became_a_constant_is_refused_in_a_file_and_read_over_in_a_run_folder(name):
    section, _, setting = name.partition(".")
    with pytest.raises(ConfigError, match=rf"{re.escape(name)}: this setting is a constant now \({CONSTANTS[name]}\)"):
        load_config(None, [f"{name}=7"])
    old = {section: {setting: 7}, "seed": 5}
    assert parse_run_file(old, "run.yaml") == load_config(None, ["seed=5"])


def test_the_settings_that_change_results_are_plain_data():
    """They go into YAML and JSON: of the model card, of a manifest's hash."""
    import yaml

    config = load_config(None, ["task.name=jsonl", "task.path=x", "task.answer_kind=number"])
    assert yaml.safe_load(yaml.safe_dump(config.results())) == config.results()
    assert config.results()["task"]["answer_kind"] == "number"


OLD = """
teacher:
  base_url: sandbox
  model: a
  max_tokens: 99
  also: [{model: b}]
  sandbox: {wrong_share: 0.5}
"""
NEW = """
teacher:
  teachers:
    - {base_url: mock, model: a, max_tokens: 99}
    - {model: b}
  mock: {wrong_share: 0.5}
"""


def test_the_first_form_of_the_teacher_is_read_with_a_hint(tmp_path, caplog):
    old = load_config(write(tmp_path, OLD))
    hinted = caplog.text
    caplog.clear()
    assert old == load_config(write(tmp_path, NEW))
    assert not caplog.text
    for said in (
        "teacher.base_url, teacher.model, teacher.max_tokens",
        "teacher.teachers",
        "teacher.also",
        "teacher.mock",
    ):
        assert said in hinted
    assert parse_config(yaml.safe_load(old.to_yaml()), "again") == old


def test_a_teacher_is_set_by_its_place_and_the_first_one_without(tmp_path):
    path = write(tmp_path, NEW)
    config = load_config(path, ["teacher.teachers.1.max_tokens=7", "teacher.temperature=0.1", "teacher.budget_usd=3"])
    assert [one.max_tokens for one in config.teacher.teachers] == [99, 7]
    assert [one.temperature for one in config.teacher.teachers] == [0.1, 0.7]
    third = load_config(path, ["teacher.teachers.2.model=c"])
    assert [one.model for one in third.teacher.teachers] == ["a", "b", "c"]
    assert load_config(None, ["teacher.teachers.0.model=x"]).teacher.model == "x"
    for wrong in ("teacher.teachers.5.model=c", "teacher.teachers.first.model=c"):
        with pytest.raises(ConfigError, match="is no number from 0 to 2"):
            load_config(path, [wrong])
    with pytest.raises(ConfigError, match="at least one teacher"):
        parse_config({"teacher": {"teachers": []}}, "test")
    with pytest.raises(ConfigError, match=r"teacher\.teachers\.0\.temprature.*temperature"):
        parse_config({"teacher": {"teachers": [{"temprature": 1}]}}, "test")
