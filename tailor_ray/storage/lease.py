"""The lease: one driver per run folder, and a fencing number that rejects a loser's late writes.

A driver claims number n+1 by creating `lease-<n+1>` exclusively. Then it writes lease.json and renews its beat.
Another driver takes over only when the owner released it, is a dead process of the same machine, or let a whole
`ttl` pass without a beat. Clocks of different machines are never compared. A beat that fails is tried again until the
owner can no longer be sure of its lease; then it is told to stop. A damaged lease.json stands for what the highest
claim says. A live owner's next beat mends it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tailor_ray.errors import CorruptionError, LeaseLost, RunFolderError
from tailor_ray.storage.store import Store

log = logging.getLogger(__name__)

NAME = "lease.json"
TTL_S = 15.0
_held: set[tuple[str, int]] = set()  # by this process: one that took its own place by exec holds none


@dataclass(frozen=True)
class Fence:
    """Picklable guard: raises LeaseLost once lease.json carries another number."""

    uri: str
    number: int

    def __call__(self) -> None:
        state = _state(Store.open(self.uri))
        if state is None or state["number"] != self.number:
            now = "gone" if state is None else f"number {state['number']}, {state['owner']}"
            raise LeaseLost(f"the lease on {self.uri} (number {self.number}) was taken over (now {now}); stopping")


class Lease:
    """Use as a context manager: `with Lease.acquire(store) as lease: store = store.guarded(lease.fence)`."""

    def __init__(self, store: Store, number: int, ttl_s: float, on_lost: Callable[[str], None]) -> None:
        self.fence = Fence(store.uri, number)
        self._store = store
        self._number = number
        self._ttl_s = ttl_s
        self._beat = 0
        self._failed: Exception | None = None
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="tailor-lease", daemon=True) for work in (self._renew, self._look_on)
        ]

    @classmethod
    def acquire(cls, store: Store, ttl_s: float = TTL_S, on_lost: Callable[[str], None] = lambda _: None) -> Lease:
        """Become the folder's only driver; raises RunFolderError when another one is alive.

        `on_lost` is called, from a thread, when the lease could not be renewed in time: another driver may come.
        """
        state = _state(store)
        if state is not None and not _is_over(store, state, ttl_s):
            raise RunFolderError(
                f"the run folder {store.uri} is in use by {state['owner']['host']}, process {state['owner']['pid']}; "
                "wait for it or stop it, or give this run another name (--name)"
            )
        number = max([state["number"] if state else 0, *_claims(store)]) + 1
        if not store.create(_claim(number), json.dumps(_owner()).encode()):
            raise RunFolderError(f"the run folder {store.uri} was taken by another driver just now; wait for it")
        lease = cls(store, number, ttl_s, on_lost)
        lease._write(released=False)
        _held.add((store.uri, number))
        for old in _claims(store):
            if old < number:
                store.delete(_claim(old))
        for thread in lease._threads:
            thread.start()
        return lease

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others take over at once.

        Raises nothing, for it is called while an error is on its way.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join(self._ttl_s)
        _held.discard((self._store.uri, self._number))
        try:
            if self._is_ours():
                self._write(released=True)
        except Exception as error:  # noqa: BLE001 — whatever the storage raises
            log.warning("the lease on %s could not be released (%s): it runs out by itself", self._store.uri, error)

    def _is_ours(self) -> bool:
        state = _state(self._store)
        return state is not None and state["number"] == self._number

    def _renew(self) -> None:
        pause = self._ttl_s / 4
        while not self._stop.wait(pause):
            try:
                if not self._is_ours():
                    self._stop.set()
                    return  # the next guarded write raises LeaseLost
                self._write(released=False)
            except Exception as error:  # noqa: BLE001 — whatever the storage raises
                if self._failed is None:
                    log.warning("the lease on %s could not be renewed and is tried again: %s", self._store.uri, error)
                self._failed, pause = error, self._ttl_s / 16
            else:
                self._failed, pause = None, self._ttl_s / 4

    def _look_on(self) -> None:
        """Also over a beat that hangs. Looks are counted, not seconds: a stopped process that goes on is not late."""
        beat, late = self._beat, 0
        while not self._stop.wait(self._ttl_s / 8):
            beat, late = self._beat, 0 if self._beat != beat else late + 1
            if late >= 6:
                why = self._failed or "the storage does not answer"
                self._on_lost(
                    f"the lease on {self._store.uri} could not be renewed for {late * self._ttl_s / 8:.0f} s ({why}): "
                    "another driver may take the run over, so this one stops; what was committed is kept, and the "
                    "same command goes on once the storage answers"
                )
                return

    def _write(self, released: bool) -> None:
        beat = self._beat + 1
        state = {"number": self._number, "owner": _owner(), "beat": beat, "released": released}
        self._store.write_json(NAME, state)
        self._beat = beat


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
    if owner == _owner() and (store.uri, state["number"]) not in _held:
        return True  # this process's before it took its own place
    if owner["machine"] == _machine():
        return _started(owner["pid"]) != owner["started"]
    deadline = time.monotonic() + ttl_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, ttl_s / 4))
        latest = _state(store)
        if latest is None or latest["number"] != state["number"] or latest["beat"] != state["beat"]:
            return latest is not None and latest["released"]
    return True


def _claims(store: Store) -> list[int]:
    return [int(match[1]) for name in store.files() if (match := re.fullmatch(r"lease-(\d+)", name))]


def read_lease(store: Store) -> dict[str, Any] | None:
    """What lease.json says, None where there is none.

    Raises CorruptionError when it says nothing of a lease.
    """
    try:
        state = store.read_json(NAME)
    except FileNotFoundError:
        return None
    except ValueError:
        state = None
    if not _is_lease(state):
        raise CorruptionError(
            f"{store.uri}/{NAME} is damaged: it is empty, cut off or no lease; `tailor-ray run` writes it anew"
        )
    return cast(dict[str, Any], state)


def _is_lease(state: Any) -> bool:
    kinds = {"number": int, "owner": dict, "beat": int, "released": bool}
    return (
        isinstance(state, dict)
        and all(isinstance(state.get(name), kind) for name, kind in kinds.items())
        and {"host", "machine", "pid", "started"} <= state["owner"].keys()
    )


def _state(store: Store) -> dict[str, Any] | None:
    """The lease; of a damaged one what the highest claim says, whose owner may live."""
    try:
        return read_lease(store)
    except CorruptionError as error:
        claims = _claims(store)
        if not claims:
            return None
        log.warning("%s; its number is taken from %s", error, _claim(max(claims)))
        nobody = {"host": "?", "machine": "?", "pid": 0, "started": None}
        try:
            owner = store.read_json(_claim(max(claims)))
        except ValueError:
            owner = nobody
        known = isinstance(owner, dict) and nobody.keys() <= owner.keys()
        return {"number": max(claims), "owner": owner if known else nobody, "beat": -1, "released": False}


def _claim(number: int) -> str:
    return f"lease-{number:06d}"
