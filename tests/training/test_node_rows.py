"""A node's copy of the example parts: made once, by all its workers together, checked, reused, and cleared away."""

import pytest

from tailor_ray.errors import CorruptionError
from tailor_ray.storage import Store
from tailor_ray.storage.store import node_cache
from tailor_ray.training.example_parts import OPEN_PARTS, NodeRows, node_rows
from tests.training.parts import commit_stage, tokens
from tests.training.students import make_examples, make_tokenizer

UNEVEN = [make_examples(30, questions=9), [], make_examples(1, seed=1), make_examples(23, seed=2), make_examples(5)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    return Store.open(str(tmp_path / "examples"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def at_once(work):
    """Of workers that wait for nobody."""
    return work()


def folders():
    base = node_cache() / "examples"
    return [path for path in base.iterdir() if path.is_dir()] if base.exists() else []


def test_every_row_is_found_by_its_number(store, tokenizer):
    parts = commit_stage(store, UNEVEN, tokenizer)
    with node_rows(store, parts, 0, 1, at_once) as rows:
        expected = tokens(UNEVEN, tokenizer)
        assert rows.take(range(len(expected))) == expected
        assert rows.take([58, 0, 30, 0]) == [expected[58], expected[0], expected[30], expected[0]]


def test_each_local_worker_copies_its_share_and_reads_all(store, tokenizer):
    parts = commit_stage(store, UNEVEN, tokenizer)
    copied = []

    def after(work):
        work()
        copied.append(sorted(path.name for path in folders()[0].iterdir()))

    with node_rows(store, parts, 0, 2, after), node_rows(store, parts, 1, 2, after) as rows:
        assert copied[0] == [f"examples-0000{number}.arrow" for number in (0, 2, 4)]
        assert len(copied[1]) == 5
        assert rows.take(range(59)) == tokens(UNEVEN, tokenizer)


def test_the_copy_is_kept_for_a_retry_and_gone_after_the_end(store, tokenizer):
    parts = commit_stage(store, UNEVEN, tokenizer)
    with pytest.raises(KeyboardInterrupt), node_rows(store, parts, 0, 1, at_once):
        raise KeyboardInterrupt
    before = {path: path.stat().st_mtime_ns for path in folders()[0].iterdir()}
    assert len(before) == 5
    with node_rows(store, parts, 0, 1, at_once) as rows:
        assert {path: path.stat().st_mtime_ns for path in folders()[0].iterdir()} == before
        assert rows.take([58]) == tokens(UNEVEN, tokenizer)[58:]
    assert folders() == []


def test_a_part_that_was_not_copied_is_copied_by_the_retry(store, tokenizer):
    parts = commit_stage(store, UNEVEN, tokenizer)
    with pytest.raises(KeyboardInterrupt), node_rows(store, parts, 0, 1, at_once):
        raise KeyboardInterrupt
    (folders()[0] / "examples-00003.arrow").unlink()
    with node_rows(store, parts, 0, 1, at_once) as rows:
        assert rows.take(range(59)) == tokens(UNEVEN, tokenizer)


def test_other_examples_replace_what_a_killed_training_left(store, tokenizer):
    parts = commit_stage(store, UNEVEN, tokenizer)
    with pytest.raises(KeyboardInterrupt), node_rows(store, parts, 0, 1, at_once):
        raise KeyboardInterrupt
    (left,) = folders()
    other = commit_stage(store, UNEVEN[::-1], tokenizer)
    with node_rows(store, other, 0, 1, at_once) as rows:
        assert left not in folders()
        assert rows.take(range(59)) == tokens(UNEVEN[::-1], tokenizer)


def test_what_another_training_on_this_node_reads_stays(store, tokenizer):
    parts = commit_stage(store, UNEVEN, tokenizer)
    elsewhere = store.child("elsewhere")
    others = commit_stage(elsewhere, UNEVEN[:1], tokenizer)
    with node_rows(store, parts, 0, 1, at_once) as rows:
        with node_rows(elsewhere, others, 0, 1, at_once):
            assert len(folders()) == 2
        assert len(folders()) == 1
        assert rows.take(range(59)) == tokens(UNEVEN, tokenizer)


def test_a_damaged_part_is_named(store, tokenizer):
    parts = commit_stage(store, UNEVEN, tokenizer)
    data = bytearray(store.read_bytes("examples-00003.parquet"))
    data[len(data) // 2] ^= 1
    store.write_bytes("examples-00003.parquet", bytes(data))
    with (
        pytest.raises(CorruptionError, match=r"examples-00003\.parquet does not have the hash"),
        node_rows(store, parts, 0, 1, at_once),
    ):
        pass


def test_few_parts_are_open_at_a_time(tokenizer):
    """Ten million questions make some 40,000 parts, and a process may have 1,024 files open."""
    (example,) = tokens([make_examples(1)], tokenizer)
    opened = []

    def open_part(number):
        opened.append(number)
        return [example]

    rows = NodeRows([1] * 3 * OPEN_PARTS, open_part)
    rows.take([*range(3 * OPEN_PARTS), 3 * OPEN_PARTS - 1, 0])
    assert opened == [*range(3 * OPEN_PARTS), 0]
