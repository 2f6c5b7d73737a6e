"""What the teacher pool costs and keeps, against a bare AsyncOpenAI loop on the same loopback server.

    python jobs/benchmarks/teacher.py [--only speed in_flight kill limit find] [--requests 4000] [--repeats 3]

Prints a table, and as its last line one JSON object: ideal_share_at_1s, wall_ratio_to_bare_client,
cpu_ratio_to_bare_client, limit_used, http_429, limit_exceeded, paid_twice, and what they were computed from.
Start-up is left out for both: the clock starts when the first SKIPPED replies of a run are in, and stops at its last
one. Client CPU is that of the driver and its actors, and of the bare client's process. The server is the mock
teacher in answers mode, in a process of its own. Curator and distilabel stand beside it where they install.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
from teacher_rivals import ask, rivals

from tailor_ray.config.teacher import EndpointConfig, MockConfig, TeacherConfig
from tailor_ray.demo.mock_server import MockOptions, MockProcess
from tailor_ray.storage import Store
from tailor_ray.teacher.client import TeacherRequest, make_request
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.pool import TeacherPool

IN_FLIGHT = 256
SKIPPED = 2 * IN_FLIGHT  # replies before the clock starts
LIMIT = 6000.0
UNLIMITED = 1e7  # a limit that is known and never reached: the rate need not be found
PARTS = ["speed", "in_flight", "kill", "limit", "find"]


def messages(number: int) -> list[dict[str, str]]:
    text = f"Number {number}: " + "a farmer has twelve rows of apple trees and sells what grows on them. " * 8
    return [
        {"role": "system", "content": "You teach."},
        {"role": "user", "content": f"<question>\n{text}\n</question>"},
    ]


def requests(config: TeacherConfig, first: int, count: int) -> list[TeacherRequest]:
    one = config.teachers[0]
    return [
        make_request(one, messages(n), None, sample=0, question_id=str(n), round_=1, priority=(0.0, 0, f"{n:09d}"))
        for n in range(first, first + count)
    ]


class Client:
    """Our pool with its ledger, warm, and a way to wait for settled requests."""

    def __init__(self, config: TeacherConfig, folder: Path) -> None:
        self.config = config
        self.settled: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.ledger = Ledger(Store.open(str(folder)))
        self.pool = TeacherPool(config, self.ledger, 1, self.settled.put, self.settled.put)

    def run(self, wanted: Sequence[TeacherRequest], at: int = 0, then: Callable[[], None] = lambda: None) -> float:
        """Seconds until all of them are settled, from when `at` of them are; `then` is called at that moment."""
        self.pool.submit(wanted)
        start, left = 0.0, len(wanted)
        while left:
            if not start and len(wanted) - left >= at:
                start = time.monotonic()
                then()
            got = self.settled.get()
            if isinstance(got, BaseException):
                raise got
            assert all(one.row.outcome == "answered" for one in got), Counter(one.row.outcome for one in got)
            left -= len(got)
        return time.monotonic() - start

    def close(self) -> None:
        self.pool.close()
        self.ledger.close()


def processes(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command and name in command[0]:
            found.append(process)
    return found


def cpu_seconds(own: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in own)


@contextmanager
def server(folder: Path, window_s: float = 60.0, **settings: Any) -> Iterator[tuple[str, Path]]:
    answers, log = folder / "answers.jsonl", folder / f"access-{time.monotonic_ns()}.jsonl"
    answers.write_text(json.dumps({"question": "none", "answer": "1", "rationale": None}) + "\n")
    config = MockConfig(answers=str(answers), access_log=str(log), **settings)
    with MockProcess(MockOptions(config, limit_window_s=window_s)) as mock:
        yield mock.base_url, log


def read_log(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def ours(url: str, folder: Path, count: int, in_flight: int = IN_FLIGHT, **settings: Any) -> dict[str, float]:
    config = TeacherConfig(
        teachers=(EndpointConfig(base_url=url, max_in_flight=in_flight, requests_per_minute=UNLIMITED),), **settings
    )
    client = Client(config, folder / f"ledger-{time.monotonic_ns()}")
    own: list[psutil.Process] = []
    before = 0.0

    def begin() -> None:
        nonlocal before
        own.extend([psutil.Process(), *processes("ray::TeacherActor")])
        before = cpu_seconds(own)

    seconds = client.run(requests(config, 0, count + 2 * in_flight), 2 * in_flight, begin)
    cpu = cpu_seconds(own) - before
    client.close()
    return {"rate": count / seconds, "cpu_ms": cpu / count * 1000}


def bare(url: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--bare", url, "--requests", str(count)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def bare_main(url: str, count: int) -> dict[str, float]:
    """The loop that one writes by hand: one client, one semaphore, no ledger, no limits, no retries."""
    import httpx2
    from openai import AsyncOpenAI, DefaultAioHttpClient

    limits = httpx2.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
    client = AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, http_client=DefaultAioHttpClient(limits=limits, trust_env=False)
    )
    slots = asyncio.Semaphore(IN_FLIGHT)

    own = [psutil.Process()]
    done, start, before = 0, 0.0, 0.0

    async def one(number: int) -> None:
        nonlocal done, start, before
        async with slots:
            reply = await client.chat.completions.create(
                model="mock-teacher",
                messages=messages(number),  # type: ignore[arg-type]
                temperature=0.7,
                max_tokens=512,
            )
            assert reply.choices[0].message.content
        done += 1
        if done == SKIPPED:
            start, before = time.monotonic(), cpu_seconds(own)

    await asyncio.gather(*(one(n) for n in range(SKIPPED + count)))
    result = {"rate": count / (time.monotonic() - start), "cpu_ms": (cpu_seconds(own) - before) / count * 1000}
    await client.close()
    return result


def speed(folder: Path, count: int, repeats: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for latency in (1.0, 0.2):
        rows: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
        with server(folder, latency_s=latency) as (url, _):
            for _ in range(repeats):  # interleaved, so that both meet the same neighbours
                rows["bare"].append(bare(url, count))
                rows["ours"].append(ours(url, folder, count))
        for name, runs in rows.items():
            show_runs(f"{name} at {latency} s", runs)
        rate = {name: statistics.median(run["rate"] for run in runs) for name, runs in rows.items()}
        out[f"requests_per_s_at_{latency}s"] = {name: round(value) for name, value in rate.items()}
        if latency == 1.0:
            out["ideal_share_at_1s"] = round(rate["ours"] / IN_FLIGHT, 4)
            out["bare_ideal_share_at_1s"] = round(rate["bare"] / IN_FLIGHT, 4)
        else:
            cpu = {name: statistics.median(run["cpu_ms"] for run in runs) for name, runs in rows.items()}
            out["wall_ratio_to_bare_client"] = round(rate["bare"] / rate["ours"], 3)
            out["cpu_ratio_to_bare_client"] = round(cpu["ours"] / cpu["bare"], 3)
    out["rivals"] = beside_rivals(folder, count // 2)
    return out


def in_flight(folder: Path) -> dict[str, Any]:
    """More than 2,000 calls in flight, with 1 and with 4 actors, as the server saw them."""
    wanted, latency = 2048, 5.0
    out: dict[str, Any] = {"most_in_flight": wanted, "ideal_share_at_2048": 1.0}
    for actors in (1, 4):
        with server(folder, latency_s=latency) as (url, log):
            run = ours(url, folder, 2 * wanted, wanted, actors=actors)
            events = sorted(
                (at, step) for line in read_log(log) for at, step in ((line["time"], 1), (line["ended"], -1))
            )
            most = max(accumulate(step for _, step in events))
        share = run["rate"] * latency / wanted
        show(f"{wanted} in flight, {actors} actors", f"{run['rate']:.0f} requests/s, {share:.1%} of the ideal",
             f"at most {most} in flight at the server")  # fmt: skip
        out["most_in_flight"] = min(out["most_in_flight"], most)
        out["ideal_share_at_2048"] = min(out["ideal_share_at_2048"], round(share, 4))
    return out


def limit(folder: Path, seconds: float) -> dict[str, Any]:
    """A limit of 6,000 a minute that is known, with 1 and with 4 actors."""
    worst: dict[str, Any] = {"limit_used": 1.0, "http_429": 0, "limit_exceeded": 0}
    for actors in (1, 4):
        with server(folder, latency_s=0.2, requests_per_minute=LIMIT) as (url, log):
            config = TeacherConfig(
                teachers=(EndpointConfig(base_url=url, max_in_flight=IN_FLIGHT, requests_per_minute=LIMIT),),
                actors=actors,
            )
            client = Client(config, folder / f"ledger-{actors}")
            client.run(requests(config, 0, int(LIMIT / 60 * seconds)))
            client.close()
            used, refused, most = limit_figures(read_log(log), skip=10.0)
        show(f"limit, {actors} actors", f"{used:.2%} used after 10 s", f"{refused} refused, at most {most} in a minute")
        worst["limit_used"] = min(worst["limit_used"], round(used, 4))
        worst["http_429"] += refused
        worst["limit_exceeded"] += max(0, most - int(LIMIT))
    return worst


def find(folder: Path, seconds: float) -> dict[str, Any]:
    """The same limit, not told: counted over a second (as a token bucket does), and over a whole minute."""
    out = {}
    for window in (1.0, 60.0):
        with server(folder, window, latency_s=0.2, requests_per_minute=LIMIT) as (url, log):
            config = TeacherConfig(teachers=(EndpointConfig(base_url=url, max_in_flight=IN_FLIGHT),), max_attempts=100)
            client = Client(config, folder / f"ledger-found-{window}")
            client.run(requests(config, 0, int(LIMIT / 60 * seconds)))
            client.close()
            lines = read_log(log)
        used, refused, _ = limit_figures(lines, skip=0.0)
        name = f"found_{window:.0f}s_window"
        show(f"limit found, {window:.0f} s window", f"{used:.2%} used", f"{refused / len(lines):.2%} refused")
        out[name] = {"limit_used": round(used, 4), "share_429": round(refused / len(lines), 4)}
    return out


def limit_figures(lines: list[dict[str, Any]], skip: float) -> tuple[float, int, int]:
    """Share of the limit used from `skip` seconds after the first call on, refusals, most calls in a sliding minute."""
    times = sorted(line["time"] for line in lines if line["status"] == 200)
    late = [t for t in times if t >= times[0] + skip]
    used = (len(late) - 1) / (late[-1] - late[0]) / (LIMIT / 60)
    most = max(bisect_left(times, t + 60.0) - i for i, t in enumerate(times))
    return used, sum(line["status"] == 429 for line in lines), most


def kill(folder: Path, count: int) -> dict[str, Any]:
    """SIGKILL half-way, to one of two actors and to a driver: what was answered twice.

    `paid_twice` is what goes beyond the calls in flight at once: replies not yet in the ledger, what was sent later.
    """
    killed, logs = {}, {}
    with server(folder, latency_s=0.2) as (url, log):
        config = TeacherConfig(
            teachers=(EndpointConfig(base_url=url, max_in_flight=IN_FLIGHT, requests_per_minute=UNLIMITED),), actors=2
        )
        client = Client(config, folder / "ledger-actor")

        def strike() -> None:
            processes("ray::TeacherActor")[0].kill()
            killed["an actor"] = time.time()

        client.run(requests(config, 0, count), count // 2, strike)
        assert len(client.ledger.rows()) == count
        client.close()
        logs["an actor"] = read_log(log)
    with server(folder, latency_s=0.2) as (url, log):
        command = [sys.executable, __file__, "--driver", url, "--folder", str(folder), "--requests", str(count)]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not log.exists() or log.read_bytes().count(b"\n") < count // 2:
            assert driver.poll() is None, "the driver ended by itself"
            time.sleep(0.05)
        driver.kill()
        killed["the driver"] = time.time()
        driver.wait()
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        assert json.loads(done.stdout.splitlines()[-1]) == {"rows": count}
        logs["the driver"] = read_log(log)
    most = {"an actor": IN_FLIGHT // 2, "the driver": IN_FLIGHT}
    twice, over = {}, 0
    for who, lines in logs.items():
        first = answered_twice(lines)
        late = sum(sent > killed[who] for sent in first)
        twice[who] = len(first)
        over += max(0, len(first) - most[who])
        show(f"{who} killed half-way", f"{count} rows for {count} requests",
             f"{len(first)} answered twice, {most[who]} may be in flight, {late} sent after the kill")  # fmt: skip
    return {"paid_twice": over, "answered_twice": twice}


def answered_twice(lines: Sequence[dict[str, Any]]) -> list[float]:
    """When the requests that were answered more than once, heard or not, were first sent."""
    sent: dict[str, list[float]] = {}
    for line in lines:
        if line["status"] in (200, 499):
            sent.setdefault(line["request"], []).append(line["time"])
    return [min(times) for times in sent.values() if len(times) > 1]


def drive(url: str, folder: Path, count: int) -> None:
    """What `kill` kills: a driver of its own, which goes on with its ledger when it is started again."""
    config = TeacherConfig(
        teachers=(EndpointConfig(base_url=url, max_in_flight=IN_FLIGHT, requests_per_minute=UNLIMITED),)
    )
    client = Client(config, folder / "ledger-driver")
    client.run(requests(config, 0, count))
    print(json.dumps({"rows": len(client.ledger.rows())}))
    client.close()


def beside_rivals(folder: Path, count: int) -> dict[str, Any]:
    """Curator and distilabel on servers of their own, by the server's log; their CPU is that of the whole process."""
    out: dict[str, Any] = {}
    for name, python in rivals(folder).items():
        for latency in (1.0, 0.2):
            with server(folder, latency_s=latency) as (url, log):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                try:
                    ask(python, name, url, SKIPPED + count, folder)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    show(name, f"left out: {error}"[:200])
                    break
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                ended = sorted(line["ended"] for line in read_log(log) if line["status"] == 200)
            rate = count / (ended[-1] - ended[-1 - count])
            cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / len(ended) * 1000
            show_runs(f"{name} at {latency} s", [{"rate": rate, "cpu_ms": cpu}])
            out.setdefault(name, {})[f"requests_per_s_at_{latency}s"] = round(rate)
    return out


def show_runs(name: str, runs: Sequence[dict[str, float]]) -> None:
    rates, cpus = (sorted(run[what] for run in runs) for what in ("rate", "cpu_ms"))
    show(name, f"{statistics.median(rates):.0f} requests/s ({rates[0]:.0f}-{rates[-1]:.0f})",
         f"{statistics.median(cpus):.2f} ms CPU a request ({cpus[0]:.2f}-{cpus[-1]:.2f})")  # fmt: skip


def show(*cells: str) -> None:
    print(f"{cells[0]:<28}" + "".join(f"{cell:<46}" for cell in cells[1:]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=90.0, help="length of each run at a limit")
    for name in ("--bare", "--driver", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(asyncio.run(bare_main(arguments.bare, arguments.requests))))
        return
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=300_000_000, include_dashboard=False, log_to_driver=False)
    if arguments.driver:
        drive(arguments.driver, Path(arguments.folder), arguments.requests)
        return
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-teacher-") as name:
        os.environ["TAILOR_RAY_CACHE"] = f"{name}/cache"
        folder, count, seconds = Path(name), arguments.requests, arguments.seconds
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "speed": lambda: speed(folder, count, arguments.repeats),
            "in_flight": lambda: in_flight(folder),
            "kill": lambda: kill(folder, count),
            "limit": lambda: limit(folder, seconds),
            "find": lambda: find(folder, seconds),
        }
        for part in arguments.only:
            out |= parts[part]()
    ray.shutdown()
    print(json.dumps(out))


if __name__ == "__main__":
    main()
