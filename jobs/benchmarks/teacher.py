"""What the teacher pool costs and keeps, against a bare AsyncOpenAI loop on the same loopback server.

    python jobs/benchmarks/teacher.py [--only speed|limit|find|kill] [--requests 4000] [--repeats 3]

Prints a table, and as its last line one JSON object: ideal_share_at_1s, wall_ratio_to_bare_client,
cpu_ratio_to_bare_client, limit_used, http_429, limit_exceeded, paid_twice, and what they were computed from.
Start-up (processes, imports, connections) is left out for both; client CPU is that of the driver and its actors, and
of the bare client's process. The server is the sandbox teacher in answers mode, in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tailor_ray.config.teacher import SandboxConfig, TeacherConfig
from tailor_ray.storage import Store
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.pool import TeacherPool
from tailor_ray.teacher.request import TeacherRequest, make_request
from tailor_ray.teacher.sandbox import SandboxOptions
from tailor_ray.teacher.sandbox_process import SandboxProcess

IN_FLIGHT = 256
LIMIT = 6000.0
UNLIMITED = 1e7  # a limit that is known and never reached: the rate need not be found


def messages(number: int) -> list[dict[str, str]]:
    text = f"Number {number}: " + "a farmer has twelve rows of apple trees and sells what grows on them. " * 8
    return [
        {"role": "system", "content": "You teach."},
        {"role": "user", "content": f"<question>\n{text}\n</question>"},
    ]


def requests(config: TeacherConfig, first: int, count: int) -> list[TeacherRequest]:
    return [
        make_request(config, messages(n), None, sample=0, question_id=str(n), round_=1, priority=(0.0, 0, f"{n:09d}"))
        for n in range(first, first + count)
    ]


class Client:
    """Our pool with its ledger, warm, and a way to wait for settled requests."""

    def __init__(self, config: TeacherConfig, folder: Path) -> None:
        self.config = config
        self.settled: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.ledger = Ledger(Store.open(str(folder)))
        self.pool = TeacherPool(config, self.ledger, 1, self.settled.put, self.settled.put)

    def run(self, wanted: Sequence[TeacherRequest], halfway: Any = None) -> float:
        """Seconds until all of them are settled; `halfway` is called once half of them are."""
        start, left = time.monotonic(), len(wanted)
        self.pool.submit(wanted)
        while left:
            got = self.settled.get()
            if isinstance(got, BaseException):
                raise got
            assert all(one.row.outcome == "answered" for one in got), Counter(one.row.outcome for one in got)
            left -= len(got)
            if halfway is not None and left <= len(wanted) // 2:
                halfway()
                halfway = None
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
def server(folder: Path, **settings: Any) -> Iterator[tuple[str, Path]]:
    answers, log = folder / "answers.jsonl", folder / f"access-{time.monotonic_ns()}.jsonl"
    answers.write_text(json.dumps({"question": "none", "answer": "1", "rationale": None}) + "\n")
    config = SandboxConfig(answers=str(answers), access_log=str(log), **settings)
    with SandboxProcess(SandboxOptions(config)) as sandbox:
        yield sandbox.base_url, log


def read_log(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def ours(url: str, folder: Path, count: int, **settings: Any) -> dict[str, float]:
    config = TeacherConfig(base_url=url, max_in_flight=IN_FLIGHT, requests_per_minute=UNLIMITED, **settings)
    client = Client(config, folder / f"ledger-{time.monotonic_ns()}")
    client.run(requests(config, 10**6, 2 * IN_FLIGHT))
    own = [psutil.Process(), *processes("ray::TeacherActor")]
    before = cpu_seconds(own)
    seconds = client.run(requests(config, 0, count))
    cpu = cpu_seconds(own) - before
    client.close()
    return {"seconds": seconds, "cpu_ms": cpu / count * 1000}


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

    async def one(number: int) -> None:
        async with slots:
            reply = await client.chat.completions.create(
                model="sandbox-teacher",
                messages=messages(number),  # type: ignore[arg-type]
                temperature=0.7,
                max_tokens=512,
            )
            assert reply.choices[0].message.content

    await asyncio.gather(*(one(n) for n in range(2 * IN_FLIGHT)))
    own = [psutil.Process()]
    before, start = cpu_seconds(own), time.monotonic()
    await asyncio.gather(*(one(n) for n in range(count)))
    result = {"seconds": time.monotonic() - start, "cpu_ms": (cpu_seconds(own) - before) / count * 1000}
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
            rates = sorted(count / run["seconds"] for run in runs)
            cpus = sorted(run["cpu_ms"] for run in runs)
            pace = f"{statistics.median(rates):.0f} requests/s ({rates[0]:.0f}-{rates[-1]:.0f})"
            show(f"{name} at {latency} s", pace,
                 f"{statistics.median(cpus):.2f} ms CPU a request ({cpus[0]:.2f}-{cpus[-1]:.2f})")  # fmt: skip
        middle = {name: statistics.median(run["seconds"] for run in runs) for name, runs in rows.items()}
        if latency == 1.0:
            out["ideal_share_at_1s"] = round(count / middle["ours"] / IN_FLIGHT, 4)
            out["bare_ideal_share_at_1s"] = round(count / middle["bare"] / IN_FLIGHT, 4)
        else:
            cpu = {name: statistics.median(run["cpu_ms"] for run in runs) for name, runs in rows.items()}
            out["wall_ratio_to_bare_client"] = round(middle["ours"] / middle["bare"], 3)
            out["cpu_ratio_to_bare_client"] = round(cpu["ours"] / cpu["bare"], 3)
            out["requests_per_s_at_0.2s"] = {name: round(count / value) for name, value in middle.items()}
    return out


def limit(folder: Path, seconds: float) -> dict[str, Any]:
    """A limit of 6,000 a minute that is known, with 1 and with 4 actors."""
    worst: dict[str, Any] = {"limit_used": 1.0, "http_429": 0, "limit_exceeded": 0}
    for actors in (1, 4):
        with server(folder, latency_s=0.2, requests_per_minute=LIMIT) as (url, log):
            config = TeacherConfig(base_url=url, max_in_flight=IN_FLIGHT, requests_per_minute=LIMIT, actors=actors)
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
        with server_with_window(folder, window) as (url, log):
            config = TeacherConfig(base_url=url, max_in_flight=IN_FLIGHT, max_attempts=100)
            client = Client(config, folder / f"ledger-found-{window}")
            client.run(requests(config, 0, int(LIMIT / 60 * seconds)))
            client.close()
            lines = read_log(log)
        used, refused, _ = limit_figures(lines, skip=0.0)
        name = f"found_{window:.0f}s_window"
        show(f"limit found, {window:.0f} s window", f"{used:.2%} used", f"{refused / len(lines):.2%} refused")
        out[name] = {"limit_used": round(used, 4), "share_429": round(refused / len(lines), 4)}
    return out


@contextmanager
def server_with_window(folder: Path, window: float) -> Iterator[tuple[str, Path]]:
    log = folder / f"access-{time.monotonic_ns()}.jsonl"
    answers = folder / "answers.jsonl"
    answers.write_text(json.dumps({"question": "none", "answer": "1", "rationale": None}) + "\n")
    config = SandboxConfig(answers=str(answers), access_log=str(log), latency_s=0.2, requests_per_minute=LIMIT)
    with SandboxProcess(SandboxOptions(config, limit_window_s=window)) as sandbox:
        yield sandbox.base_url, log


def limit_figures(lines: list[dict[str, Any]], skip: float) -> tuple[float, int, int]:
    """Share of the limit used from `skip` seconds after the first call on, refusals, most calls in a sliding minute."""
    times = sorted(line["time"] for line in lines if line["status"] == 200)
    late = [t for t in times if t >= times[0] + skip]
    used = (len(late) - 1) / (late[-1] - late[0]) / (LIMIT / 60)
    most = max(bisect_left(times, t + 60.0) - i for i, t in enumerate(times))
    return used, sum(line["status"] == 429 for line in lines), most


def kill(folder: Path, count: int) -> dict[str, Any]:
    """SIGKILL to one of two actors half-way: what was answered twice, beyond what was in flight then."""
    in_flight = 0

    def strike() -> None:
        nonlocal in_flight
        in_flight = IN_FLIGHT // 2
        processes("ray::TeacherActor")[0].kill()

    with server(folder, latency_s=0.2) as (url, log):
        config = TeacherConfig(base_url=url, max_in_flight=IN_FLIGHT, requests_per_minute=UNLIMITED, actors=2)
        client = Client(config, folder / "ledger-kill")
        client.run(requests(config, 0, count), halfway=strike)
        rows = len(client.ledger.rows())
        client.close()
        calls = Counter(line["request"] for line in read_log(log) if line["status"] == 200)
    twice = sum(number - 1 for number in calls.values())
    show(
        "actor killed half-way", f"{rows} rows for {count} requests", f"{twice} answered twice of {in_flight} in flight"
    )
    assert rows == count
    return {"paid_twice": max(0, twice - in_flight), "answered_twice_in_flight": twice}


def show(*cells: str) -> None:
    print(f"{cells[0]:<28}" + "".join(f"{cell:<46}" for cell in cells[1:]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("speed", "limit", "find", "kill"))
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=90.0, help="length of each run at a limit")
    parser.add_argument("--bare", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(asyncio.run(bare_main(arguments.bare, arguments.requests))))
        return
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=300_000_000, include_dashboard=False, log_to_driver=False)
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-teacher-") as name:
        os.environ["TAILOR_RAY_CACHE"] = f"{name}/cache"
        folder = Path(name)
        if arguments.only in (None, "speed"):
            out |= speed(folder, arguments.requests, arguments.repeats)
        if arguments.only in (None, "kill"):
            out |= kill(folder, arguments.requests)
        if arguments.only in (None, "limit"):
            out |= limit(folder, arguments.seconds)
        if arguments.only in (None, "find"):
            out |= find(folder, arguments.seconds)
    ray.shutdown()
    print(json.dumps(out))


if __name__ == "__main__":
    main()
