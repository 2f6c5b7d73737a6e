"""What a stage commits: its parts one by one, and its manifest last.

A part is rows in a numbered parquet file. It is the join key of all stages: part i of a stage belongs to part i of the
questions. `prefix-00007.parquet` is written first, then the sealed record `prefix-00007.json` with its hash, rows and
counts. The part exists when the record does. Whoever makes a part writes it and passes on its record alone. A stage
killed half-way finds its committed parts and makes only the others.

A manifest names the stage's inputs by hash. It names what the stage made by one hash over its parts' records, and by
the hash of the model it left. So a stage is found done without reading its parts. Whoever reads one checks it: records
against the manifest, rows against their record.

A sealed record is JSON with its hash among its keys. A run's settings are YAML for people. Their first line carries the
hash of the rest, and a copy lies beside the file. So an empty or cut-off file is named as damaged and never taken for
changed settings. The copy stands in for it. Settings without that line were written by hand and are taken as they are.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tailor_ray.errors import CorruptionError, RunFolderError
from tailor_ray.storage.store import FileEntry, Store

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SEAL = re.compile(rb"# the settings of this run; sha256 of what follows: ([0-9a-f]{64})\n")
T = TypeVar("T")
R = TypeVar("R")
READERS = 16  # records read at a time: on an object store each takes its 10 to 30 ms


@dataclass(frozen=True, slots=True)
class Part:
    """The record of one committed part; `info` is what its stage wants to remember of it, counts above all."""

    index: int
    entry: FileEntry
    info: dict[str, Any]

    @property
    def rows(self) -> int:
        return self.entry.rows or 0

    def to_json(self) -> str:
        """As one line of text, to cross process borders in a column of Arrow."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Part:
        record = json.loads(text)
        return cls(record["index"], FileEntry(**record["entry"]), record["info"])


@dataclass(frozen=True, slots=True)
class PartsDigest:
    """What a manifest says of all parts with one prefix: their number, their rows, one hash over their records."""

    count: int
    rows: int
    sha256: str

    @classmethod
    def of(cls, parts: Iterable[Part]) -> PartsDigest:
        """The digest of `parts`, given in any order: they are taken by index.

        Raises CorruptionError where a number is missing or there twice.
        """
        ordered = sorted((part.index, part.rows, part.entry.path, part.entry.sha256) for part in parts)
        digest = hashlib.sha256()
        for place, (index, rows, path, sha256) in enumerate(ordered):
            if index != place:
                raise CorruptionError(f"part {place} is missing or there twice: the next one is {path}")
            digest.update(f"{path} {rows} {sha256}\n".encode())
        return cls(len(ordered), sum(rows for _, rows, _, _ in ordered), digest.hexdigest())


def part_name(prefix: str, index: int) -> str:
    return f"{prefix}-{index:05d}"


def commit_part(store: Store, prefix: str, index: int, table: pa.Table, info: Mapping[str, Any] | None = None) -> Part:
    """Write the rows of `table`, and then their record, which keeps `info`.

    Returns the part. Doing it again with the same rows gives the same files.
    """
    name = part_name(prefix, index)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    written = store.write_bytes(f"{name}.parquet", buffer.getbuffer())
    entry = FileEntry(written.path, written.sha256, written.bytes, table.num_rows)
    part = Part(index, entry, dict(info or {}))
    store.write_bytes(f"{name}.json", seal(asdict(part)))
    return part


def drop_part(store: Store, prefix: str, index: int) -> None:
    """Take a committed part back, its record first."""
    for ending in ("json", "parquet"):
        store.delete(f"{part_name(prefix, index)}.{ending}")


def committed_parts(store: Store, prefix: str, verify: bool = True) -> list[Part]:
    """The committed parts by index. A torn or damaged one is left out and logged, so that it is made again.

    `verify` hashes their rows too, which an unfinished stage does before it goes on; a finished one's rows are
    checked when they are read.
    """
    pattern = re.compile(re.escape(prefix) + r"-(\d{5,})\.json")

    def read(name: str) -> Part | None:
        try:
            return _read_record(store, name, verify)
        except CorruptionError as error:
            log.warning("%s; this part is made again", error)
            return None

    names = [name for name in store.files() if pattern.fullmatch(name)]
    found = in_threads(read, names)
    return sorted((part for part in found if part is not None), key=lambda part: part.index)


def find_part(store: Store, prefix: str, index: int) -> Part:
    """The record of part `index` of a finished stage.

    Raises CorruptionError when it is missing or damaged.
    """
    name = f"{part_name(prefix, index)}.json"
    try:
        return _read_record(store, name, verify=False)
    except FileNotFoundError:
        raise CorruptionError(f"{store.uri}/{name} is missing, but its stage is committed; restore it") from None


def read_part(store: Store, part: Part, columns: Sequence[str] | None = None) -> pa.Table:
    """The part's rows, of all columns or of `columns` alone.

    Raises CorruptionError when the bytes are missing or not the committed ones.
    """
    try:
        data = store.read_bytes(part.entry.path)
    except FileNotFoundError:
        raise CorruptionError(f"{store.uri}/{part.entry.path} is missing, but its record is there") from None
    if hashlib.sha256(data).hexdigest() != part.entry.sha256:
        raise CorruptionError(
            f"{store.uri}/{part.entry.path} does not have the hash that it was committed with: it was changed or "
            f"damaged; restore it, or delete the folder {store.uri} and the later rounds to make them again"
        )
    return pq.read_table(io.BytesIO(data), columns=None if columns is None else list(columns))


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of each item, in order, several at a time."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(READERS, len(items))) as threads:
        return list(threads.map(work, items))


def _read_record(store: Store, name: str, verify: bool) -> Part:
    record = unseal(store.read_bytes(name), f"{store.uri}/{name}")
    part = Part(record["index"], FileEntry(**record["entry"]), record["info"])
    if verify and (not store.exists(part.entry.path) or store.hash_file(part.entry.path) != part.entry.sha256):
        raise CorruptionError(f"{store.uri}/{part.entry.path} does not have the hash that {name} records")
    return part


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a stage did. `spec` hashes the `settings` that change its result, `inputs` maps stages to their digests.

    `parts` holds a digest for each prefix, `model` the sha256 of the model that the stage left, if it left one.
    """

    stage: str
    round: int
    spec: str
    inputs: dict[str, str]
    parts: dict[str, PartsDigest]
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """What later stages name as their input.

        It hashes the content that was made, not the time it took.
        """
        content = {
            "stage": self.stage,
            "round": self.round,
            "spec": self.spec,
            "inputs": self.inputs,
            "parts": {prefix: parts.sha256 for prefix, parts in self.parts.items()},
            "model": self.model,
        }
        return hashlib.sha256(canonical(content)).hexdigest()


def commit_manifest(store: Store, manifest: Manifest) -> None:
    store.write_bytes(MANIFEST, seal(asdict(manifest)))


def read_manifest(store: Store) -> Manifest | None:
    """The stage's manifest, None when it never committed.

    Raises CorruptionError when it is damaged, and RunFolderError when version 0.1 wrote it.
    """
    if not store.exists(MANIFEST):
        return None
    data = unseal(store.read_bytes(MANIFEST), f"{store.uri}/{MANIFEST}")
    if "parts" not in data:
        raise RunFolderError(
            f"{store.uri}/{MANIFEST} was written by version 0.1 of tailor_ray, whose run folders this version does not "
            "read; give this run another name (--name)"
        )
    parts = {prefix: PartsDigest(**digest) for prefix, digest in data.pop("parts").items()}
    return Manifest(parts=parts, **data)


def stage_parts(store: Store, prefix: str) -> list[Part]:
    """The parts of a committed stage by index.

    Raises CorruptionError naming what is missing, damaged or another than the manifest says.
    """
    manifest = read_manifest(store)
    if manifest is None or prefix not in manifest.parts:
        raise CorruptionError(f"{store.uri} has no manifest that names parts {prefix}-*: the stage is not committed")
    wanted, parts = manifest.parts[prefix], committed_parts(store, prefix, verify=False)
    missing = sorted(set(range(wanted.count)) - {part.index for part in parts})
    if missing:
        raise CorruptionError(
            f"{store.uri}/{part_name(prefix, missing[0])}.json is missing or damaged ({len(missing)} such parts), but "
            f"its stage's manifest counts it; restore it, or delete the folder {store.uri} to do this stage again"
        )
    if PartsDigest.of(parts) != wanted:
        raise CorruptionError(
            f"the parts {prefix}-* of {store.uri} are not those that its manifest was written for; restore them, or "
            "delete that folder to do this stage again"
        )
    return parts


def seal(record: Mapping[str, Any]) -> bytes:
    """JSON text with the hash of its own canonical form."""
    plain = json.loads(json.dumps(record))
    plain["sealed"] = hashlib.sha256(canonical(plain)).hexdigest()
    return json.dumps(plain, indent=1, ensure_ascii=False).encode()


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The record that `seal` made `data` of.

    Raises CorruptionError naming `where` when it is cut off or its hash does not match.
    """
    try:
        record = json.loads(data)
        sealed = record.pop("sealed")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CorruptionError(f"{where} is cut off or not a sealed record; delete it to do its work again") from None
    if hashlib.sha256(canonical(record)).hexdigest() != sealed:
        raise CorruptionError(f"{where} does not match its own hash; delete it to do its work again")
    return record


def canonical(value: Any) -> bytes:
    """The same bytes for the same content, whatever the order of keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def write_settings(store: Store, name: str, text: str) -> None:
    """Write the YAML `text` as the file `name`.

    Its copy is written first: whatever happens, one of the two is whole.
    """
    body = text.encode()
    data = b"# the settings of this run; sha256 of what follows: %s\n" % hashlib.sha256(body).hexdigest().encode()
    store.write_bytes(f"{name}.copy", data + body)
    store.write_bytes(name, data + body)


def read_settings(store: Store, name: str) -> dict[str, Any]:
    """The settings, of the copy where the file is damaged, which is logged.

    Raises FileNotFoundError where there is no such file, and CorruptionError where the copy is no better.
    """
    where = f"{store.uri}/{name}"
    try:
        return _parsed(store.read_bytes(name), where)
    except CorruptionError as error:
        try:
            found = _parsed(store.read_bytes(f"{name}.copy"), where)
        except (CorruptionError, FileNotFoundError):
            raise error from None
        log.warning("%s; its copy %s is read instead", error, f"{name}.copy")
        return found


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    seal = SEAL.match(data)
    todo = "restore it; or delete it, and the next `tailor-ray run` writes it from the settings it is given"
    if seal and hashlib.sha256(data[seal.end() :]).hexdigest().encode() != seal[1]:
        raise CorruptionError(f"{where} is damaged: it is not what was written (cut off or changed); {todo}")
    try:
        settings = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CorruptionError(f"{where} is damaged: {' '.join(str(error).split())}; {todo}") from None
    if not isinstance(settings, dict) or not settings:
        raise CorruptionError(f"{where} is damaged: it holds no settings; {todo}")
    return settings
