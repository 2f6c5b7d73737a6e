"""Batch mode over HTTP: files, expiry, limits, a driver that died, budgets, and one ledger with online mode."""

import json
import queue
import time

import pytest

from tailor_ray.config.teacher import MockConfig, PriceConfig
from tailor_ray.demo.mock_server import MockOptions, MockProcess
from tailor_ray.errors import StageError, Stopped, TeacherAccessError
from tailor_ray.storage import Store
from tailor_ray.teacher.batch import BatchPool
from tailor_ray.teacher.batch_api import BatchApi, read_output
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.outcomes import Usage
from tests.teacher.helpers import config, request

QUESTION = "<question>\nTom has {} apples. He buys 4 more. How many apples does Tom have?\n</question>"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    return Store.open(str(tmp_path / "teacher"))


class Driver:
    """A pool with its ledger; `die` leaves its batches at the server and its rows on the node, as SIGKILL does."""

    def __init__(self, store, url, **more):
        self.config = config(base_url=url, mode="batch", batch_poll_s=0.1, **more)
        self.store, self.events = store, queue.SimpleQueue()
        self.ledger = Ledger(store, keep_batches=True)
        self.pool = BatchPool(self.config, self.ledger, 1, self.events.put, self.events.put)

    def ask(self, count, flush=True):
        self.pool.submit([request(self.config, number=n, text=QUESTION.format(n)) for n in range(count)])
        if flush:
            self.pool.flush()

    def take(self, count):
        settled = []
        while len(settled) < count:
            got = self.events.get(timeout=60)
            if isinstance(got, BaseException):
                raise got
            settled += got
        return settled

    def die(self):
        self.pool.close()
        self.ledger.close(compact=False)

    def close(self):
        self.pool.close()
        self.ledger.close()


def lines(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_replies_expired_lines_and_errors(store, tmp_path):
    log = tmp_path / "log.jsonl"
    options = MockOptions(
        MockConfig(access_log=str(log)),
        faults=(("500", 0.1), ("content_filter", 0.1), ("empty", 0.1)),
        batch_expires=0.2,
    )
    with MockProcess(options) as mock:
        driver = Driver(store, mock.base_url, price=PriceConfig(input=2.0, output=4.0))
        driver.ask(40)
        settled = driver.take(40)
        driver.close()
    outcomes = {one.row.outcome for one in settled}
    assert outcomes == {"answered", "content_filter"}
    assert max(one.row.attempts for one in settled) == 2
    good = [one.row for one in settled if one.row.outcome == "answered" and one.row.attempts == 1]
    assert all(row.mode == "batch" and row.pending_usd == 0 for row in good)
    assert good[0].cost_usd == pytest.approx((good[0].input_tokens * 2 + good[0].output_tokens * 4) / 1e6 / 2)
    assert store.child("batches").files() == []


def test_a_driver_that_died_finds_its_batch_and_submits_nothing_twice(store, tmp_path):
    log = tmp_path / "log.jsonl"
    with MockProcess(MockOptions(MockConfig(access_log=str(log), latency_s=2.0))) as mock:
        driver = Driver(store, mock.base_url, budget_tokens=10**6)
        driver.ask(10)
        api = BatchApi(driver.config.teachers[0])
        batches = store.child("batches")
        while not any(batches.read_json(name)["batch"] for name in batches.files() if name.endswith(".json")):
            time.sleep(0.05)
        driver.die()
        (name,) = [name for name in store.child("batches").files() if name.endswith(".json")]
        record = store.child("batches").read_json(name)
        assert api.find(record["name"]) == record["batch"]
        store.child("batches").write_json(name, {**record, "batch": None})  # died before it wrote the id down
        second = Driver(store, mock.base_url, budget_tokens=10**6)
        spent = second.pool.budget.run_spent.tokens
        second.ask(10)
        settled = second.take(10)
        left = second.pool.budget
        second.close()
    assert len(lines(log)) == 10
    assert all(one.row.attempts == 1 for one in settled)
    assert spent == sum(one.request.worst_tokens for one in settled)  # counted while it was pending
    assert left.run_spent.tokens == sum(one.row.input_tokens + one.row.output_tokens for one in settled)
    assert left.reserved.tokens == 0


def test_files_are_split_by_count_and_size_and_wait_for_more(store):
    with MockProcess(MockOptions()) as mock:
        driver = Driver(store, mock.base_url, batch_max_requests=4)
        driver.ask(10, flush=False)
        assert len(driver.take(8)) == 8
        time.sleep(1.0)
        assert driver.events.empty()  # two wait for more, or for the end of the shards
        driver.pool.flush()
        assert len(driver.take(2)) == 2
        driver.close()


def test_a_held_pool_sends_no_full_file_before_all_shards_came_and_then_the_most_valuable_first(store):
    with MockProcess(MockOptions()) as mock:
        driver = Driver(store, mock.base_url, batch_max_requests=4)
        driver.pool.hold()
        asked = [
            request(driver.config, number=n, priority=(-n / 10, 0, f"q{n}"), text=QUESTION.format(n)) for n in range(10)
        ]
        driver.pool.submit(asked)
        time.sleep(1.0)
        assert driver.events.empty()
        driver.pool.flush()
        answered = [one.request.key for one in driver.take(10)]
        assert set(answered[:4]) == {one.key for one in asked[-4:]}
        driver.close()


def test_a_refused_file_a_wrong_key_and_a_used_up_budget_end_the_run(store):
    with MockProcess(MockOptions(batch_lines=5, key="right")) as mock:
        driver = Driver(store, mock.base_url)
        driver.ask(3)
        with pytest.raises(TeacherAccessError, match=r"teacher\.api_key_env"):
            driver.take(3)
        driver.die()
    with MockProcess(MockOptions(batch_lines=5)) as mock:
        driver = Driver(store.child("b"), mock.base_url)
        driver.ask(6)
        with pytest.raises(StageError, match="batch_max_requests"):
            driver.take(6)
        driver.close()
        driver = Driver(store.child("b"), mock.base_url, batch_max_requests=5)
        assert driver.pool.budget.run_spent.tokens == 0  # nothing of the refused file is billed
        driver.ask(6)
        assert {one.row.outcome for one in driver.take(6)} == {"answered"}
        driver.close()
        driver = Driver(store.child("c"), mock.base_url, budget_tokens=500)
        driver.ask(6)
        with pytest.raises(Stopped, match=r"teacher\.budget_tokens"):
            driver.take(6)
        assert driver.ledger.spent().tokens <= 500
        driver.close()


@pytest.mark.parametrize(("fault", "error"), [("quota", Stopped), ("401", TeacherAccessError)])
def test_a_line_that_ends_the_run_keeps_the_others_and_the_next_driver_asks_again(store, fault, error):
    with MockProcess(MockOptions(faults=((fault, 0.5),))) as mock:
        driver = Driver(store, mock.base_url)
        driver.ask(10)
        with pytest.raises(error):
            driver.take(10)
        kept = {row.key for row in driver.ledger.rows() if row.is_final}
        driver.close()
        assert 0 < len(kept) < 10
        driver = Driver(store, mock.base_url)
        driver.ask(10)
        settled = driver.take(10)
        driver.close()
    assert {one.row.outcome for one in settled} == {"answered"}
    assert {one.row.key for one in settled if one.from_ledger} == kept


def test_online_replies_serve_batch_mode(store):
    with MockProcess(MockOptions()) as mock:
        driver = Driver(store, mock.base_url)
        driver.ask(3)
        first = driver.take(3)
        driver.close()
        again = Driver(store, mock.base_url)
        again.ask(3)
        known = again.take(3)
        again.close()
    assert all(one.from_ledger for one in known)
    assert {one.row.key for one in known} == {one.row.key for one in first}


def test_odd_output_lines_are_left_out():
    data = (
        b'{"custom_id": "a", "response": {"status_code": 200, "body": {}}}\nnot json\n{"no": 1}\n[]\n{"custom_id": "b"'
    )
    assert {key: checked.code for key, checked in read_output(data).items()} == {"a": "no_choices"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": "batch_expired", "message": "too late"}, "expired"),
        ({"code": "rate_limit_exceeded", "message": "slow down"}, "http_429"),
        ({"code": "server_error", "message": "oops"}, "http_5xx"),
        ({"code": "insufficient_quota", "message": "pay"}, "insufficient_quota"),
    ],
)
def test_an_error_of_a_line_means_what_it_does_elsewhere_and_is_not_billed(error, code):
    line = json.dumps({"custom_id": "a", "response": None, "error": error}).encode()
    outcome = read_output(line)["a"]
    assert outcome.code == code
    assert outcome.usage == Usage() or not outcome.rule.may_be_billed
