"""The lease: one driver a run folder, and a fencing number that rejects a loser's late writes.

A driver claims number n+1 by creating `lease-<n+1>` exclusively, then writes lease.json and renews its beat.
Another driver takes over only when the owner released it, is a dead process of the same machine, or let a whole
`ttl` pass without a beat; clocks of different machines are never compared.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor_ray.errors import LeaseLost, RunFolderError
from tailor_ray.storage.store import Store

NAME = "lease.json"
TTL_S = 15.0


@dataclass(frozen=True)
class Fence:
    """Picklable guard: raises LeaseLost once lease.json carries another number."""

    uri: str
    number: int

    def __call__(self) -> None:
        state = _read(Store.open(self.uri))
        if state is None or state["number"] != self.number:
            now = "gone" if state is None else f"number {state['number']}, {state['owner']}"
            raise LeaseLost(f"the lease on {self.uri} (number {self.number}) was taken over (now {now}); stopping")


class Lease:
    """Use as a context manager: `with Lease.acquire(store) as lease: store = store.guarded(lease.fence)`."""

    def __init__(self, store: Store, number: int, ttl_s: float) -> None:
        self.fence = Fence(store.uri, number)
        self._store = store
        self._number = number
        self._ttl_s = ttl_s
        self._beat = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="tailor-lease", daemon=True)

    @classmethod
    def acquire(cls, store: Store, ttl_s: float = TTL_S) -> Lease:
        """Become the folder's only driver; raises RunFolderError when another one is alive."""
        state = _read(store)
        if state is not None and not _is_over(store, state, ttl_s):
            raise RunFolderError(
                f"the run folder {store.uri} is in use by {state['owner']['host']}, process {state['owner']['pid']}; "
                "wait for it or stop it, or give this run another name (--name)"
            )
        number = max([state["number"] if state else 0, *_claims(store)]) + 1
        if not store.create(f"lease-{number:06d}", json.dumps(_owner()).encode()):
            raise RunFolderError(f"the run folder {store.uri} was taken by another driver just now; wait for it")
        lease = cls(store, number, ttl_s)
        lease._write(released=False)
        for old in _claims(store):
            if old < number:
                store.delete(f"lease-{old:06d}")
        lease._thread.start()
        return lease

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        state = _read(self._store)
        if state is not None and state["number"] == self._number:
            self._write(released=True)

    def _renew(self) -> None:
        while not self._stop.wait(self._ttl_s / 4):
            state = _read(self._store)
            if state is None or state["number"] != self._number:
                return  # the next guarded write raises LeaseLost
            self._write(released=False)

    def _write(self, released: bool) -> None:
        self._beat += 1
        state = {"number": self._number, "owner": _owner(), "beat": self._beat, "released": released}
        self._store.write_json(NAME, state)


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """Names this boot of this machine and its process namespace: only there do process ids compare."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if not boot.exists() or not namespace.exists():
        return socket.gethostname()
    return f"{boot.read_text().strip()} {namespace.readlink()}"


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks, which tells a reused process id apart; None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _is_over(store: Store, state: dict[str, Any], ttl_s: float) -> bool:
    owner = state["owner"]
    if state["released"]:
        return True
    if owner["machine"] == _machine():
        return _started(owner["pid"]) != owner["started"]
    deadline = time.monotonic() + ttl_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, ttl_s / 4))
        latest = _read(store)
        if latest is None or latest["number"] != state["number"] or latest["beat"] != state["beat"]:
            return latest is not None and latest["released"]
    return True


def _claims(store: Store) -> list[int]:
    return [int(match[1]) for name in store.files() if (match := re.fullmatch(r"lease-(\d+)", name))]


def _read(store: Store) -> dict[str, Any] | None:
    try:
        return store.read_json(NAME)
    except FileNotFoundError:
        return None
