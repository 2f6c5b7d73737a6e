"""Rows of a data file or a hub data set, streamed.

Compressed files and UTF-16 are read as what they are. Out: (row number from 1, row) pairs. A row that cannot be read is
the rule that it breaks, as a string.

Always holds. A source can be iterated any number of times. It is picklable. It holds no more than one batch in memory.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from tailor_ray.config.task import TaskConfig
from tailor_ray.errors import DataError

Row = dict[str, Any]
Numbered = tuple[int, Row | str]
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
BATCH = 1024  # rows of a parquet file in memory at once


@dataclass(frozen=True)
class FileRows:
    """Rows of one .jsonl, .csv (both compressed or not) or .parquet file; `number` is its line, or row for parquet."""

    path: str

    def __iter__(self) -> Iterator[Numbered]:
        path = Path(self.path)
        name = path.name.lower().removesuffix(path.suffix.lower() if path.suffix.lower() in COMPRESSED else "")
        return {".parquet": _parquet, ".csv": _csv}.get(Path(name).suffix, _jsonl)(path)

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class HubRows:
    """Rows of a split on the Hugging Face hub (or of a local folder in a form that `datasets` reads)."""

    dataset: str
    subset: str | None
    split: str
    convert: Callable[[Row, str], Row]  # (hub row, "<split>-<index>") -> row with our column names

    def __iter__(self) -> Iterator[Numbered]:
        for index, row in enumerate(self._load()):
            converted: Row | str
            try:
                converted = self.convert(row, f"{self.split}-{index}")
            except KeyError as error:
                converted = f"there is no column {error}, but {', '.join(row)}"
            except AttributeError:
                converted = f"a column is empty or not text: {str(row)[:120]}"
            yield index + 1, converted

    def _load(self) -> Iterable[Row]:
        import datasets  # takes 1 s

        try:
            return datasets.load_dataset(self.dataset, self.subset, split=self.split)
        except (OSError, ValueError) as error:  # hub errors are OSErrors; unknown subsets and splits ValueErrors
            raise DataError(
                f"cannot load {self} from the hub: {error}; set task.path to a folder with train.jsonl and test.jsonl"
            ) from error

    def __str__(self) -> str:
        return f"{self.dataset}{f'/{self.subset}' if self.subset else ''} split {self.split}"


Source = FileRows | HubRows


def local_files(config: TaskConfig) -> tuple[FileRows, FileRows] | None:
    """Train and test files below `task.path`, or below $TAILOR_RAY_DATA/<task>.

    Returns None where there is neither. Raises DataError naming the missing folder or file.
    """
    path = config.path
    if path is None:
        shared = Path(os.environ.get("TAILOR_RAY_DATA", "")) / config.name
        if config.name == "jsonl" or not os.environ.get("TAILOR_RAY_DATA") or not shared.is_dir():
            return None
        path = str(shared)
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"task.path {path!r} is not a folder; it must hold the train and test files")
    return (
        FileRows(str(_file(folder, "train", config.train_file))),
        FileRows(str(_file(folder, "test", config.test_file))),
    )


def _file(folder: Path, split: str, name: str | None) -> Path:
    plain = [name] if name else [f"{split}.{suffix}" for suffix in ("jsonl", "parquet", "csv")]
    candidates = (
        plain if name else [*plain, *(f"{split}.{kind}{how}" for kind in ("jsonl", "csv") for how in COMPRESSED)]
    )
    found = [folder / candidate for candidate in candidates if (folder / candidate).is_file()]
    if not found:
        packed = "" if name else f" (nor compressed: {', '.join(COMPRESSED)})"
        raise DataError(f"no {' or '.join(plain)} in {folder}{packed}; set task.path or task.{split}_file")
    if len(found) > 1:
        raise DataError(f"{folder} holds {' and '.join(path.name for path in found)}; say which in task.{split}_file")
    return found[0]


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked by what its first bytes say and not by its name. Raises DataError for damage."""
    with path.open("rb") as file:
        begins = file.peek(6)[:6]
        how = next((how for magic, how in _MAGIC.items() if begins.startswith(magic)), None)
        try:
            if how is None:
                yield file
            elif how == "zstd":
                import pyarrow as pa

                yield io.BufferedReader(cast(Any, pa.CompressedInputStream(pa.PythonFile(file, mode="r"), how)))
            else:
                unpack: Any = {"gzip": gzip, "bz2": bz2, "xz": lzma}[how]
                yield io.BufferedReader(unpack.open(file))
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            raise DataError(f"{path}: damaged {how or 'file'}: {error}; pack or copy it again") from error


def _encoding(begins: bytes) -> str | None:
    """UTF-16 by its byte order mark; None for what is read as UTF-8."""
    return "utf-16" if begins.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON from its pairs, for json's `object_pairs_hook`.

    Raises ValueError where a key stands twice, of which one would be lost.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def _jsonl(path: Path) -> Iterator[Numbered]:
    with _opened(path) as file:
        encoding = _encoding(file.peek(2))
        lines: Iterable[bytes | str] = io.TextIOWrapper(file, encoding, newline="\n") if encoding else file
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_float=Decimal, object_pairs_hook=unique_keys)
            except UnicodeDecodeError as error:
                yield number, f"the line is not UTF-8: {error.reason} at byte {error.start}"
                continue
            except (ValueError, RecursionError) as error:  # also an integer of more than 4,300 digits
                yield number, f"the line is not valid JSON: {error}"
                continue
            yield number, row if isinstance(row, dict) else f"the line holds a {type(row).__name__}, not an object"


def _csv(path: Path) -> Iterator[Numbered]:
    csv.field_size_limit(2**31 - 1)  # a long question is the exam's to refuse, by id, not the reader's
    with _opened(path) as file:
        encoding = _encoding(file.peek(2)) or "utf-8-sig"
        reader = csv.DictReader(io.TextIOWrapper(file, encoding, newline=""))
        try:
            for row in reader:
                if None in row:
                    yield reader.line_num, f"the row has more fields than the header's {len(reader.fieldnames or ())}"
                else:
                    yield reader.line_num, {name: value for name, value in row.items() if value not in (None, "")}
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {reader.line_num + 1}: not readable as UTF-8 CSV: {error}") from error


def _parquet(path: Path) -> Iterator[Numbered]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for row in _rows(batch):
                    number += 1
                    yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}, row {number + 1}: not readable as parquet: {error}") from error


def _rows(batch: Any) -> list[Row | str]:
    """A batch's rows; text that is not UTF-8 spoils its own row and no other."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [f"the row is not UTF-8: {error.reason} at byte {error.start}"]
        return [row for index in range(batch.num_rows) for row in _rows(batch.slice(index, 1))]
