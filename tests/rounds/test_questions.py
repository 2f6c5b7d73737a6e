"""The stage `questions`: parts sized by the work, and none left of a try that made others."""

import io
from types import SimpleNamespace

import pytest

from tailor_ray.config import RunConfig
from tailor_ray.observe.progress import Progress
from tailor_ray.rounds import stages
from tailor_ray.rounds.stages import Inputs
from tailor_ray.storage import PartsDigest, Store, committed_parts


def write(out, **exam):
    config = RunConfig(task={"name": "arithmetic", "limit_train": 200, "limit_test": 60}, exam=exam)
    with Progress(stream=io.StringIO(), live=False) as progress:
        return stages.questions(Inputs(0, {}), out, config, SimpleNamespace(progress=progress))


@pytest.mark.parametrize(("exam", "sizes"), [({}, [13] * 15 + [5]), ({"shard_questions": 256}, [200])])
def test_a_small_exam_has_several_parts_and_a_given_number_is_kept(tmp_path, exam, sizes):
    out = Store.open(str(tmp_path))
    result = write(out, **exam)
    parts = committed_parts(out, "train")
    assert [part.rows for part in parts] == sizes
    assert result.parts["train"] == PartsDigest.of(parts)


def test_parts_of_a_try_that_was_cut_off_are_not_left_beside_others(tmp_path):
    out = Store.open(str(tmp_path))
    write(out, shard_questions=5)
    result = write(out, shard_questions=50)
    assert [part.rows for part in committed_parts(out, "train")] == [50] * 4
    assert result.parts["train"].count == 4
    assert len([name for name in out.files() if name.startswith("train-")]) == 8
