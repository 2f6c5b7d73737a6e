"""The rows that a worker trains on, read from this node's copy of the example parts as they are needed.

In: the committed parts. Out: `NodeRows.take`. What always holds: each part is verified and copied to a node once, into
an Arrow file of its token ids, by the workers there together; files are mapped, so a worker holds no more in memory
than the step's own rows and what the page cache keeps; the copy is reused by a retry, and goes with the end of the
training or, where that was killed, with the next training on that node.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from tailor_ray.storage import Part, PartsDigest, Store, read_part
from tailor_ray.storage.store import node_cache
from tailor_ray.training.tokens import TOKEN_SCHEMA, Rows, TokenExample

OPEN_PARTS = 256  # mapped at a time, each with a file descriptor; to map one takes some 0.1 ms
Together = Callable[[Callable[[], Any]], Any]


class NodeRows:
    """All rows of some parts by number; `counts` are the parts' rows, `open_part` gives those of one."""

    def __init__(self, counts: Sequence[int], open_part: Callable[[int], Rows]) -> None:
        self._ends = np.cumsum(counts)
        self._counts = counts
        self._open = lru_cache(OPEN_PARTS)(open_part)

    def take(self, indices: Iterable[int]) -> list[TokenExample]:
        return [self._row(index) for index in indices]

    def _row(self, index: int) -> TokenExample:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._open(part)[index - int(self._ends[part]) + self._counts[part]]


@contextmanager
def node_rows(
    store: Store, parts: Sequence[Part], local_rank: int, local_workers: int, together: Together
) -> Iterator[NodeRows]:
    """The rows of all parts, of which this worker copies its share to the node.

    `together` runs this share and returns when all workers did theirs. Raises CorruptionError for a damaged part.
    """
    name = hashlib.sha256(f"{store.uri} {PartsDigest.of(parts).sha256}".encode()).hexdigest()[:32]
    with _held(node_cache() / "examples", name) as folder:
        together(lambda: _copy(store, parts[local_rank::local_workers], folder))
        files = [_file(part, folder) for part in parts]
        yield NodeRows([part.rows for part in parts], lambda number: _mapped(files[number]))


def _file(part: Part, folder: Path) -> Path:
    return folder / Path(part.entry.path).with_suffix(".arrow").name


def _copy(store: Store, parts: Sequence[Part], folder: Path) -> None:
    """Those that are not there yet."""
    for part in parts:
        target = _file(part, folder)
        if target.exists():
            continue
        table = read_part(store, part, TOKEN_SCHEMA.names).combine_chunks()
        temporary = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        temporary.rename(target)


def _mapped(path: Path) -> Rows:
    return Rows(pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0))


@contextmanager
def _held(base: Path, name: str) -> Iterator[Path]:
    """The folder `name`, safe from being removed while this lasts; those that nobody holds are removed.

    It is removed itself when its last holder ends well, and kept for a retry when one is cut off.
    """
    folder = base / name
    base.mkdir(parents=True, exist_ok=True)
    with FileLock(base / ".lock"):
        for other in base.iterdir():
            if other.is_dir() and other != folder:
                _remove_unheld(other)
        holding = _lock_file(folder)
        fcntl.flock(holding, fcntl.LOCK_SH)  # goes with the process, however it ends
        folder.mkdir(exist_ok=True)
    try:
        yield folder
    except BaseException:
        holding.close()
        raise
    with FileLock(base / ".lock"):
        holding.close()
        _remove_unheld(folder)


def _lock_file(folder: Path) -> IO[bytes]:
    return folder.with_name(f"{folder.name}.held").open("ab")


def _remove_unheld(folder: Path) -> None:
    with _lock_file(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(folder, ignore_errors=True)
        Path(file.name).unlink()
