"""Checkpoints of a round's training: found, verified, kept few.

In: the stage's store. Out: `checkpoints/step-00000120/` with DeepSpeed's files of all workers, and, written last, the
sealed record `checkpoints/step-00000120.json` with their hashes. What always holds: a checkpoint without a valid
record, with a file that does not match it, or of another job (fingerprint) is not resumed from; the one before it is.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tailor_ray.errors import CorruptionError
from tailor_ray.storage import FileEntry, Store
from tailor_ray.storage.seal import seal, unseal
from tailor_ray.training.history import History

log = logging.getLogger(__name__)

TAG = "state"
HISTORY = "history.parquet"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One verified checkpoint: `step` steps are done, `history` are their figures."""

    name: str
    step: int
    history: History


class Checkpoints:
    """The checkpoints of one job below `<stage>/checkpoints`."""

    def __init__(self, stage: Store, fingerprint: str, keep: int) -> None:
        self.store = stage.child("checkpoints")
        self.fingerprint = fingerprint
        self.keep = keep

    def latest(self) -> Checkpoint | None:
        """The last checkpoint that is whole; damaged ones are passed over and logged."""
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
        return Checkpoint(name, data["step"], History(table))

    def load(self, name: str, engine: Any, partial: bool) -> None:
        """Every worker calls this with the name that worker 0 found. `partial`: frozen weights were left out."""
        engine.load_checkpoint(str(self.store.local_folder(name)), tag=TAG, load_module_strict=not partial)

    def save(
        self,
        step: int,
        history: History,
        engine: Any,
        scratch: Path,
        rank: int,
        partial: bool,
        gather: Callable[[list[FileEntry]], list[FileEntry]],
    ) -> None:
        """Every worker calls this; `history` is worker 0's. `gather` gives it all entries, once all workers are in."""
        name = f"step-{step:08d}"
        folder = Path(self.store.path(name)) if self.store.is_local else scratch / f"checkpoint-{rank}" / name
        engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=partial)
        entries = [] if self.store.is_local else self.store.upload_folder(folder, name)
        entries = gather(entries)  # and no worker is still writing
        if rank == 0:
            if self.store.is_local:
                (folder / HISTORY).unlink(missing_ok=True)  # of a save that was cut off
                entries = self.store.upload_folder(folder, name)  # in place: only hashes
            buffer = io.BytesIO()
            pq.write_table(history.table(), buffer, compression="zstd")
            entries.append(self.store.write_bytes(f"{name}/{HISTORY}", buffer.getbuffer()))
            record = {"step": step, "fingerprint": self.fingerprint, "files": [asdict(entry) for entry in entries]}
            self.store.write_bytes(f"{name}.json", seal(record))
            self._prune()

    def _prune(self) -> None:
        for record in self._records()[: -self.keep]:
            self.store.delete(record)  # first: a folder without a record is not a checkpoint
            self.store.delete(record.removesuffix(".json"))
