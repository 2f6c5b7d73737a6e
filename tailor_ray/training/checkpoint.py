"""Checkpoints of a round's training: written while training goes on, found, verified, kept few.

In: the stage's store, and each worker's snapshot. Out: `checkpoints/step-00000120/` with one safetensors file per
worker. Written last is the sealed record `checkpoints/step-00000120.json` with their hashes.

Always holds. A checkpoint without a valid record is not resumed from. Nor is one with a file that does not match it, or
of another job (fingerprint). The one before it is. Any number of workers can go on from it, for whole tensors lie in
it. Each worker writes and hashes its own file in a thread. Worker 0's thread waits for the others' and writes the
record.
"""

from __future__ import annotations

import io
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from torch import Tensor

from tailor_ray.errors import CorruptionError, StageError
from tailor_ray.storage import FileEntry, Store
from tailor_ray.storage.commits import seal, unseal
from tailor_ray.training.export import read_tensors, write_tensors
from tailor_ray.training.steps import History

log = logging.getLogger(__name__)

HISTORY = "history.parquet"
SHARE = 0.05  # of the time, at most, that training waits for checkpoints
KEPT = 2  # so that a torn one leaves the one before
EVERY_S = 60.0  # between two at least
WAIT_S, POLL_S = 1800.0, 0.2  # for the other workers' files


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One verified checkpoint: `step` steps are done, `history` are their figures, `figures` the optimizer's."""

    name: str
    step: int
    history: History
    figures: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one job below `<stage>/checkpoints`; one worker's view of them."""

    def __init__(
        self, stage: Store, fingerprint: str, keep: int = KEPT, rank: int = 0, workers: int = 1, attempt: str = ""
    ) -> None:
        """`attempt` tells this try's files from those of one that was cut off; all workers have the same."""
        self.store = stage.child("checkpoints")
        self.fingerprint, self.keep = fingerprint, keep
        self.rank, self.workers, self.attempt = rank, workers, attempt
        self.write_seconds = 0.0  # of the last one that was written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tailor-ray-checkpoint")
        self._writing: Future[None] | None = None

    def latest(self) -> Checkpoint | None:
        """The last checkpoint that is whole; damaged ones are passed over and logged. Returns None without any."""
        for record in reversed(self._records()):
            try:
                return self._verified(record)
            except CorruptionError as error:
                log.warning("%s; training goes on from the checkpoint before it", error)
        return None

    def _records(self) -> list[str]:
        return [name for name in self.store.files() if re.fullmatch(r"step-\d{8}\.json", name)]

    def _verified(self, record: str) -> Checkpoint:
        data = unseal(self.store.read_bytes(record), f"{self.store.uri}/{record}")
        if data["fingerprint"] != self.fingerprint:
            raise CorruptionError(f"{self.store.uri}/{record} belongs to a job with other settings or data")
        for entry in data["files"]:
            path = entry["path"]
            if not self.store.exists(path) or self.store.hash_file(path) != entry["sha256"]:
                raise CorruptionError(f"{self.store.uri}/{path} does not have the hash that {record} records")
        name = record.removesuffix(".json")
        table = pq.read_table(io.BytesIO(self.store.read_bytes(f"{name}/{HISTORY}")))
        return Checkpoint(name, data["step"], History(table), data.get("figures", {}))

    def tensors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Yields all workers' tensors of a checkpoint that was verified, one by one."""
        record = unseal(self.store.read_bytes(f"{name}.json"), f"{self.store.uri}/{name}.json")
        folder = self.store.local_folder(name)
        for entry in record["files"]:
            if entry["path"].endswith(".safetensors"):
                yield from read_tensors(folder / Path(entry["path"]).name)

    @property
    def busy(self) -> bool:
        """Whether the last one is still being written. Raises what went wrong with it."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is not None

    def save(
        self, step: int, history: History, tensors: Mapping[str, Tensor], figures: dict[str, Any], scratch: Path
    ) -> None:
        """Begin to write the checkpoint after `step` steps.

        Every worker calls this with its own `tensors`; `history` and `figures` are worker 0's. Raises what went wrong
        with the one before.
        """
        self.wait()
        kept = history.table()
        self._writing = self._thread.submit(self._write, step, kept, tensors, figures, scratch)

    def wait(self) -> None:
        """Wait until what was begun is whole on this worker. Raises what went wrong."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, history: Any, tensors: Mapping[str, Tensor], figures: Any, scratch: Path) -> None:
        begun, name = time.monotonic(), f"step-{step:08d}"
        folder = scratch / f"checkpoint-{self.rank}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"rank-{self.rank:05d}.safetensors"
        try:
            write_tensors(file, tensors)
            entry = self.store.upload_file(file, f"{name}/{file.name}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.store.write_bytes(f"{name}/{file.stem}.json", seal({"attempt": self.attempt, "entry": asdict(entry)}))
        if self.rank == 0:
            buffer = io.BytesIO()
            pq.write_table(history, buffer, compression="zstd")
            entries = [*self._written(name), self.store.write_bytes(f"{name}/{HISTORY}", buffer.getbuffer())]
            files = [asdict(entry) for entry in entries]
            record = {"step": step, "fingerprint": self.fingerprint, "files": files, "figures": figures}
            self.store.write_bytes(f"{name}.json", seal(record))
            for old in self._records()[: -self.keep]:
                self.store.delete(old)  # first: a folder without a record is not a checkpoint
                self.store.delete(old.removesuffix(".json"))
        self.write_seconds = time.monotonic() - begun

    def _written(self, name: str) -> list[FileEntry]:
        """All workers' files, once they are there."""
        until, entries = time.monotonic() + WAIT_S, []
        for rank in range(self.workers):
            record = f"{name}/rank-{rank:05d}.json"
            while (found := self._entry(record)) is None:
                if time.monotonic() > until:
                    raise StageError(f"worker {rank} did not write its part of the checkpoint {name} in {WAIT_S:.0f} s")
                time.sleep(POLL_S)
            entries.append(found)
        return entries

    def _entry(self, name: str) -> FileEntry | None:
        if not self.store.exists(name):
            return None
        data = unseal(self.store.read_bytes(name), f"{self.store.uri}/{name}")
        return FileEntry(**data["entry"]) if data["attempt"] == self.attempt else None


class Pace:
    """When the next checkpoint is due: what they cost is measured, and kept to a share of the time.

    Beside a GPU a checkpoint costs the wait for its snapshot; on a CPU also the thread that writes takes from training.
    """

    def __init__(self, every_steps: int | None, step: int, every_s: float = EVERY_S) -> None:
        self.every_s, self.every_steps = every_s, every_steps
        self.cost = 0.0
        self.saved(step)

    def saved(self, step: int, cost: float = 0.0) -> None:
        """The checkpoint after `step` steps was begun; it took `cost` seconds of training."""
        self.cost = cost
        self._at, self._step = time.monotonic(), step

    def due(self, step: int) -> bool:
        if self.every_steps:
            return step - self._step >= self.every_steps
        return time.monotonic() - self._at >= max(self.every_s, self.cost / SHARE)
