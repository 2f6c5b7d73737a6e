"""The feed hands shards on in order, holds the producer back, and lets neither side wait for a dead one."""

import threading
import time

import pytest

from tailor_ray.errors import Stopped
from tailor_ray.rounds.feed import Abandoned, Feed
from tailor_ray.storage import FileEntry, Part

PARTS = [Part(index, FileEntry(f"rows-{index}", "", 0), {}) for index in range(6)]


def test_shards_arrive_in_order_and_the_result_comes_back():
    feed = Feed()
    with feed.consume(lambda shards: [part.index for part in shards]) as teaching:
        for part in PARTS:
            feed.put(part)
        feed.close()
        assert teaching.result() == [0, 1, 2, 3, 4, 5]


def test_a_slow_consumer_holds_the_producer_back():
    feed, go = Feed(depth=2), threading.Event()

    def slow(shards):
        go.wait(10)
        return sum(1 for _ in shards)

    with feed.consume(slow) as teaching:
        put = []

        def produce():
            for part in PARTS:
                feed.put(part)
                put.append(part.index)
            feed.close()

        producer = threading.Thread(target=produce)
        producer.start()
        time.sleep(0.3)
        assert len(put) == 2
        go.set()
        assert teaching.result() == 6
        producer.join()


def test_the_consumers_error_reaches_a_producer_that_is_blocked():
    feed = Feed(depth=1)

    def broke(shards):
        next(shards)
        raise Stopped("the budget is used up")

    def produce():
        with feed.consume(broke):
            for part in PARTS:
                feed.put(part)
            pytest.fail("the producer never heard of it")

    with pytest.raises(Stopped, match="budget"):
        produce()


def test_the_consumers_error_is_raised_when_its_result_is_asked_for():
    feed = Feed()
    with feed.consume(lambda shards: 1 / sum(0 for _ in shards)) as teaching:
        feed.close()
        with pytest.raises(ZeroDivisionError):
            teaching.result()


def test_the_producers_error_ends_a_consumer_that_waits():
    feed, seen = Feed(), []

    def wait(shards):
        try:
            for part in shards:
                seen.append(part)
        except Abandoned:
            seen.append("abandoned")
            raise

    teaching = feed.consume(wait)

    def produce():
        with teaching:
            feed.put(PARTS[0])
            raise ValueError("engine died")

    with pytest.raises(ValueError, match="engine"):
        produce()
    assert not teaching.is_alive()
    assert seen[-1] == "abandoned"
